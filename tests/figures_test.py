"""Pictures show the numbers they were given."""

import json
import sys

import numpy as np
from PIL import Image
import pytest

from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.reporting import figures


def pixels(path):
  return np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)


def count(found, colour):
  """How many pixels have this colour in [0, 1], up to rounding."""
  return int((np.abs(found - 255.0 * np.asarray(colour)) <= 1).all(1).sum())


def flat(colours):
  """One constant image for each colour."""
  return np.broadcast_to(np.asarray(colours, np.float32)[:, None, None, :], (len(colours), 8, 8, 3)).copy()


def test_every_tile_is_drawn_in_its_colours(tmp_path):
  clean = [(0.8, 0.2, 0.4), (0.1, 0.6, 0.3)]
  shift = np.array([0.04, -0.06, 0.08])
  corrupted = np.array(clean) + shift
  path = figures.ada_examples(tmp_path / 'a.png', flat(clean), flat(corrupted), [0.9, 0.8], title='nu = 0.015')
  found = pixels(path)
  tile = count(found, clean[0])
  assert tile > 100 * 100
  for colour in (*clean, *corrupted):
    assert count(found, colour) == pytest.approx(tile, rel=0.02)
  assert count(found, 0.5 + 5 * shift) == pytest.approx(2 * tile, rel=0.02)  # the same difference in both columns
  assert [entry.name for entry in tmp_path.iterdir()] == ['a.png']


def test_tiles_are_crisp_and_large_differences_are_clipped(tmp_path):
  board = np.indices((8, 8)).sum(0) % 2
  images = np.repeat(board[None, :, :, None], 3, axis=3).astype(np.float32) * 0.6 + 0.2
  path = figures.ada_examples(tmp_path / 'a.png', images, 1 - images, [0.1], title='')
  found = np.asarray(Image.open(path).convert('RGB'))
  columns = slice(int(1.0 * 160) + 2, int((1.0 + 1.05) * 160) - 2)  # inside the tiles
  rows = slice(int((0.4 + 0.05) * 160) + 2, int((0.4 + 3 * 1.1) * 160) - 2)
  seen = found[rows, columns].reshape(-1, 3)
  known = sum(count(seen, (value,) * 3) for value in (0.2, 0.8, 0.0, 1.0))
  assert known > 0.97 * len(seen)  # the rest lies on the edges; smoothing would blend a third of the pixels


@pytest.mark.parametrize('labels', [None, ['cat', 'dog']])
def test_text_is_what_was_given(tmp_path, monkeypatch, labels):
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, *_: drawn.append(figure))
  images = flat([(0, 0, 0), (1, 1, 1)])
  figures.ada_examples('a.png', images, images, [0.98765, 1.0], labels, title='the title')
  texts = {text.get_text() for text in drawn[0].texts}
  assert texts >= {'SSIM 0.988', 'SSIM 1.000', 'clean', 'adversarial', *(labels or [])}
  assert drawn[0].get_suptitle() == 'the title'


def texts(monkeypatch, labels, seen) -> list[tuple[str, str]]:
  """What is written above the tiles, with its weight."""
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, *_: drawn.append(figure))
  images = flat([(0, 0, 0)] * len(labels))
  figures.ada_examples('a.png', images, images, [1.0] * len(labels), labels, seen=seen, title='')
  return [(text.get_text(), text.get_fontweight()) for text in drawn[0].texts if 'seen' in text.get_text()]


def test_what_the_classifier_saw_is_written_and_what_is_wrong_stands_out(monkeypatch):
  found = texts(monkeypatch, ['8', '3'], (['8', '3'], ['3', '3']))
  assert found == [
    ('8 seen as 8', 'normal'), ('3 seen as 3', 'normal'), ('8 seen as 3', 'bold'), ('3 seen as 3', 'normal')
  ]  # fmt: skip


