"""Ctrl-C and SIGTERM of the trainer, wherever it is: exit 75 soon, and the same command goes on to the same end."""

from pathlib import Path
import signal
import time

import pytest

from tests import trainer

LONG = '--config.num_steps=100000'
SOON = 15  # seconds, on a busy machine; the promise is 10


@pytest.fixture(scope='module')
def rig(tmp_path_factory) -> trainer.Rig:
  return trainer.Rig(tmp_path_factory.getbasetemp())


def stop(run: trainer.Run, number: int) -> float:
  """Sends the signal; returns the seconds to the end."""
  began = time.monotonic()
  run.process.send_signal(number)
  assert run.wait() == 75, run.err
  return time.monotonic() - began


def test_stopped_at_every_stage_a_run_ends_the_same(rig, tmp_path):
  """First compilation, training, closing evaluation; each start goes on where the last one was stopped."""
  straight, workdir = rig.straight(), tmp_path / 'w'

  run = rig.start(workdir)
  run.wait_for_line('compiling the train step...')
  assert stop(run, signal.SIGTERM) < SOON
  assert run.err.splitlines()[-1] == 'stopped by SIGTERM: no step has been made; run the same command again to resume.'
  assert not (workdir / 'checkpoints').exists()
  assert not (workdir / 'metrics.jsonl').exists()

  run = rig.start(workdir)
  run.wait_for_line('step 1/')
  assert stop(run, signal.SIGINT) < SOON
  assert trainer.newest(workdir) == trainer.last_step(workdir) >= 1

  run = rig.start(workdir)
  run.wait_for_line('evaluating on the test set...')
  assert stop(run, signal.SIGTERM) < SOON
  assert trainer.newest(workdir) == trainer.NUM_STEPS

  rig.finish(workdir)
  trainer.assert_same_end(workdir, straight)


def test_a_signal_while_training_saves_the_current_step_and_a_second_run_goes_on(rig, tmp_path):
  run = rig.start(tmp_path / 'w', LONG, '--config.checkpoint_every=0', '--config.eval_every=0')
  run.wait_for_step(20)
  reached = trainer.last_step(tmp_path / 'w')
  assert stop(run, signal.SIGTERM) < SOON
  saved = trainer.newest(tmp_path / 'w')
  assert saved >= reached
  assert [line['step'] for line in trainer.lines(tmp_path / 'w')] == list(range(1, saved + 1))
  said = run.err.splitlines()
  assert any(line.startswith('SIGTERM: saving after this step; send another signal after a second') for line in said)
  end = f'stopped by SIGTERM after step {saved} of 100000, which is saved; run the same command again to resume.'
  assert said[-1] == f'train: {end}'

  run = rig.start(tmp_path / 'w', LONG, '--config.checkpoint_every=0', '--config.eval_every=0')
  run.wait_for_line(f'step {saved + 1}/')
  assert f'resuming from step {saved}' in run.err
  run.process.send_signal(signal.SIGSTOP)  # so that both signals are there before a step ends
  run.process.send_signal(signal.SIGTERM)
  run.process.send_signal(signal.SIGINT)
  run.process.send_signal(signal.SIGCONT)
  assert run.wait() == 75, run.err
  assert trainer.newest(tmp_path / 'w') > saved


def interrupt_at(rig: trainer.Rig, workdir: Path, text: str, number: int, delay: float) -> None:
  run = rig.start(workdir, base=trainer.ADA)
  run.wait_for_line(text)
  time.sleep(delay)
  run.process.send_signal(number)
  code = run.wait()
  assert code in (75, 0), run.err
  assert 'Traceback' not in run.err


@pytest.mark.slow
def test_twenty_stops_of_a_run_with_an_adversary_change_nothing(rig, tmp_path):
  straight = rig.straight(trainer.ADA)
  places = ('compiling the train step...', 'step 1/', 'step 5/', 'evaluating on the test set...')
  for trial in range(5):
    workdir = tmp_path / f'w{trial}'
    for index, place in enumerate(places):
      number = (signal.SIGTERM, signal.SIGINT)[(trial + index) % 2]
      interrupt_at(rig, workdir, place, number, delay=0.07 * trial)
    rig.finish(workdir, base=trainer.ADA)
    trainer.assert_same_end(workdir, straight)
