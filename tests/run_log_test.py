"""Lines of metrics.jsonl, which are null in the warm-up where they are of the adversary; and when a run ends."""

from contextlib import closing
import io
import json
import re
import types

import pytest

from adversarial_augment import results
from adversarial_augment.cli import progress
from adversarial_augment.reporting import figures
from adversarial_augment.run import run_log, train_job
from adversarial_augment.run.run_log import Forecast, RunLog, shown

ATTACKED = ('attack_loss_start', 'attack_loss_end', 'ssim_mean', 'ssim_corrected', 'ssim_below_min')
VALUES = {
  'loss': 1.0, 'accuracy': 0.5, 'learning_rate': 0.1,
  'attack_loss_start': 1.5, 'attack_loss_end': 2.0, 'ssim': 0.9, 'ssim_corrected': 0.25, 'ssim_below_min': 0.0,
}  # fmt: skip


def line(step: int) -> dict:
  """The line of a run whose first two updates are without the adversary."""
  recipe = types.SimpleNamespace(batch_size=8, is_attacked=lambda step: step >= 2)
  return train_job.log_line(recipe, types.SimpleNamespace(num_examples=40, epoch_size=None), step, VALUES)


def test_every_line_has_the_fields_of_the_adversary_and_they_are_null_in_the_warm_up():
  before, after = line(2), line(3)
  assert list(before) == list(after) == ['step', 'epoch', 'loss', 'accuracy', 'learning_rate', *ATTACKED]
  assert {name for name, value in before.items() if value is None} == {*ATTACKED}
  assert [after[name] for name in ATTACKED] == [1.5, 2.0, 0.9, 0.25, 0.0]
  assert (before['loss'], before['accuracy'], before['learning_rate']) == (1.0, 0.5, 0.1)


def write(folder, board: bool) -> None:
  with closing(RunLog(folder, 0, 3, 8, board, Forecast(3))) as log:
    for step in (1, 2, 3):
      log.add(step, line(step))


def test_null_is_written_read_drawn_and_not_shown(tmp_path, capfd, monkeypatch):
  write(tmp_path, board=False)
  path = tmp_path / 'metrics.jsonl'
  written = [json.loads(text) for text in path.read_text().splitlines()]
  assert [one['ssim_mean'] for one in written] == [None, None, 0.9]
  assert [one['ssim_mean'] for one in results.read_log(path, figures.METRICS)] == [None, None, 0.9]
  lines = capfd.readouterr().err.splitlines()
  assert ['ssim_mean' in text for text in lines] == [False, False, True]
  assert all('loss 1 ' in text for text in lines)
  drawn = []
  monkeypatch.setattr(figures, '_save', lambda figure, path: drawn.append(figure))
  figures.training_curves(tmp_path / 'c.png', path)
  panels = {axes.get_title(): axes.lines[0].get_xydata().tolist() for axes in drawn[0].axes}
  assert panels['Loss under attack'] == [[3, 1.5]]
  assert panels['Loss'] == [[1, 1], [2, 1], [3, 1]]


def test_null_is_no_point_in_tensorboard(tmp_path):
  pytest.importorskip('tensorboardX')
  write(tmp_path, board=True)
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert path.read_bytes().count(b'ssim_mean') == 1
  assert path.read_bytes().count(b'learning_rate') == 3


def test_a_line_is_told_in_one_write_so_that_those_of_other_threads_stay_apart(monkeypatch):
  class Written(io.StringIO):
    def write(self, text):
      pieces.append(text)
      return super().write(text)

  pieces: list[str] = []
  monkeypatch.setattr('sys.stderr', Written())
  progress.log('step 1/2')
  assert [piece for piece in pieces if piece] == ['step 1/2\n']


# When a run ends: of the steps that are left, each kind by its own time, and of the evaluations.


def test_steps_of_each_kind_and_evaluations_count():
  found = Forecast(100, warmup_steps=40, attacked=5.0, eval_every=30, evaluation=7.0)
  assert found.left(0, 1, 0.5) == 39 * 0.5 + 60 * 5 + 4 * 7  # after 30, 60, 90 and 100 steps
  assert found.left(1, 40, 0.25) == 60 * 5 + 3 * 7
  assert found.left(30, 50, 2.0) == 50 * 5 + 3 * 7  # of both kinds: the time of neither
  assert found.left(50, 60, 4.0) == 40 * 4 + 2 * 7
  assert found.left(60, 90, 4.0) == 10 * 4 + 7
  assert found.left(90, 100, 4.0) == 7


def test_without_an_adversary_or_a_warm_up_all_steps_are_alike():
  for found in (Forecast(10, evaluation=3.0), Forecast(10, warmup_steps=2, evaluation=3.0)):
    assert found.left(4, 5, 2.0) == 5 * 2 + 3
  assert Forecast(10).left(9, 10, 2.0) == 0
  assert [shown(seconds) for seconds in (0.4, 59.6, 3661, 86399, 129600)] == [
    '00:00:00', '00:01:00', '01:01:01', '23:59:59', '1.5 days',
  ]  # fmt: skip


def test_the_log_shows_when_the_run_ends(tmp_path, capfd, monkeypatch):
  clock = iter([0.0, 10.0, 20.0])
  monkeypatch.setattr(run_log.time, 'monotonic', lambda: next(clock))
  forecast = Forecast(100, warmup_steps=50, attacked=60.0, evaluation=600.0)
  with closing(RunLog(tmp_path, 0, 100, 8, False, forecast)) as log:
    for step in (10, 20):
      log.add(step, {'step': step, 'loss': 1.0})
  etas = re.findall(r'ETA (\S+)', capfd.readouterr().err)
  assert etas == [shown(40 + 50 * 60 + 600), shown(30 + 50 * 60 + 600)]
