"""The host loop with a step of one multiplication: logs, saves, stops, full disks, NaN, progress."""

from collections.abc import Callable, Iterator
import io
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adversarial_augment import config as configs
from adversarial_augment.errors import NumericalError, Stopped, StorageError
from adversarial_augment.run import loop, opening, retries
from adversarial_augment.storage import checkpoints
from adversarial_augment.types import TrainState
from tests.trainer import curves, lines, steps

BATCH = 4


def first_state() -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), {'w': jnp.ones((8, 8))}, {}, ())


def nap(x: np.ndarray) -> np.ndarray:
  time.sleep(0.05)
  return x


@jax.jit
def multiply_slowly(state: TrainState, made: jax.Array, batch: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes its time on the device, while the host goes on."""
  return multiply(state, made, jax.pure_callback(nap, batch, batch))


@jax.jit
def multiply(state: TrainState, made: jax.Array, batch: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
  params = {'w': state.params['w'] * batch}
  loss = params['w'].sum()
  is_finite = jnp.isfinite(loss) & (state.step == made)
  metrics = {'loss': loss, 'attack_loss_end': batch, 'learning_rate': jnp.ones(()), 'finite': is_finite}
  return optax.tree.where(is_finite, state._replace(step=state.step + 1, params=params), state), metrics


def start(
  workdir: Path,
  num_steps: int = 12,
  at: dict[int, Callable[[], object]] | None = None,
  batch: Callable[[int], float] = lambda step: 1.01,
  evaluate: Callable = lambda state, step, poll: poll(),
  tensorboard: bool = False,
  step: Callable = multiply,
  **overrides: object,
) -> TrainState:
  """Runs or resumes; `at` maps steps made so far to what happens just before the next one."""

  def read(step: int) -> jax.Array:
    (at or {}).get(step, lambda: None)()
    return jnp.asarray(batch(step), jnp.float32)

  changed = {'num_steps': num_steps, 'log_every': 1, 'checkpoint_every': 4} | overrides
  config = configs.override(configs.base_config(), {name: str(value) for name, value in changed.items()})
  job = loop.Job(
    num_steps=num_steps,
    images_per_step=BATCH,
    keep_checkpoints=3,
    tensorboard=tensorboard,
    step=step,
    read=read,
    describe=lambda step, values: {'step': step, **values},
    evaluate=evaluate,
    dump=lambda step: {'batch': batch(step)},
  )
  with opening.open_run(workdir, config) as stop:
    return loop.run(workdir, config, opening.resume(workdir, first_state()), job, stop)


def kill(number: int) -> Callable[[], None]:
  def act() -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.2)  # the thread that listens notes it

  return act


# What is written when.


@pytest.mark.parametrize(
  'num_steps, log_every, expected',
  [(1, 50, [1]), (12, 1, list(range(1, 13))), (12, 5, [1, 5, 10, 12]), (10, 5, [1, 5, 10])],
)
def test_lines_are_the_first_the_due_and_the_last(tmp_path, num_steps, log_every, expected):
  state = start(tmp_path / 'w', num_steps, log_every=log_every)
  assert int(state.step) == num_steps
  assert steps(tmp_path / 'w') == expected


def test_line_s_is_of_the_state_after_s_updates(tmp_path):
  start(tmp_path / 'w', 6)
  assert [line['loss'] for line in lines(tmp_path / 'w')] == pytest.approx([64 * 1.01**s for s in range(1, 7)])


def test_a_line_can_be_read_before_two_more_steps_are_made(tmp_path):
  seen = {}
  start(tmp_path / 'w', 6, {step: lambda step=step: seen.setdefault(step, steps(tmp_path / 'w')) for step in (3, 5)})
  assert all(lines[: step - 1] == list(range(1, step)) for step, lines in seen.items()), seen


@pytest.mark.parametrize('every, expected', [(4, [4, 8, 10]), (0, [10]), (100, [10])])
def test_checkpoints_and_evaluations_are_the_due_and_the_last(tmp_path, every, expected):
  seen = []
  evaluate = lambda state, step, poll: seen.append((int(state.step), step))
  start(tmp_path / 'w', 10, checkpoint_every=every, eval_every=every, evaluate=evaluate)
  assert checkpoints.steps(tmp_path / 'w' / 'checkpoints') == expected
  assert seen == [(step, step) for step in expected]


def test_rates_leave_out_saves_and_evaluations(tmp_path, monkeypatch):
  save = checkpoints.save
  monkeypatch.setattr(checkpoints, 'save', lambda *args, **kw: (time.sleep(0.5), save(*args, **kw)))
  evaluate = lambda *_: time.sleep(0.5)
  start(tmp_path / 'w', 7, step=multiply_slowly, checkpoint_every=2, eval_every=3, evaluate=evaluate)
  rates = [line['images_per_second'] for line in lines(tmp_path / 'w')]
  assert all(BATCH / 0.4 < rate < BATCH / 0.04 for rate in rates[1:]), rates


# Going on.


def test_resumed_run_equals_an_uninterrupted_one_and_its_log(tmp_path):
  whole = start(tmp_path / 'straight')
  with pytest.raises(KeyError):
    start(tmp_path / 'w', at={7: lambda: {}['kill']})
  assert steps(tmp_path / 'w')[:6] == [1, 2, 3, 4, 5, 6]  # 7 is written when nothing else is to be done
  assert checkpoints.state_sha256(start(tmp_path / 'w')) == checkpoints.state_sha256(whole)
  assert curves(tmp_path / 'w') == curves(tmp_path / 'straight')


def test_every_line_up_to_a_checkpoint_is_written_before_it(tmp_path, monkeypatch):
  """Else a kill just after the checkpoint would leave a gap in the log."""
  save, before = checkpoints.save, {}

  def record(folder: Path, step: int, *args, **options) -> Path:
    before[step] = steps(tmp_path / 'w')
    return save(folder, step, *args, **options)

  monkeypatch.setattr(checkpoints, 'save', record)
  start(tmp_path / 'w')
  assert before == {step: list(range(1, step + 1)) for step in (4, 8, 12)}


# Stopping. (Signals that find nothing unsaved end the process: reliability_stop_test.py.)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_that_is_under_way(tmp_path, number, capfd):
  whole = start(tmp_path / 'straight')
  with pytest.raises(Stopped, match=f'stopped by {number.name} after step 7 of 12, which is saved; run the same'):
    start(tmp_path / 'w', at={6: kill(number)})
  assert Stopped.exit_code == 75
  assert checkpoints.steps(tmp_path / 'w' / 'checkpoints')[-1] == 7
  assert steps(tmp_path / 'w') == [1, 2, 3, 4, 5, 6, 7]
  assert f'{number.name}: saving after this step; send another signal after a second' in capfd.readouterr().err
  assert checkpoints.state_sha256(start(tmp_path / 'w')) == checkpoints.state_sha256(whole)
  assert steps(tmp_path / 'w') == list(range(1, 13))


def test_a_signal_in_an_evaluation_leaves_it_and_saves(tmp_path):
  finished = []

  def evaluate(state, step, poll) -> None:
    for batch in range(3):
      poll()
      if step == 5 and batch == 1:
        kill(signal.SIGTERM)()
    finished.append(step)

  with pytest.raises(Stopped, match='after step 5 of 12'):
    start(tmp_path / 'w', eval_every=5, evaluate=evaluate)
  assert finished == []
  start(tmp_path / 'w', eval_every=5, evaluate=lambda state, step, poll: finished.append(step))
  assert finished == [5, 10, 12]


def test_a_signal_in_a_save_is_obeyed_after_it(tmp_path, monkeypatch):
  save, signals = checkpoints.save, iter([kill(signal.SIGTERM)])
  send = lambda: next(signals, lambda: None)()
  monkeypatch.setattr(checkpoints, 'save', lambda *args, **kw: (send(), save(*args, **kw)))
  with pytest.raises(Stopped, match='after step 4 of 12'):
    start(tmp_path / 'w')


def test_handlers_are_as_before_after_a_run(tmp_path):
  before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
  start(tmp_path / 'w', 2)
  assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# Numbers that are none.


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('eval_every', [0, 7])
def test_a_number_that_is_not_finite_ends_the_run_and_is_nowhere_saved(tmp_path, bad, eval_every):
  evaluated = []
  evaluate = lambda state, step, poll: evaluated.append(step)
  batch = lambda step: bad if step == 6 else 1.01
  for _ in range(2):  # the same command meets it again
    with pytest.raises(NumericalError) as caught:
      start(tmp_path / 'w', batch=batch, eval_every=eval_every, evaluate=evaluate)
    message = str(caught.value)
    assert message.startswith('Not finite after step 7: loss ')
    assert 'learning rate 1.0' in message
    assert 'config ' in message
    assert '\n' not in message
    with np.load(tmp_path / 'w' / 'failures' / 'step_7.npz') as dump:  # all that the step was made from
      assert (dump['step'], np.isfinite(dump['batch'])) == (6, False)
      np.testing.assert_allclose(dump['params/w'], np.full((8, 8), 1.01**6), rtol=1e-6)
    assert checkpoints.steps(tmp_path / 'w' / 'checkpoints') == [4]
    assert steps(tmp_path / 'w') == [1, 2, 3, 4, 5, 6]
  assert evaluated == []


# The disk.


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
  """A disk of 2 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder], capture_output=True)
  if mounted.returncode:
    pytest.skip('mounting a small disk needs root')
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', folder], check=True)


