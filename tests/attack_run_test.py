"""`evaluate --attack`: its files, what is known, what resumes after a kill, bad classifiers that are named.

Every bad classifier takes the place of the one that the run's config names, as one that a user has registered would.
"""

import io
import itertools
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
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, evaluate, inference, results, train
from adversarial_augment.attacks import suite_runner
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_run, unfinished
from adversarial_augment.storage import artifact, outcomes
from adversarial_augment.training import recipe
from tests import trainer
from tests.lp_ball_test import assert_within

NUM = 24
NAME = 'robustness_pgd_linf_2-255'
FLAGS = ('--attack=pgd', '--norm=linf', '--epsilon=2/255', f'--num_examples={NUM}')
SAME = ('num_correct', 'num_robust', 'num_robust_uint8', 'survivors', 'flags', 'probes')  # however it was computed
DRAWS = (jax.random.key(i) for i in itertools.count())  # a state in Python, as of a framework's generators


def train_run(workdir: Path, config_file: str, **changes: str) -> Path:
  config = configs.override(configs.load(config_file), {'evals': 'clean', 'eval_images': str(NUM)} | changes)
  train.train(config, workdir, {split: datasets.load('embedded', split, '') for split in ('train', 'test')})
  return workdir


@pytest.fixture(scope='module')
def begun(tmp_path_factory) -> Path:
  """A run of a few steps; not to be changed."""
  return train_run(tmp_path_factory.mktemp('run') / 'w', 'configs/nominal.py:smoke')


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
  """A run that is right about most digits; not to be changed."""
  changes = {'num_epochs': '1.25', 'classifier.width': '4'}
  return train_run(tmp_path_factory.mktemp('run') / 'w', 'configs/nominal.py:quickstart', **changes)


@pytest.fixture
def run(begun, tmp_path) -> Path:
  return Path(shutil.copytree(begun, tmp_path / 'w'))


@pytest.fixture(scope='module')
def measured(begun, tmp_path_factory) -> Path:
  """The run of a few steps with the result of an attack; not to be changed."""
  run = Path(shutil.copytree(begun, tmp_path_factory.mktemp('measured') / 'w'))
  assert command(run, *FLAGS, '--allow_suspect') == 0
  return run


@pytest.fixture
def attacked(measured, tmp_path) -> Path:
  return Path(shutil.copytree(measured, tmp_path / 'attacked'))


@pytest.fixture
def good(trained, tmp_path) -> Path:
  return Path(shutil.copytree(trained, tmp_path / 'good'))


def command(run: Path, *flags: str) -> int | None:
  return evaluate.main([f'--workdir={run}', *flags])


def result(run: Path, name: str = NAME) -> dict:
  return json.loads((run / 'results' / f'{name}.json').read_text())


def images_of(run: Path, name: str = NAME) -> dict[str, np.ndarray]:
  with np.load(run / 'results' / f'{name}.npz') as file:
    return dict(file)


def test_the_result_says_all_that_it_is_of(run, begun, capsys):
  flags = (*FLAGS, '--save_images', '--seed=3', '--allow_suspect', f'--surrogate={begun}')
  assert command(run, *flags) == 0
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
  kept, (images, labels) = images_of(run), datasets.load('embedded', 'test', '').read(np.arange(NUM))
  assert_within('linf', 2 / 255, np.float32(images) / 255, kept['images'])
  np.testing.assert_array_equal(kept['labels'], labels)
  assert (~kept['broken']).sum() == found['num_robust']
  assert results.load_robustness(run) == [found]
  (run / 'results' / f'{NAME}.npz').write_bytes(b'')
  assert command(run, *flags) == 0  # the images are made again where they were cut off
  np.testing.assert_array_equal(images_of(run)['images'], kept['images'])


@pytest.mark.slow
def test_images_go_with_their_result(attacked):
  images = attacked / 'results' / f'{NAME}.npz'
  images.write_bytes(b'those of the result that is there')
  assert command(attacked, *FLAGS, '--allow_suspect', '--seed=1', '--overwrite') == 0
  assert not images.exists()


