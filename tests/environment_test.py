"""Environment variables of JAX change no numbers silently: they are ignored, or recorded and compared."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, augmentations
from adversarial_augment import config as configs
from adversarial_augment.cli import environment
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.errors import UserError
from adversarial_augment.run import opening
from tests import trainer

OTHERS = {
  'JAX_ENABLE_X64': 'True',
  'JAX_DEFAULT_PRNG_IMPL': 'rbg',
  'JAX_THREEFRY_PARTITIONABLE': '0',
  'JAX_RANDOM_SEED_OFFSET': '7',
  'JAX_NUMPY_DTYPE_PROMOTION': 'strict',
  'JAX_TRANSFER_GUARD': 'disallow',
  'JAX_NO_TRACING': '1',
}


@pytest.fixture(scope='module')
def rig(tmp_path_factory) -> trainer.Rig:
  return trainer.Rig(tmp_path_factory.getbasetemp())


def test_variables_that_nobody_needs_are_ignored_with_a_line_for_each(monkeypatch, capsys):
  for name, value in OTHERS.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv('JAX_LEGACY_PRNG_KEY', 'allow')  # as it is anyway
  environment.pin()
  assert not OTHERS.keys() & os.environ.keys()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == len(OTHERS)
  for name, value in OTHERS.items():
    assert any(f'{name}={value} is ignored' in line for line in lines)


@pytest.mark.parametrize('value', ['1', 'true', 'YES'])
def test_without_jit_nothing_runs(value, monkeypatch):
  monkeypatch.setenv('JAX_DISABLE_JIT', value)
  with pytest.raises(UserError, match=f'JAX_DISABLE_JIT={value}: .* unset the variable'):
    environment.pin()


def test_settings_are_those_that_change_numbers(monkeypatch):
  usual = environment.settings()
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=/x --xla_b=1 --xla_force_host_platform_device_count=4 --xla_a=2')
  monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
  monkeypatch.setenv('JAX_LOG_COMPILES', '1')
  assert environment.settings() == usual | {'NVIDIA_TF32_OVERRIDE': '0', 'XLA_FLAGS': '--xla_a=2 --xla_b=1'}
  with jax.default_matmul_precision('highest'), jax.enable_x64(True):  # by a program, not by the environment
    found = environment.settings()
  assert (found['JAX_DEFAULT_MATMUL_PRECISION'], found['JAX_ENABLE_X64']) == ('highest', '1')


@pytest.mark.parametrize(
  'old, new, words',
  [
    ({}, {'XLA_FLAGS': '--xla_a=1'}, "holds a run with XLA_FLAGS unset, and now there is XLA_FLAGS='--xla_a=1'"),
    ({'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}, {}, 'and now there is JAX_DEFAULT_MATMUL_PRECISION unset'),
    ({'JAX_ENABLE_X64': '1'}, {}, 'and now there is JAX_ENABLE_X64 unset'),
    ({'NVIDIA_TF32_OVERRIDE': '0'}, {'NVIDIA_TF32_OVERRIDE': '1'}, "now there is NVIDIA_TF32_OVERRIDE='1'"),
  ],
)
def test_a_resume_under_other_settings_is_refused(old, new, words, tmp_path, monkeypatch):
  monkeypatch.chdir(trainer.ROOT)
  config = configs.load('configs/nominal.py:smoke')
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
  (tmp_path / 'config.json').write_text(configs.to_json(config))
  opening.check_run(tmp_path, config, {})  # a run of an older version did not note them
  (tmp_path / 'environment.json').write_text(str(old).replace("'", '"'))
  monkeypatch.setattr(environment, 'settings', lambda: new)
  with pytest.raises(UserError, match='which changes its numbers; set the variable as it was') as caught:
    opening.check_run(tmp_path, config, {})
  assert words in str(caught.value)


def test_a_run_and_its_resume_under_other_settings(rig, tmp_path):
  """Those that are ignored give the same bits; another one is refused when the run goes on."""
  straight, workdir = rig.straight(), tmp_path / 'w'
  run = rig.finish(workdir, **OTHERS)
  assert run.err.count('is ignored') == len(OTHERS)
  trainer.assert_same_end(workdir, straight)
  run = rig.start(workdir, XLA_FLAGS='--xla_cpu_enable_fast_math=true')
  assert run.wait() == 2
  assert "holds a run with XLA_FLAGS unset, and now there is XLA_FLAGS='--xla_cpu_enable_fast_math=true'" in run.err
  assert len(run.err.splitlines()) == 1


@functools.cache
def results_of_one(kind: str, impl: str) -> np.ndarray:
  """The results of one image and one key, four times in a batch."""
  image = np.random.default_rng(0).random((16, 16, 3), np.float32)
  images, labels = jnp.stack([image] * 4), jnp.zeros(4, int)
  logits_fn = lambda images: jnp.stack([images.mean((1, 2, 3)), images[:, 3, 5, 1]], 1)
  keys = jnp.stack([jax.random.key(5, impl=impl)] * 4)
  if kind == 'ada':
    network = edsr(blocks=1, features=4, scale=1)
    phi = network.init(jax.random.key(0), images)
    return np.asarray(attacks.ada(network.apply, num_steps=1)(keys, logits_fn, images, labels, phi).images)
  if kind == 'pgd':
    attack = attacks.pgd(norm='linf', epsilon=0.1, num_steps=1)
    return np.asarray(attack(keys, logits_fn, images, labels).images)
  return np.asarray(jax.vmap(augmentations.AUGMENTATIONS[kind])(keys, images))


@pytest.mark.parametrize('impl', ['rbg', 'unsafe_rbg'])
@pytest.mark.parametrize('kind', [pytest.param('ada', marks=pytest.mark.slow), 'pgd', 'augmix', 'flip', 'pad_crop'])
def test_one_image_and_one_key_give_one_result_with_every_kind_of_key(kind, impl):
  found = results_of_one(kind, impl)
  for other in found[1:]:
    np.testing.assert_array_equal(found[0], other)
  np.testing.assert_array_equal(found, results_of_one(kind, 'threefry2x32'))


def test_keys_of_the_package_are_made_in_one_place():
  files = (trainer.ROOT / 'adversarial_augment').rglob('*.py')
  made = [path.name for path in files for line in path.read_text().splitlines() if ' jax.random.key(' in line]
  assert set(made) <= {'threefry.py'}, made
