"""`evaluate --attack`: its files, what is known, what goes on after a kill, and what is refused in one line."""

import json
import os
from pathlib import Path
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, evaluate, results, train
from adversarial_augment.attacks import suite_runner
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_run, reuse
from adversarial_augment.storage import artifact, outcomes
from adversarial_augment.training import recipe
from tests import trainer

NUM = 12
NAME = 'robustness_pgd_linf_2-255'
FLAGS = ('--attack=pgd', '--norm=linf', '--epsilon=2/255', f'--num_examples={NUM}')


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
  """A run of a few steps; not to be changed."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  config = configs.override(configs.load('configs/nominal.py:smoke'), {'evals': 'clean', 'eval_images': str(NUM)})
  train.train(config, workdir, {split: datasets.load('embedded', split, '') for split in ('train', 'test')})
  return workdir


@pytest.fixture
def run(trained, tmp_path) -> Path:
  return Path(shutil.copytree(trained, tmp_path / 'w'))


def command(run: Path, *flags: str) -> int | None:
  return evaluate.main([f'--workdir={run}', *flags])


def result(run: Path, name: str = NAME) -> dict:
  return json.loads((run / 'results' / f'{name}.json').read_text())


def test_the_result_says_all_that_it_is_of(run, trained, capsys):
  assert command(run, *FLAGS, '--save_images', '--seed=3', '--allow_suspect', f'--surrogate={trained}') == 0
  found, closing = result(run), result(run, 'train')
  assert {
    'robust_accuracy', 'clean_accuracy', 'robust_accuracy_uint8', 'survivors', 'seconds', 'num_images', 'flags',
    'epsilon', 'norm', 'provenance', 'interval', 'conditions_sha256',
  } <= found.keys()  # fmt: skip
  assert (found['attack'], found['norm'], found['epsilon'], found['seed']) == ('pgd', 'linf', 2 / 255, 3)
  assert found['checkpoint_sha256'] == found['surrogate_sha256'] == closing['state_sha256']
  assert 0 <= found['probes']['transferred'] <= found['num_robust']
  assert found['origin'] == 'embedded'
  assert found['provenance']['command'].startswith('python -m adversarial_augment.evaluate')
  assert found['survivors'] == {'pgd': found['num_robust']}
  assert found['seconds'].keys() == found['compile_seconds'].keys() == {'pgd'}
  assert found['compile_seconds']['pgd'] > 0
  assert found['robust_accuracy'] <= found['clean_accuracy'] == result(run, 'clean')['accuracy']
  assert sorted(path.name for path in (run / 'results').glob('robustness*')) == [f'{NAME}.json', f'{NAME}.npz']
  out = capsys.readouterr().out
  assert re.search(rf'after pgd            {found["num_robust"]} left  [0-9.]+ s, compiling [0-9.]+ s\n', out)
  assert f'{found["robust_accuracy"]:.4f}  ({found["num_robust"]} of {NUM}; 95 % interval' in out
  with np.load(run / 'results' / f'{NAME}.npz') as file:
    images, labels = datasets.load('embedded', 'test', '').read(np.arange(NUM))
    assert np.abs(file['images'].astype(float) - images / 255).max() <= 2 / 255 * (1 + 1e-6) + 1e-7
    np.testing.assert_array_equal(file['labels'], labels)
    assert (~file['broken']).sum() == found['num_robust']
  assert results.load_robustness(run) == [found]


def test_what_is_known_is_shown_and_other_conditions_are_refused(run, monkeypatch, capsys):
  command(run, *FLAGS, '--allow_suspect')
  before = (run / 'results' / f'{NAME}.json').read_bytes()
  monkeypatch.setattr(suite_runner, 'run', lambda *_: pytest.fail('it attacked'))
  capsys.readouterr()
  command(run, *FLAGS, '--allow_suspect', '--config.batch_size=4')
  assert 'robust accuracy' in capsys.readouterr().out
  assert (run / 'results' / f'{NAME}.json').read_bytes() == before
  for other in ('--seed=1', '--num_examples=5'):
    with pytest.raises(UserError, match=rf"{NAME}.json' holds a result of this checkpoint for other "):
      command(run, *FLAGS, other)
    with pytest.raises(pytest.fail.Exception, match='it attacked'):
      command(run, *FLAGS, other, '--overwrite')
    (run / 'results' / f'{NAME}.sweep').unlink()  # it has begun


def test_a_surrogate_that_is_no_run_of_the_same_classes_is_refused(run, tmp_path):
  with pytest.raises(UserError, match="No run in '.*nowhere'"):
    command(run, *FLAGS, f'--surrogate={tmp_path}/nowhere')
  other = Path(shutil.copytree(run, tmp_path / 'other'))
  config = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps(config | {'dataset': 'cifar10'}))
  with pytest.raises(UserError, match="The surrogate '.*other' was trained on cifar10, not on embedded"):
    command(run, *FLAGS, f'--surrogate={other}')


def softmaxed(build):
  def make(*arguments, **options):
    network = build(*arguments, **options)

    def apply(*inputs, **more):
      logits, state = network.apply(*inputs, **more)
      return jax.nn.softmax(logits), state

    return type(network)(network.init, apply)

  return make


def test_a_suspect_number_is_marked_and_the_exit_code_says_so(run, monkeypatch, capsys):
  monkeypatch.setattr(recipe, 'build_classifier', softmaxed(recipe.build_classifier))
  assert command(run, *FLAGS) == attack_run.SUSPECT == 3
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if 'robust accuracy' in line and 'UNRELIABLE: ' in line and 'probabilities' in line]
  assert 'probabilities' in result(run)['flags']
  assert command(run, *FLAGS) == 3  # shown again, marked again
  assert command(run, *FLAGS, '--allow_suspect') == 0
  assert 'UNRELIABLE' in capsys.readouterr().out


class Stop(Exception):
  pass


def stop_after(monkeypatch, batches: int) -> None:
  original, run = suite_runner.run, []

  def stopping(*arguments):
    for step in original(*arguments):
      yield step
      run.append(step)
      if len(run) == batches:
        raise Stop

  monkeypatch.setattr(reuse, '_SECONDS', 0)
  monkeypatch.setattr(reuse, '_SHARE', 1e9)
  monkeypatch.setattr(suite_runner, 'run', stopping)


def stop_within(run: Path, monkeypatch, *flags: str, batches: int = 2) -> Path:
  """Stops an attack after so many batches; returns the file of its unfinished sweep."""
  with monkeypatch.context() as patch:
    stop_after(patch, batches)
    with pytest.raises(Stop):
      command(run, *FLAGS, '--config.batch_size=8', *flags)
  return run / 'results' / f'{NAME}.sweep'


def test_an_unfinished_sweep_goes_on_and_a_stale_one_is_refused(run, monkeypatch, tmp_path):
  flags = [*FLAGS, '--config.batch_size=8', '--save_images', '--allow_suspect']
  command(run, *flags)
  files = [run / 'results' / f'{NAME}.{suffix}' for suffix in ('json', 'npz')]
  straight, images = result(run), np.load(files[1])['images']
  for path in files:
    path.unlink()
  unfinished = stop_within(run, monkeypatch)
  kept = unfinished.read_bytes()
  for other, what in (('--seed=1', 'seed'), ('--num_examples=5', 'number of images')):
    with pytest.raises(UserError, match=rf"{NAME}.sweep' exists already, with {what} = ") as caught:
      command(run, *flags, other)
    assert '\n' not in str(caught.value)
  unfinished.write_bytes(kept[:1000])
  with pytest.raises(UserError, match='is damaged'):
    command(run, *flags)
  unfinished.write_bytes(kept)
  command(run, *flags)
  found = result(run)
  for name in ('num_correct', 'num_robust', 'num_robust_uint8', 'survivors', 'flags', 'probes'):
    assert found[name] == straight[name]
  np.testing.assert_array_equal(np.load(files[1])['images'], images)
  assert not unfinished.exists()


def only_begin(monkeypatch) -> list[list[int]]:
  """Lets attacks end where they begin or go on; returns what grows by the cursor of each."""
  cursors = []

  def begin(problem, programs, stages, sweep):
    cursors.append(sweep.cursor.tolist())
    raise Stop

  monkeypatch.setattr(suite_runner, 'run', begin)
  return cursors


def test_overwrite_begins_a_stopped_attack_anew_and_without_it_that_one_goes_on(run, monkeypatch):
  command(run, *FLAGS, '--allow_suspect')
  path, unfinished = run / 'results' / f'{NAME}.json', stop_within(run, monkeypatch, '--overwrite')
  known, kept, cursors = path.read_bytes(), unfinished.read_bytes(), only_begin(monkeypatch)
  for content, flags in ((kept, ()), (kept, ('--overwrite',)), (b'damaged', ('--overwrite',)), (None, ())):
    if content is not None:  # or what the stop before has left, at the very beginning
      unfinished.write_bytes(content)
    with pytest.raises(Stop):
      command(run, *FLAGS, *flags)
  assert cursors == [[2, 0], [1, 0], [1, 0], [1, 0]]
  assert path.read_bytes() == known  # until there is a new one
  unfinished.unlink()
  assert command(run, *FLAGS, '--allow_suspect') == 0  # and shown again


def test_fields_without_a_meaning_under_attack_and_too_large_balls_are_refused(run):
  for flag in ('--config.eval_images=5', '--config.attack.num_steps=100'):
    name = flag.partition('=')[0].removeprefix('--')
    with pytest.raises(UserError, match=f'{name} changes nothing with --attack; leave it out') as caught:
      command(run, *FLAGS, flag)
    assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match=r'--epsilon=128 with --norm=l2 must be at most 55.43, .* did you mean 128/255'):
    command(run, '--attack=pgd', '--norm=l2', '--epsilon=128')


def test_images_are_made_again_where_they_were_cut_off_and_go_with_their_result(run):
  command(run, *FLAGS, '--allow_suspect', '--save_images')
  path = run / 'results' / f'{NAME}.npz'
  whole = np.load(path)['images']
  path.write_bytes(b'')
  command(run, *FLAGS, '--allow_suspect', '--save_images')
  np.testing.assert_array_equal(np.load(path)['images'], whole)
  command(run, *FLAGS, '--allow_suspect', '--seed=1', '--overwrite')
  assert not path.exists()  # they would be those of another result


def test_a_second_evaluation_of_the_same_attack_is_refused(run, monkeypatch):
  command(run, *FLAGS, '--allow_suspect')
  cursors = only_begin(monkeypatch)
  with artifact.lock(run / 'results', name=NAME):  # as another process does
    for flags in (('--seed=1', '--overwrite'), ('--overwrite',)):
      with pytest.raises(UserError, match=rf"{NAME}' is in use by process {os.getpid()} on ") as caught:
        command(run, *FLAGS, *flags)
      assert '\n' not in str(caught.value)
      assert caught.value.exit_code == 2
    assert command(run, *FLAGS, '--allow_suspect') == 0  # what is known is shown
    assert not cursors
    with pytest.raises(Stop):  # and another radius is attacked
      command(run, *FLAGS, '--epsilon=1/255')
  with pytest.raises(Stop):
    command(run, *FLAGS, '--overwrite')
  assert len(cursors) == 2


def test_a_result_that_was_edited_is_refused(run):
  command(run, *FLAGS, '--allow_suspect')
  path = run / 'results' / f'{NAME}.json'
  whole = result(run)
  changes = (
    {'robust_accuracy': 0.9}, {'num_robust': NUM + 1}, {'survivors': {'pgd': 'all'}}, {'flags': None},
    {'norm': 'l1'}, {'stages': ['pgd', 'square']},
    {'survivors': {'pgd': whole['num_robust'] + 1}}, {'robust_accuracy_uint8': -1},
    {'norm': 'l2'}, {'attack': 'autoattack'}, {'epsilon': 0.5}, {'epsilon_text': '4/255'}, {'interval': [0.9, 0.1]},
    {'interval': [0.0, 1.0]}, {'stages': [], 'survivors': {}, 'seconds': {}}, {'stages': ['pgd', 'pgd']},
    {'epsilon': whole['epsilon'] + 5e-7}, {'robust': 'AA=='}, {'robust': outcomes.pack([True] * NUM)}, {'correct': 1},
  )  # fmt: skip
  for change in changes:
    path.write_text(json.dumps(whole | change))
    with pytest.raises(UserError, match=f"{NAME}.json'") as caught:
      results.load(run, NAME)
    assert '\n' not in str(caught.value)
  # Of random logits, counts may contradict each other, and are to be shown with their flag.
  none = outcomes.pack([False] * NUM)
  random_ones = {'flags': ['stochastic_logits'], 'num_correct': 0, 'clean_accuracy': 0.0, 'correct': none}
  path.write_text(json.dumps(whole | random_ones))
  assert results.load(run, NAME)['num_correct'] == 0


def start(run: Path, cache: Path, *flags: str, **options) -> subprocess.Popen:
  """Starts `evaluate` as a user does; compiled programs go to `cache`."""
  arguments = [sys.executable, '-m', 'adversarial_augment.evaluate', f'--workdir={run}', *flags]
  env = os.environ | {'PYTHONPATH': str(trainer.ROOT), 'JAX_COMPILATION_CACHE_DIR': str(cache)}
  return subprocess.Popen(arguments, env=env, start_new_session=True, stdout=subprocess.DEVNULL, **options)


def wait_for_change(process: subprocess.Popen, path: Path, before: float = 0.0) -> None:
  while process.poll() is None and (path.stat().st_mtime if path.exists() else 0.0) == before:
    time.sleep(0.01)


@pytest.mark.slow
def test_of_two_processes_one_attacks_and_after_a_kill_the_other(run, tmp_path):
  begin = lambda **options: start(run, tmp_path / 'xla', '--attack=multitargeted', *FLAGS[1:], **options)
  unfinished = run / 'results' / f'{NAME.replace("pgd", "multitargeted")}.sweep'
  first = begin()
  wait_for_change(first, unfinished)
  second = begin(stderr=subprocess.PIPE, text=True)
  said = second.communicate(timeout=300)[1]
  assert second.returncode == 2, said
  assert said.splitlines()[-1].startswith("evaluate: '")
  assert f'in use by process {first.pid} on ' in said
  os.killpg(first.pid, signal.SIGKILL)
  first.wait()
  before, third = unfinished.stat().st_mtime, begin()
  wait_for_change(third, unfinished, before)
  assert third.poll() is None
  os.killpg(third.pid, signal.SIGKILL)
  third.wait()


@pytest.mark.slow
def test_ten_kills_change_neither_counts_nor_images(run, tmp_path):
  """`kill -9` at random times, most of them within the sweep; the same command goes on."""
  # A radius so small that hardly an image is broken: there is something to do in all rounds.
  flags = ['--attack=pgd', '--norm=linf', '--epsilon=0.05/255', '--num_examples=1500', '--save_images']
  flags += ['--config.batch_size=8', '--allow_suspect']
  name, seed = 'robustness_pgd_linf_0.05-255', random.SystemRandom().randrange(10**6)
  print(f'seed {seed}')
  rng = random.Random(seed)
  begin = lambda workdir: start(workdir, tmp_path / 'xla', *flags)
  killed = Path(shutil.copytree(run, tmp_path / 'killed'))
  assert begin(run).wait(1000) == 0
  unfinished, kills, within = killed / 'results' / f'{name}.sweep', 0, 0
  while kills < 10:
    before, process = unfinished.stat().st_mtime if unfinished.exists() else 0.0, begin(killed)
    if rng.random() < 0.8:  # once it has gone on, a little later; else on its way there
      wait_for_change(process, unfinished, before)
    time.sleep(rng.uniform(0, 3))
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      kills += 1
    within += unfinished.exists()
    process.wait()
    if (killed / 'results' / f'{name}.json').exists():
      break
  print(f'{kills} kills, after {within} of which there was an unfinished sweep')
  assert within >= 3
  assert begin(killed).wait(1000) == 0
  one, other = result(run, name), result(killed, name)
  for field in ('num_correct', 'num_robust', 'num_robust_uint8', 'survivors', 'flags'):
    assert one[field] == other[field]
  with np.load(run / 'results' / f'{name}.npz') as a, np.load(killed / 'results' / f'{name}.npz') as b:
    for field in a.files:
      np.testing.assert_array_equal(a[field], b[field])