def test_what_is_known_is_shown_and_other_conditions_are_refused(attacked, monkeypatch, capsys):
  before = (attacked / 'results' / f'{NAME}.json').read_bytes()
  monkeypatch.setattr(suite_runner, 'run', lambda *_: pytest.fail('it attacked'))
  capsys.readouterr()
  command(attacked, *FLAGS, '--allow_suspect', '--config.batch_size=4')
  assert 'robust accuracy' in capsys.readouterr().out
  assert (attacked / 'results' / f'{NAME}.json').read_bytes() == before
  for other in ('--seed=1', '--num_examples=5'):
    with pytest.raises(UserError, match=rf"{NAME}.json' has a result of this checkpoint for other "):
      command(attacked, *FLAGS, other)
    with pytest.raises(pytest.fail.Exception, match='it attacked'):
      command(attacked, *FLAGS, other, '--overwrite')
    (attacked / 'results' / f'{NAME}.sweep').unlink()  # it has begun


def test_a_surrogate_that_is_no_run_of_the_same_classes_is_refused(run, tmp_path):
  with pytest.raises(UserError, match="No run in '.*nowhere'"):
    command(run, *FLAGS, f'--surrogate={tmp_path}/nowhere')
  other = Path(shutil.copytree(run, tmp_path / 'other'))
  config = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps(config | {'dataset': 'cifar10'}))
  with pytest.raises(UserError, match="The surrogate '.*other' was trained on cifar10, not on embedded"):
    command(run, *FLAGS, f'--surrogate={other}')


def of_images(change):
  return lambda apply, variables, images, options: apply(*variables, None, change(images), **options)[0]


def of_logits(change):
  return lambda apply, variables, images, options: change(apply(*variables, None, images, **options)[0])


def mirrored(apply, variables, images, options):
  return sum(apply(*variables, None, x, **options)[0] for x in (images, images[:, :, ::-1])) / 2


def blurred(images):
  return (images + jnp.roll(images, 1, axis=1) + jnp.roll(images, 1, axis=2)) / 3


PLANTED = {
  'dropout': (of_images(lambda x: x * jax.random.bernoulli(next(DRAWS), 0.5, x.shape)), 'stochastic_logits'),
  'batch statistics': (
    lambda apply, variables, images, options: apply(*variables, None, images, is_training=True)[0],
    'batch_dependence',
  ),
  'softmax': (of_logits(jax.nn.softmax), 'probabilities'),
  'large logits': (of_logits(lambda z: 1e4 * z), 'vanishing_gradients'),
  'quantised': (of_images(lambda x: jnp.round(x * 7) / 7), 'zero_gradients'),
  'stop_gradient': (of_images(jax.lax.stop_gradient), 'zero_gradients'),
  'noisy decision': (
    of_logits(lambda z: jax.nn.one_hot(z.argmax(-1), 10) + 0.1 * jax.random.normal(next(DRAWS), z.shape)),
    'stochastic_logits',
  ),
  'constant': (of_logits(lambda z: 0 * z + jnp.arange(10.0)[None]), 'zero_gradients'),
  'random shift': (
    of_images(lambda x: jnp.roll(x, jax.random.randint(next(DRAWS), (), 0, 32), axis=2)),
    'stochastic_logits',
  ),
}
HONEST = {
  'itself': of_logits(lambda z: z),
  'hot': of_logits(lambda z: 3 * z),
  'squashed': of_logits(lambda z: 8 * jnp.tanh(z / 8)),
  'blurred': of_images(blurred),
  'mirrored': mirrored,
}


@pytest.fixture
def plant(monkeypatch):
  """Puts a change of it in the place of every classifier that is built."""
  build = recipe.build_classifier

  def plant_one(change):
    def make(*arguments, **options):
      network = build(*arguments, **options)

      def apply(params, model_state, key, images, **options):
        return change(network.apply, (params, model_state), images, options), model_state

      return type(network)(network.init, apply)

    monkeypatch.setattr(recipe, 'build_classifier', make)

  return plant_one