def fill(folder: Path) -> None:
  with open(folder / 'filler', 'wb', buffering=0) as file:
    while True:
      try:
        file.write(b'x' * 512)
      except OSError:
        return


def test_a_disk_that_is_full_for_a_while_costs_nothing(small_disk, capfd):
  free = lambda: (small_disk / 'filler').unlink()
  start(small_disk / 'w', 200, {5: lambda: fill(small_disk), 60: free}, checkpoint_every=8)
  warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith('warning: ')]
  assert len(warnings) == 2, warnings  # one for the log, one for the checkpoints
  assert all('No space left' in line or 'MB free' in line for line in warnings)
  assert steps(small_disk / 'w') == list(range(1, 201))
  assert checkpoints.steps(small_disk / 'w' / 'checkpoints')[-1] == 200
  assert not list((small_disk / 'w' / 'checkpoints').glob('*tmp*'))


def test_three_failures_in_a_row_end_the_run_with_the_last_good_checkpoint(small_disk, capfd):
  with pytest.raises(StorageError) as caught:
    start(small_disk / 'w', 2000, {10: lambda: fill(small_disk)})
  assert caught.value.exit_code == 5
  assert '\n' not in str(caught.value)
  assert checkpoints.steps(small_disk / 'w' / 'checkpoints') == [4, 8]
  written = steps(small_disk / 'w')
  assert written == list(range(1, len(written) + 1))
  assert capfd.readouterr().err.count('warning: ') <= 2
  (small_disk / 'filler').unlink()
  start(small_disk / 'w', 2000, log_every=50, checkpoint_every=500)
  assert checkpoints.steps(small_disk / 'w' / 'checkpoints')[-1] == 2000


