"""Pictures show the numbers they were given."""

import json

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
import pytest

from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.reporting import figures


def pixels(path):
  return np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)


def count(found, colour):
  """How many pixels have this colour in [0, 1], up to rounding."""
  return int((np.abs(found - 255.0 * np.asarray(colour)) <= 1).all(1).sum())


def flat(*colours):
  """One constant image for each colour."""
  return np.broadcast_to(np.asarray(colours, np.float32)[:, None, None, :], (len(colours), 8, 8, 3)).copy()


def draw(path, images, corrupted=None, ssim=None, labels=None, seen=None, title=''):
  names = labels or list(map(str, range(len(images))))
  corrupted, ssim = images if corrupted is None else corrupted, ssim or [1.0] * len(images)
  figures.ada_examples(path, images, corrupted, ssim, names, seen or (names, names), title)
  return path


@pytest.fixture
def drawn(monkeypatch) -> list:
  """The figures, instead of their files."""
  found = []
  monkeypatch.setattr(figures, '_save', lambda figure, *_: found.append(figure))
  return found


def test_every_tile_is_drawn_in_its_colours(tmp_path):
  clean = [(0.8, 0.2, 0.4), (0.1, 0.6, 0.3)]
  shift = np.array([0.04, -0.06, 0.08])
  corrupted = np.array(clean) + shift
  found = pixels(draw(tmp_path / 'figures' / 'a.png', flat(*clean), flat(*corrupted)))
  tile = count(found, clean[0])
  assert tile > 100 * 100
  for colour in (*clean, *corrupted):
    assert count(found, colour) == pytest.approx(tile, rel=0.02)
  assert count(found, 0.5 + 5 * shift) == pytest.approx(2 * tile, rel=0.02)  # the same difference in both columns
  assert [entry.name for entry in (tmp_path / 'figures').iterdir()] == ['a.png']


def test_tiles_are_crisp_and_large_differences_are_clipped(tmp_path):
  board = np.indices((8, 8)).sum(0) % 2
  images = np.repeat(board[None, :, :, None], 3, axis=3).astype(np.float32) * 0.6 + 0.2
  found = np.asarray(Image.open(draw(tmp_path / 'a.png', images, 1 - images)).convert('RGB'))
  columns = slice(int(1.0 * 160) + 2, int((1.0 + 1.05) * 160) - 2)  # inside the tiles
  for top in (0.4 + 0.21, 0.4 + 2 * 0.21 + 1.1, 0.4 + 2 * 0.21 + 2.2):  # below the titles of the rows
    rows = slice(int((top + 0.1) * 160), int((top + 1.0) * 160))
    seen = found[rows, columns].reshape(-1, 3)
    known = sum(count(seen, (value,) * 3) for value in (0.2, 0.8, 0.0, 1.0))
    assert known > 0.97 * len(seen)  # smoothing would blend a third of the pixels


def test_text_is_what_was_given(drawn):
  names = ['8', '3']
  draw('a.png', flat((0, 0, 0), (1, 1, 1)), ssim=[0.98765, 1.0], labels=names, seen=(names, ['3', '3']), title='title')
  texts = [(text.get_text(), text.get_fontweight()) for text in drawn[0].texts]
  assert {text for text, _ in texts} >= {'SSIM 0.988', 'SSIM 1.000', 'clean', 'adversarial'}
  assert [entry for entry in texts if 'seen' in entry[0]] == [
    ('8 seen as 8', 'normal'), ('3 seen as 3', 'normal'), ('8 seen as 3', 'bold'), ('3 seen as 3', 'normal')
  ]  # fmt: skip
  assert drawn[0].get_suptitle() == 'title'


def test_long_names_of_classes_take_two_lines_and_are_cut(drawn):
  kinds = ['golden retriever with a hat', 'golden retriever with a coat']
  names = [kinds[0], 'cat']
  draw('a.png', flat((0, 0, 0), (0, 0, 0)), labels=names, seen=(names, [kinds[1], 'cat']))
  assert [text.get_text() for text in drawn[0].texts if 'seen' in text.get_text()] == 2 * [
    'golden retrie…\nseen as golden retrie…', 'cat\nseen as cat'
  ]  # fmt: skip