def test_a_suspect_number_is_marked_and_the_exit_code_says_so(run, plant, capsys):
  plant(PLANTED['softmax'][0])
  assert command(run, *FLAGS) == attack_run.SUSPECT == 3
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if 'robust accuracy' in line and 'UNRELIABLE: ' in line and 'probabilities' in line]
  assert 'probabilities' in result(run)['flags']
  assert command(run, *FLAGS) == 3  # shown again, marked again
  assert command(run, *FLAGS, '--allow_suspect') == 0
  assert 'UNRELIABLE' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('name', PLANTED)
def test_a_bad_classifier_is_named(name, good, plant):
  change, flag = PLANTED[name]
  plant(change)
  assert command(good, *FLAGS) == 3
  assert flag in result(good)['flags']


@pytest.mark.slow
@pytest.mark.parametrize('name', HONEST)
def test_an_honest_classifier_is_not(name, good, plant, capsys):
  plant(HONEST[name])
  assert command(good, *FLAGS) == 0
  assert 'UNRELIABLE' not in capsys.readouterr().out
  found = result(good)
  assert found['flags'] == []
  assert found['num_robust'] <= found['num_correct']
  assert found['num_correct'] > 0.2 * NUM


@pytest.mark.slow
def test_what_bfloat16_finds_is_judged_in_float32(good, tmp_path):
  """Counts and images are those of the float32 classifier, as other code has it; it is about as strong a result."""
  half = Path(shutil.copytree(good, tmp_path / 'half'))
  assert command(good, *FLAGS) == command(half, *FLAGS, '--config.precision=bfloat16', '--save_images') == 0
  found, kept = result(half), images_of(half)
  assert found['provenance']['config']['precision'] == 'bfloat16'
  clean, labels = datasets.load('embedded', 'test', '').read(np.arange(NUM))
  assert_within('linf', 2 / 255, np.float32(clean) / 255, kept['images'])
  classify = inference.load_classifier(half)  # float32, as the good was trained
  wrong = classify(kept['images']).argmax(-1) != labels
  np.testing.assert_array_equal(wrong, kept['broken'])
  assert found['num_robust'] == NUM - wrong.sum()
  assert found['num_robust_uint8'] == (classify(np.round(kept['images'] * 255) / 255).argmax(-1) == labels).sum()
  assert found['num_correct'] == (classify(clean).argmax(-1) == labels).sum() == result(good)['num_correct']
  assert abs(found['num_robust'] - result(good)['num_robust']) <= 0.02 * NUM


class Stop(Exception):
  pass


def stop_within(run: Path, monkeypatch, *flags: str, batches: int = 2) -> Path:
  """Stops an attack after so many batches; returns its .sweep file."""

  def stopping(*arguments, original=suite_runner.run):
    for number, step in enumerate(original(*arguments), 1):
      yield step
      if number == batches:
        raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(unfinished, '_SECONDS', 0)
    patch.setattr(unfinished, '_SHARE', 1e9)
    patch.setattr(suite_runner, 'run', stopping)
    with pytest.raises(Stop):
      command(run, *FLAGS, '--config.batch_size=8', *flags)
  return run / 'results' / f'{NAME}.sweep'


def test_a_stopped_attack_is_resumed_and_a_stale_one_is_refused(run, monkeypatch, tmp_path):
  flags = [*FLAGS, '--config.batch_size=8', '--save_images', '--allow_suspect']
  command(run, *flags)
  files = [run / 'results' / f'{NAME}.{suffix}' for suffix in ('json', 'npz')]
  straight, images = result(run), np.load(files[1])['images']
  for path in files:
    path.unlink()
  stopped = stop_within(run, monkeypatch)
  kept = stopped.read_bytes()
  for other, what in (('--seed=1', 'seed'), ('--num_examples=5', 'number of images')):
    with pytest.raises(UserError, match=rf"{NAME}.sweep' exists already, with {what} = ") as caught:
      command(run, *flags, other)
    assert '\n' not in str(caught.value)
  stopped.write_bytes(kept[:1000])
  with pytest.raises(UserError, match='is damaged'):
    command(run, *flags)
  stopped.write_bytes(kept)
  command(run, *flags)
  found = result(run)
  for name in SAME:
    assert found[name] == straight[name]
  np.testing.assert_array_equal(np.load(files[1])['images'], images)
  assert not stopped.exists()


