"""JAX that cannot start, and devices with too little memory: one line, exit codes 2 and 5."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from adversarial_augment.cli import jax_errors
from tests import corrupted_pets, trainer

# What CPUs, an H200 with JAX 0.11 (running, trying kernels while compiling) and TPU compilers say.
GPU = "with allocator GPU_0_bfc on device 0. [tf-allocator-allocation-error='']"
AUTOTUNER = 'Failed to get configs for: 2 out of 9 instructions. See logs for all failures. Example failure: \n'
TPU = 'XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.50G of 15.48G hbm. Exceeded hbm'
MESSAGES = {
  'RESOURCE_EXHAUSTED: Out of memory allocating 137438953472 bytes.': 'allocating 128.00 GiB',
  f'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.00TiB {GPU} [x]': 'allocate 1.00TiB with allocator',
  f'RESOURCE_EXHAUSTED: {AUTOTUNER}Out of memory while trying to allocate 256.02GiB {GPU}': 'allocate 256.02GiB',
  f'RESOURCE_EXHAUSTED: {TPU} capacity by 3.02G.\n\nTotal hbm usage >= 19G:\n  reserved': 'Used 18.50G of 15.48G hbm',
  'INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory': '',
}


@pytest.mark.parametrize('message', MESSAGES)
def test_too_little_memory_is_one_line_with_the_fields_that_lower_it(message):
  line, code = jax_errors.explain(jax.errors.JaxRuntimeError(message), 'lower config.batch_size')
  assert code == 5
  assert '\n' not in line
  assert len(line) < 250
  assert line.startswith('Out of memory')
  assert MESSAGES[message] in line
  assert line.endswith('; lower config.batch_size.')


def test_errors_of_another_kind_are_none_of_these():
  of_runtime = jax.errors.JaxRuntimeError('INTERNAL: a defect')
  for error in (of_runtime, RuntimeError('out of memory'), ValueError('RESOURCE_EXHAUSTED')):
    assert jax_errors.explain(error, '') is None
  line, code = jax_errors.explain(MemoryError('Unable to allocate 8.00 TiB for an array'), 'lower it')
  assert (line, code) == ('Out of memory (allocate 8.00 TiB for an array); lower it.', 5)


def test_memory_that_is_not_there():
  """The allocator of this machine's CPU devices, not a message of ours."""
  with pytest.raises((jax.errors.JaxRuntimeError, MemoryError)) as caught:
    jax.numpy.zeros((1 << 46,), np.float32).block_until_ready()
  line, code = jax_errors.explain(caught.value, 'lower it')
  assert code == 5
  assert 'Out of memory' in line


def run(*flags: str, module: str = 'train', **env: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, '-m', f'adversarial_augment.{module}', *flags],
    capture_output=True, text=True, cwd=trainer.ROOT, env=os.environ | env, timeout=120, check=False,
  )  # fmt: skip


@pytest.mark.parametrize(
  'env, words',
  [
    ({'JAX_PLATFORMS': 'cuda'}, ['JAX_PLATFORMS=cuda']),
    ({'JAX_PLATFORMS': 'nonsense'}, ['JAX_PLATFORMS=nonsense', "'nonsense' is not in the list of known backends"]),
    ({'JAX_NUM_CPU_DEVICES': 'abc'}, ['Invalid value "abc" for JAX flag jax_num_cpu_devices']),
    ({'JAX_DEFAULT_MATMUL_PRECISION': 'foo'}, ['Invalid value "foo" for JAX flag jax_default_matmul_precision']),
    ({'JAX_DISABLE_JIT': '1'}, ['JAX_DISABLE_JIT=1', 'unset the variable']),
  ],
)
def test_jax_that_cannot_start_is_one_line(env, words, tmp_path):
  done = run('--config=configs/nominal.py:smoke', f'--workdir={tmp_path}/w', **env)
  assert done.returncode == 2, done.stderr
  lines = errors(done.stderr)
  assert len(lines) == 1, done.stderr
  assert all(word in lines[0] for word in words)
  assert not (tmp_path / 'w').exists()


def errors(said):
  """What is said beside the stages of a busy machine."""
  return [line for line in said.splitlines() if not line.endswith('...')]


def test_other_commands_cannot_start_either(pets, tmp_path):
  data_dir = corrupted_pets.copy(pets, tmp_path / 'data')
  flags = ['cifar10_c', '--dataset=pets', '--names=fog', f'--data_dir={data_dir}', '--seed=3']
  done = run(*flags, module='prepare', JAX_PLATFORMS='cuda')
  assert done.returncode == 2, done.stderr
  assert len(errors(done.stderr)) == 1
  assert 'JAX cannot start with' in done.stderr