def test_long_names_of_classes_take_two_lines_and_are_cut(monkeypatch):
  kinds = ['golden retriever with a hat', 'golden retriever with a coat']
  found = texts(monkeypatch, [kinds[0], 'cat'], ([kinds[0], 'cat'], [kinds[1], 'cat']))
  assert found == [
    ('golden retrie…\nseen as golden retrie…', 'normal'), ('cat\nseen as cat', 'normal'),
    ('golden retrie…\nseen as golden retrie…', 'bold'), ('cat\nseen as cat', 'normal'),
  ]  # fmt: skip


def test_names_of_classes_are_no_formulas(tmp_path):
  images = flat([(0, 0, 0)])
  figures.ada_examples(tmp_path / 'a.png', images, images, [1.0], ['$x^$'], seen=(['a$'], ['$$']), title='$y^$')


def test_the_key_of_the_differences_says_what_its_greys_mean(monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, *_: drawn.append(figure))
  images = flat([(0, 0, 0)])
  figures.ada_examples('a.png', images, images, [1.0], title='')
  key = drawn[0].axes[-1]
  positions = {
    label.get_text(): position for label, position in zip(key.get_xticklabels(), key.get_xticks(), strict=True)
  }
  grey = key.images[0].get_array()[0]
  for text, position in positions.items():
    change = float(text.replace('−', '-'))
    shown = np.interp(position, np.arange(len(grey)), grey)
    assert shown == pytest.approx(np.clip(0.5 + figures.GAIN * change, 0, 1))
  assert sorted(map(float, (text.replace('−', '-') for text in positions))) == [-0.1, 0, 0.1]


def test_a_picture_is_cut_between_its_columns(tmp_path):
  colours = [(k / 10, 0.2, 0.9) for k in range(6)]
  images = flat(colours)
  path = figures.ada_examples(tmp_path / 'a.png', images, images, [1.0] * 6, list('abcdef'), title='the title')
  title, parts = figures.pieces(path.read_bytes())
  assert (title, len(parts)) == ('the title', 2)
  whole = pixels(path)
  for number, part in enumerate(parts):
    (tmp_path / 'part.png').write_bytes(part)
    found = pixels(tmp_path / 'part.png')
    for column, colour in enumerate(colours):
      here = column // 4 == number
      assert count(found, colour) == (count(whole, colour) if here else 0), (number, column)
  assert figures.pieces(parts[0]) == ('', [parts[0]])  # has nothing to say of its columns


@pytest.mark.parametrize(
  'about', ['', '[]', '[1, 2, 3]', '[160, 176, 64, 1000]', '[-5, 10, 3, 8]', 'NaN', '[160, 176, 9999, 8]', '[' * 99_999,
            '[1e999, 1, 1, 1]', '[160, 176, 64, 4]']
)  # fmt: skip
def test_a_picture_that_says_nonsense_of_its_columns_stays_whole(tmp_path, about):
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  info.add_text('Columns', about)
  Image.new('RGB', (1600, 700)).save(tmp_path / 'a.png', pnginfo=info)
  picture = (tmp_path / 'a.png').read_bytes()
  assert figures.pieces(picture) == ('', [picture])


@pytest.mark.parametrize(
  'corrupted, ssim, labels',
  [
    (flat([(0, 0, 0)]), [1, 1], None),
    (flat([(0, 0, 0)] * 2), [1], None),
    (flat([(0, 0, 0)] * 2), [1, 1], ['cat']),
  ],
)
def test_wrong_shapes_are_refused(tmp_path, corrupted, ssim, labels):
  with pytest.raises(UserError):
    figures.ada_examples(tmp_path / 'a.png', flat([(0, 0, 0)] * 2), corrupted, ssim, labels, title='')


@pytest.mark.parametrize('labels, seen', [(['cat'], (['cat'], ['cat', 'dog'])), (None, (['cat'], ['cat']))])
def test_classes_seen_without_their_labels_are_refused(tmp_path, labels, seen):
  images = flat([(0, 0, 0)])
  with pytest.raises(UserError, match='labels'):
    figures.ada_examples(tmp_path / 'a.png', images, images, [1.0], labels, seen=seen, title='')


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  images = flat([(0, 0, 0)])
  with pytest.raises(UserError, match="extra 'plots'"):
    figures.ada_examples(tmp_path / 'a.png', images, images, [1.0], title='')