def test_a_stop_on_a_full_disk_waits_for_space(small_disk):
  def full_then_stop() -> None:
    fill(small_disk)
    kill(signal.SIGTERM)()

  attempts = []
  original = retries.time.sleep

  def sleep(seconds: float) -> None:
    attempts.append(seconds)
    (small_disk / 'filler').unlink(missing_ok=True)
    original(0.01)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(retries, 'time', type('Clock', (), {**vars(time), 'sleep': staticmethod(sleep)}))
    with pytest.raises(Stopped, match='after step 6'):
      start(small_disk / 'w', at={5: full_then_stop})
  assert attempts
  assert checkpoints.steps(small_disk / 'w' / 'checkpoints') == [4, 6]
  assert steps(small_disk / 'w') == [1, 2, 3, 4, 5, 6]


def test_a_workdir_that_vanishes_ends_the_run(tmp_path):
  began = time.monotonic()
  with pytest.raises(StorageError, match='No such file'):
    start(tmp_path / 'w', 2000, {10: lambda: shutil.rmtree(tmp_path / 'w')})
  assert time.monotonic() - began < 10
  assert not (tmp_path / 'w').exists()


# What is shown.


def test_plain_lines_name_step_loss_rate_and_time_left(tmp_path, capfd):
  start(tmp_path / 'w', 3)
  shown = [line for line in capfd.readouterr().err.splitlines() if line.startswith('step ')]
  assert len(shown) == 3
  assert shown[0].startswith('step 1/3  loss 64.6  ')
  assert all('images/s  ETA 00:00:' in line for line in shown)


def test_a_terminal_gets_a_bar_with_step_loss_rate_and_time_left(tmp_path, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self) -> bool:
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  start(tmp_path / 'w', 3, {step: lambda: time.sleep(0.2) for step in (1, 2)})
  shown = re.split(r'[\r\n]', terminal.getvalue())
  assert not any(line.startswith('step ') for line in shown)
  assert re.search(r' 3/3 \[\d\d:\d\d<\d\d:\d\d, .*step.*, loss 65.9  [\d.e+]+ images/s\]', shown[-2]), shown


def test_tensorboard_files_hold_the_curves_once_after_a_resume(tmp_path):
  pytest.importorskip('tensorboardX')
  with pytest.raises(KeyError):
    start(tmp_path / 'w', at={7: lambda: {}['kill']}, tensorboard=True)
  time.sleep(1.1)  # the names of the files hold the second
  start(tmp_path / 'w', tensorboard=True)
  files = sorted((tmp_path / 'w' / 'tensorboard').iterdir())
  assert len(files) == 2
  first, second = (events(path) for path in files)
  assert [step for step, names in first if 'loss' in names][:6] == [1, 2, 3, 4, 5, 6]
  assert [step for step, names in second if 'loss' in names] == [5, 6, 7, 8, 9, 10, 11, 12]
  assert second[1] == (5, {'SESSION START'})


def events(path: Path) -> list[tuple[int, set[str]]]:
  """(step, names of its values) of the events in a file."""
  from tensorboardX.proto import event_pb2

  content, found = path.read_bytes(), []
  while content:
    size = int.from_bytes(content[:8], 'little')
    event = event_pb2.Event.FromString(content[12 : 12 + size])
    names = {value.tag for value in event.summary.value}
    started = event.session_log.status == event_pb2.SessionLog.START
    found.append((event.step, {'SESSION START'} if started else names))
    content = content[16 + size :]
  return found


def test_tensorboard_on_a_full_disk_is_given_up_and_the_run_goes_on(small_disk, capfd):
  pytest.importorskip('tensorboardX')
  at = {5: lambda: fill(small_disk), 60: lambda: (small_disk / 'filler').unlink()}
  start(small_disk / 'w', 80, at, tensorboard=True, checkpoint_every=70)
  assert 'goes on without TensorBoard files' in capfd.readouterr().err
  assert steps(small_disk / 'w') == list(range(1, 81))
