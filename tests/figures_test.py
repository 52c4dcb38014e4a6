"""Pictures show the numbers they were given."""

import json
import sys

import numpy as np
from PIL import Image
import pytest

from adversarial_augment import figures
from adversarial_augment.errors import StorageError, UserError


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
  columns = slice(int(0.85 * 160) + 2, int((0.85 + 1.05) * 160) - 2)  # inside the tiles
  rows = slice(int((0.45 + 0.05) * 160) + 2, int((0.45 + 3 * 1.1) * 160) - 2)
  seen = found[rows, columns].reshape(-1, 3)
  known = sum(count(seen, (value,) * 3) for value in (0.2, 0.8, 0.0, 1.0))
  assert known > 0.97 * len(seen)  # the rest lies on the edges; smoothing would blend a third of the pixels


@pytest.mark.parametrize('labels', [None, ['cat', 'dog']])
def test_text_is_what_was_given(tmp_path, monkeypatch, labels):
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, path: drawn.append(figure))
  images = flat([(0, 0, 0), (1, 1, 1)])
  figures.ada_examples('a.png', images, images, [0.98765, 1.0], labels, title='the title')
  texts = {text.get_text() for text in drawn[0].texts}
  assert texts >= {'SSIM 0.988', 'SSIM 1.000', 'clean', 'adversarial', *(labels or [])}
  assert drawn[0].get_suptitle() == 'the title'


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
  monkeypatch.setattr(figures, '_save', lambda figure, path: drawn.append(figure))
  figures.training_curves(tmp_path / 'c.png', path)
  panels = {axes.get_title(): axes.lines[0].get_xydata() for axes in drawn[0].axes}
  assert list(panels) == ['Loss', 'Accuracy', 'Mean SSIM, before any line search']
  np.testing.assert_allclose(panels['Loss'], [[1, 1], [2, 0.5], [3, 1 / 3], [4, 0.25]])
  np.testing.assert_allclose(panels['Mean SSIM, before any line search'], [[3, 0.9], [4, 0.9]])


def test_curves_are_written(tmp_path):
  path = write_metrics(tmp_path / 'metrics.jsonl', [{'step': 1, 'loss': 2.0}])
  picture = figures.training_curves(tmp_path / 'figures' / 'c.png', path)
  assert len(np.unique(pixels(picture), axis=0)) > 2


def test_curves_leave_out_a_line_that_a_kill_cut_off_and_name_one_amid_the_log(tmp_path, monkeypatch):
  path = write_metrics(tmp_path / 'metrics.jsonl', [{'step': step, 'loss': 2.0} for step in (1, 2, 3)])
  whole = path.read_text()
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, path: drawn.append(figure))
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