def test_unwritable_place_is_a_storage_error(tmp_path):
  (tmp_path / 'file').write_text('')
  images = flat([(0, 0, 0)])
  with pytest.raises(StorageError):
    figures.ada_examples(tmp_path / 'file' / 'a.png', images, images, [1.0], title='')


@pytest.mark.parametrize('path', [None, 'picture', 'picture.xyz'])
def test_names_that_say_no_format_are_refused(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  images = flat([(0, 0, 0)])
  with pytest.raises(UserError, match='path='):
    figures.ada_examples(path, images, images, [1.0], title='')
  assert not list(tmp_path.iterdir())


def write_metrics(path, lines):
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return path


def test_curves_hold_the_values_of_the_run(tmp_path, monkeypatch):
  lines = [{'step': s, 'loss': 1 / s, 'accuracy': s / 10, 'ssim_mean': 0.9 if s > 2 else None} for s in (1, 2, 3, 4)]
  path = write_metrics(tmp_path / 'metrics.jsonl', lines)
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, *_: drawn.append(figure))
  figures.training_curves(tmp_path / 'c.png', path)
  panels = {axes.get_title(): axes.lines[0].get_xydata() for axes in drawn[0].axes}
  assert list(panels) == ['Loss', 'Accuracy', 'Mean SSIM, before any line search']
  np.testing.assert_allclose(panels['Loss'], [[1, 1], [2, 0.5], [3, 1 / 3], [4, 0.25]])
  np.testing.assert_allclose(panels['Mean SSIM, before any line search'], [[3, 0.9], [4, 0.9]])


@pytest.mark.parametrize('corrected, shown', [(0.0, False), (0.25, True)])
def test_a_panel_of_what_never_happened_is_left_out_and_one_of_zeros_that_say_something_is_not(
  tmp_path, monkeypatch, corrected, shown
):
  lines = [{'step': s, 'accuracy': 0.0, 'ssim_corrected': corrected, 'ssim_below_min': 0.0} for s in (1, 2)]
  path = write_metrics(tmp_path / 'metrics.jsonl', lines)
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, *_: drawn.append(figure))
  figures.training_curves(tmp_path / 'c.png', path)
  titles = [axes.get_title() for axes in drawn[0].axes]
  assert titles == ['Accuracy', *(['Images below the SSIM threshold'] if shown else [])]


def test_curves_are_written(tmp_path):
  path = write_metrics(tmp_path / 'metrics.jsonl', [{'step': 1, 'loss': 2.0}])
  picture = figures.training_curves(tmp_path / 'figures' / 'c.png', path)
  assert len(np.unique(pixels(picture), axis=0)) > 2


def test_curves_leave_out_a_line_that_a_kill_cut_off_and_name_one_amid_the_log(tmp_path, monkeypatch):
  path = write_metrics(tmp_path / 'metrics.jsonl', [{'step': step, 'loss': 2.0} for step in (1, 2, 3)])
  whole = path.read_text()
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, *_: drawn.append(figure))
  path.write_text(whole[:-5])
  figures.training_curves(tmp_path / 'c.png', path)
  assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[1, 2], [2, 2]]
  path.write_text(whole.replace('{"step": 2,', '{"step": '))
  with pytest.raises(UserError, match="metrics.jsonl' line 2 is damaged"):
    figures.training_curves(tmp_path / 'c.png', path)


@pytest.mark.parametrize('content', ['', 'not json\n', '{"loss": 1}\n', '[1]\n', '{"step": 1, "other": 2}\n'])
def test_bad_metrics_are_refused(tmp_path, content):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(content)
  with pytest.raises(UserError) as error:
    figures.training_curves(tmp_path / 'c.png', path)
  assert str(path) in str(error.value)
  with pytest.raises(UserError, match='missing'):
    figures.training_curves(tmp_path / 'c.png', tmp_path / 'missing')
