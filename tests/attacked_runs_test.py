"""`evaluate --attack` on a run that was trained: bad classifiers are named, float32 has the word, two processes agree.

Every bad classifier takes the place of the one that the run's config names, as one that a user has registered would.
"""

import itertools
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import cli, datasets, evaluate, inference, train
from adversarial_augment import config as configs
from adversarial_augment.storage import artifact
from adversarial_augment.training import recipe
from tests import trainer
from tests.lp_ball_test import assert_within

NUM = 24
NAME = 'robustness_pgd_linf_2-255'
FLAGS = ('--attack=pgd', '--norm=linf', '--epsilon=2/255', f'--num_examples={NUM}')
DRAWS = (jax.random.key(i) for i in itertools.count())  # a state in Python, as of a framework's generators


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
  """A run that is right about most digits; not to be changed."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  changes = {'num_epochs': '1.25', 'classifier.width': '4', 'evals': 'clean', 'eval_images': str(NUM)}
  config = configs.override(configs.load('configs/nominal.py:quickstart'), changes)
  train.train(config, workdir, {split: datasets.load('embedded', split, '') for split in ('train', 'test')})
  return workdir


@pytest.fixture
def run(trained, tmp_path) -> Path:
  return Path(shutil.copytree(trained, tmp_path / 'w'))


def exit_code(run: Path, *flags: str) -> int:
  with pytest.raises(SystemExit) as ended:
    cli.run(evaluate.main, [f'--workdir={run}', *FLAGS, *flags])
  return ended.value.code


def result(run: Path) -> dict:
  return json.loads((run / 'results' / f'{NAME}.json').read_text())


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


@pytest.mark.slow
@pytest.mark.parametrize('name', PLANTED)
def test_a_bad_classifier_is_named_and_the_exit_code_says_so(name, run, plant, capsys):
  change, flag = PLANTED[name]
  plant(change)
  assert exit_code(run) == 3
  (line,) = [line for line in capsys.readouterr().out.splitlines() if 'robust accuracy' in line]
  assert flag in line.partition('UNRELIABLE: ')[2].split(', ')
  print(result(run)['flags'])
  assert flag in result(run)['flags']
  assert exit_code(run, '--allow_suspect') == 0
  assert f'UNRELIABLE: {", ".join(result(run)["flags"])}' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('name', HONEST)
def test_an_honest_classifier_is_not(name, run, plant, capsys):
  plant(HONEST[name])
  assert exit_code(run) == 0
  assert 'UNRELIABLE' not in capsys.readouterr().out
  found = result(run)
  assert found['flags'] == []
  assert found['num_robust'] <= found['num_correct']
  assert found['num_correct'] > 0.2 * NUM


def images_of(run: Path) -> dict[str, np.ndarray]:
  with np.load(run / 'results' / f'{NAME}.npz') as file:
    return dict(file)


def test_what_bfloat16_finds_is_judged_in_float32(run, tmp_path):
  """Counts and images are those of the float32 classifier, as other code has it; it is about as strong a result."""
  half = Path(shutil.copytree(run, tmp_path / 'half'))
  assert exit_code(run) == exit_code(half, '--config.precision=bfloat16', '--save_images') == 0
  found, kept = result(half), images_of(half)
  assert found['provenance']['config']['precision'] == 'bfloat16'
  clean, labels = datasets.load('embedded', 'test', '').read(np.arange(NUM))
  assert_within('linf', 2 / 255, np.float32(clean) / 255, kept['images'])
  classify = inference.load_classifier(half)  # float32, as the run was trained
  wrong = classify(kept['images']).argmax(-1) != labels
  np.testing.assert_array_equal(wrong, kept['broken'])
  assert found['num_robust'] == NUM - wrong.sum()
  assert found['num_robust_uint8'] == (classify(np.round(kept['images'] * 255) / 255).argmax(-1) == labels).sum()
  assert found['num_correct'] == (classify(clean).argmax(-1) == labels).sum() == result(run)['num_correct']
  assert abs(found['num_robust'] - result(run)['num_robust']) <= 0.02 * NUM


def start(run: Path, cache: Path, *flags: str) -> subprocess.Popen:
  arguments = [sys.executable, '-m', 'adversarial_augment.evaluate', f'--workdir={run}', *FLAGS, *flags]
  env = {'PYTHONPATH': str(trainer.ROOT), 'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_NUM_CPU_DEVICES': '1'}
  pipe = subprocess.PIPE
  return subprocess.Popen(arguments, env=os.environ | env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def finish(processes: list[subprocess.Popen], code: int) -> list[str]:
  """Returns what they printed; they must end with that code."""
  try:
    printed = [process.communicate(timeout=2 * trainer.PATIENCE)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [code] * len(processes), printed
  return printed


def start_pair(run: Path, cache: Path, *flags: str) -> list[subprocess.Popen]:
  several = (f'--coordinator_address=127.0.0.1:{trainer.free_port()}', '--num_processes=2')
  return [start(run, cache, *flags, *several, f'--process_id={index}') for index in (0, 1)]


@pytest.mark.slow
def test_two_processes_find_what_one_does(run, tmp_path):
  """And know together that another evaluation holds the attack."""
  pair = Path(shutil.copytree(run, tmp_path / 'pair'))
  finish([start(run, tmp_path / 'xla', '--save_images')], 0)
  said = finish(start_pair(pair, tmp_path / 'xla', '--save_images'), 0)
  assert ['robust accuracy' in text for text in said] == [True, False]
  one, two = result(run), result(pair)
  for name in ('num_correct', 'num_robust', 'num_robust_uint8', 'survivors', 'flags', 'probes'):
    assert one[name] == two[name]
  assert 0 < one['num_robust'] < one['num_correct']
  one, two = images_of(run), images_of(pair)
  np.testing.assert_array_equal(one['broken'], two['broken'])
  np.testing.assert_allclose(one['images'], two['images'], atol=1e-6)
  with artifact.lock(pair / 'results', name=NAME):
    said = finish(start_pair(pair, tmp_path / 'xla', '--overwrite'), 2)
  assert all(f"{NAME}' is in use by process {os.getpid()} on " in text for text in said)