def only_begin(monkeypatch) -> list[list[int]]:
  """Lets attacks end where they begin or go on; returns what grows by the cursor of each."""
  cursors = []

  def begin(problem, programs, stages, sweep):
    cursors.append(sweep.cursor.tolist())
    raise Stop

  monkeypatch.setattr(suite_runner, 'run', begin)
  return cursors


def test_overwrite_begins_a_stopped_attack_anew_and_without_it_that_one_goes_on(attacked, monkeypatch):
  path, stopped = attacked / 'results' / f'{NAME}.json', stop_within(attacked, monkeypatch, '--overwrite')
  known, kept, cursors = path.read_bytes(), stopped.read_bytes(), only_begin(monkeypatch)
  resumed = np.load(io.BytesIO(kept))['cursor'].tolist()
  for content, flags in ((kept, ()), (kept, ('--overwrite',)), (b'damaged', ('--overwrite',)), (None, ())):
    if content is not None:  # or what the stop before has left, at the very beginning
      stopped.write_bytes(content)
    with pytest.raises(Stop):
      command(attacked, *FLAGS, *flags)
  assert resumed != [1, 0]
  assert cursors == [resumed, [1, 0], [1, 0], [1, 0]]
  assert path.read_bytes() == known  # until there is a new one
  stopped.unlink()
  assert command(attacked, *FLAGS, '--allow_suspect') == 0  # and shown again


def test_a_second_evaluation_of_the_same_attack_is_refused(attacked, monkeypatch):
  cursors = only_begin(monkeypatch)
  with artifact.lock(attacked / 'results', name=NAME):  # as another process does
    for flags in (('--seed=1', '--overwrite'), ('--overwrite',)):
      with pytest.raises(UserError, match=rf"{NAME}' is in use by process {os.getpid()} on ") as caught:
        command(attacked, *FLAGS, *flags)
      assert '\n' not in str(caught.value)
      assert caught.value.exit_code == 2
    assert command(attacked, *FLAGS, '--allow_suspect') == 0  # what is known is shown
    assert not cursors
    with pytest.raises(Stop):  # and another radius is attacked
      command(attacked, *FLAGS, '--epsilon=1/255')
  with pytest.raises(Stop):
    command(attacked, *FLAGS, '--overwrite')
  assert len(cursors) == 2


def test_a_result_that_was_edited_is_refused(attacked):
  path = attacked / 'results' / f'{NAME}.json'
  whole = result(attacked)
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
      results.load(attacked, NAME)
    assert '\n' not in str(caught.value)
  # Of random logits, counts may contradict each other, and are to be shown with their flag.
  none = outcomes.pack([False] * NUM)
  random_ones = {'flags': ['stochastic_logits'], 'num_correct': 0, 'clean_accuracy': 0.0, 'correct': none}
  path.write_text(json.dumps(whole | random_ones))
  assert results.load(attacked, NAME)['num_correct'] == 0


def start(run: Path, cache: Path, *flags: str, **options) -> subprocess.Popen:
  """Starts `evaluate` as a user does; compiled programs go to `cache`."""
  arguments = [sys.executable, '-m', 'adversarial_augment.evaluate', f'--workdir={run}', *flags]
  env = {'PYTHONPATH': str(trainer.ROOT), 'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_NUM_CPU_DEVICES': '1'}
  options = {'stdout': subprocess.DEVNULL, 'text': True} | options
  return subprocess.Popen(arguments, env=os.environ | env, start_new_session=True, **options)


def wait_for_change(process: subprocess.Popen, path: Path, before: float = 0.0) -> None:
  while process.poll() is None and (path.stat().st_mtime if path.exists() else 0.0) == before:
    time.sleep(0.01)