def test_names_of_classes_are_no_formulas(tmp_path):
  draw(tmp_path / 'a.png', flat((0, 0, 0)), labels=['$x^$'], seen=(['a$'], ['$$']), title='$y^$')


def test_the_key_of_the_differences_says_what_its_greys_mean(drawn):
  draw('a.png', flat((0, 0, 0)))
  key = drawn[0].axes[-1]
  grey, changes = key.images[0].get_array()[0], []
  for label, position in zip(key.get_xticklabels(), key.get_xticks(), strict=True):
    changes.append(float(label.get_text().replace('−', '-')))
    shown = np.interp(position, np.arange(len(grey)), grey)
    assert shown == pytest.approx(np.clip(0.5 + figures.GAIN * changes[-1], 0, 1))
  assert changes == [-0.1, 0, 0.1]


def test_a_picture_is_cut_between_its_columns(tmp_path):
  colours = [(k / 10, 0.2, 0.9) for k in range(6)]
  path = draw(tmp_path / 'a.png', flat(*colours), title='the title')
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
  info = PngInfo()
  info.add_text('Columns', about)
  Image.new('RGB', (1600, 700)).save(tmp_path / 'a.png', pnginfo=info)
  picture = (tmp_path / 'a.png').read_bytes()
  assert figures.pieces(picture) == ('', [picture])


def test_unwritable_place_is_a_storage_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(StorageError):
    draw(tmp_path / 'file' / 'a.png', flat((0, 0, 0)))


# Curves.


def write_metrics(folder, lines):
  path = folder / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return path


def test_curves_hold_the_values_of_the_run(tmp_path, drawn):
  lines = [{'step': s, 'loss': 1 / s, 'accuracy': s / 10, 'ssim_mean': 0.9 if s > 2 else None} for s in (1, 2, 3, 4)]
  figures.training_curves(tmp_path / 'c.png', write_metrics(tmp_path, lines))
  panels = {axes.get_title(): axes.lines[0].get_xydata() for axes in drawn[0].axes}
  assert list(panels) == ['Loss', 'Accuracy', 'Mean SSIM, before any line search']
  np.testing.assert_allclose(panels['Loss'], [[1, 1], [2, 0.5], [3, 1 / 3], [4, 0.25]])
  np.testing.assert_allclose(panels['Mean SSIM, before any line search'], [[3, 0.9], [4, 0.9]])


@pytest.mark.parametrize('corrected, shown', [(0.0, False), (0.25, True)])
def test_a_panel_of_what_never_happened_is_left_out_and_one_of_zeros_that_say_something_is_not(
  tmp_path, drawn, corrected, shown
):
  lines = [{'step': s, 'accuracy': 0.0, 'ssim_corrected': corrected, 'ssim_below_min': 0.0} for s in (1, 2)]
  figures.training_curves(tmp_path / 'c.png', write_metrics(tmp_path, lines))
  titles = [axes.get_title() for axes in drawn[0].axes]
  assert titles == ['Accuracy', *(['Images below the SSIM threshold'] if shown else [])]


def test_curves_are_written(tmp_path):
  path = tmp_path / 'figures' / 'c.png'
  figures.training_curves(path, write_metrics(tmp_path, [{'step': 1, 'loss': 2.0}]))
  assert len(np.unique(pixels(path), axis=0)) > 2


def test_curves_leave_out_a_line_that_a_kill_cut_off_and_name_one_amid_the_log(tmp_path, drawn):
  path = write_metrics(tmp_path, [{'step': step, 'loss': 2.0} for step in (1, 2, 3)])
  whole = path.read_text()
  path.write_text(whole[:-5])
  figures.training_curves(tmp_path / 'c.png', path)
  assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[1, 2], [2, 2]]
  path.write_text(whole.replace('{"step": 2,', '{"step": '))
  with pytest.raises(UserError, match="metrics.jsonl' line 2 is damaged"):
    figures.training_curves(tmp_path / 'c.png', path)


@pytest.mark.parametrize('content', ['', 'not json\n', '{"loss": 1}\n', '[1]\n', '{"step": 1, "other": 2}\n', None])
def test_bad_metrics_are_refused(tmp_path, content):
  path = tmp_path / 'metrics.jsonl'
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError) as error:
    figures.training_curves(tmp_path / 'c.png', path)
  assert str(path) in str(error.value)