@pytest.mark.slow
def test_of_two_processes_one_attacks_and_after_a_kill_the_other(run, tmp_path):
  begin = lambda **options: start(run, tmp_path / 'xla', '--attack=multitargeted', *FLAGS[1:], **options)
  sweep = run / 'results' / f'{NAME.replace("pgd", "multitargeted")}.sweep'
  first = begin()
  wait_for_change(first, sweep)
  second = begin(stderr=subprocess.PIPE, text=True)
  said = second.communicate(timeout=300)[1]
  assert second.returncode == 2, said
  assert said.splitlines()[-1].startswith("evaluate: '")
  assert f'in use by process {first.pid} on ' in said
  os.killpg(first.pid, signal.SIGKILL)
  first.wait()
  before, third = sweep.stat().st_mtime, begin()
  wait_for_change(third, sweep, before)
  assert third.poll() is None
  os.killpg(third.pid, signal.SIGKILL)
  third.wait()


@pytest.mark.slow
def test_ten_kills_change_neither_counts_nor_images(run, tmp_path):
  """`kill -9` at random times, most of them within the attack; the same command goes on."""
  # A radius so small that hardly an image is broken: there is something to do in all rounds.
  flags = ['--attack=pgd', '--norm=linf', '--epsilon=0.05/255', '--num_examples=1500', '--save_images']
  flags += ['--config.batch_size=8', '--allow_suspect']
  name, seed = 'robustness_pgd_linf_0.05-255', random.SystemRandom().randrange(10**6)
  print(f'seed {seed}')
  rng = random.Random(seed)
  begin = lambda workdir: start(workdir, tmp_path / 'xla', *flags)
  killed = Path(shutil.copytree(run, tmp_path / 'killed'))
  assert begin(run).wait(1000) == 0
  sweep, kills, within = killed / 'results' / f'{name}.sweep', 0, 0
  while kills < 10:
    before, process = sweep.stat().st_mtime if sweep.exists() else 0.0, begin(killed)
    if rng.random() < 0.8:  # once it has gone on, a little later; else on its way there
      wait_for_change(process, sweep, before)
    time.sleep(rng.uniform(0, 3))
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      kills += 1
    within += sweep.exists()
    process.wait()
    if (killed / 'results' / f'{name}.json').exists():
      break
  print(f'{kills} kills, after {within} of which there was a .sweep file')
  assert within >= 3
  assert begin(killed).wait(1000) == 0
  one, other = result(run, name), result(killed, name)
  for field in SAME:
    assert one[field] == other[field]
  jax.tree.map(np.testing.assert_array_equal, images_of(run, name), images_of(killed, name))


def finish(processes: list[subprocess.Popen], code: int) -> list[str]:
  """Returns what they printed; they must end with that code."""
  try:
    printed = [process.communicate(timeout=2 * trainer.PATIENCE)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [code] * len(processes), printed
  return printed


def start_piped(run: Path, cache: Path, *flags: str) -> subprocess.Popen:
  return start(run, cache, *FLAGS, *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def start_pair(run: Path, cache: Path, *flags: str) -> list[subprocess.Popen]:
  several = (f'--coordinator_address=127.0.0.1:{trainer.free_port()}', '--num_processes=2')
  return [start_piped(run, cache, *flags, *several, f'--process_id={index}') for index in (0, 1)]


@pytest.mark.slow
def test_two_processes_find_what_one_does(good, tmp_path):
  """And know together that another evaluation holds the attack."""
  pair = Path(shutil.copytree(good, tmp_path / 'pair'))
  finish([start_piped(good, tmp_path / 'xla', '--save_images')], 0)
  said = finish(start_pair(pair, tmp_path / 'xla', '--save_images'), 0)
  assert ['robust accuracy' in text for text in said] == [True, False]
  one, two = result(good), result(pair)
  for name in SAME:
    assert one[name] == two[name]
  assert 0 < one['num_robust'] < one['num_correct']
  one, two = images_of(good), images_of(pair)
  np.testing.assert_array_equal(one['broken'], two['broken'])
  np.testing.assert_allclose(one['images'], two['images'], atol=1e-6)
  with artifact.lock(pair / 'results', name=NAME):
    said = finish(start_pair(pair, tmp_path / 'xla', '--overwrite'), 2)
  assert all(f"{NAME}' is in use by process {os.getpid()} on " in text for text in said)
