"""Strict settings for every test: 8 virtual CPU devices, no silent broadcasting of ranks, one intra-op order."""

import gc
import os
from pathlib import Path
import shutil
import signal

import jax
import pytest

from tests import checkpoint_cases, corrupted_pets

# Whoever runs the tests in the background may ignore these, and what they start would, too.
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
  if signal.getsignal(number) == signal.SIG_IGN:
    signal.signal(number, handler)

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_finish():
  """Leaves what is loaded out of garbage collections, which take a tenth of the time otherwise."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 50)


CIFAR10_VARIABLE = 'ADVERSARIAL_AUGMENT_CIFAR10'


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def quick_compile():
  """Compiles with few optimisations, in half the time: for modules of many small programs that run for an instant."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  jax.clear_caches()  # lest another module gets these programs


@pytest.fixture(scope='session')
def cifar10_dir() -> str:
  """The data_dir of a prepared CIFAR-10; where its variable is set, it has to be there."""
  folder = os.environ.get(CIFAR10_VARIABLE)
  if not folder:
    pytest.skip(f'{CIFAR10_VARIABLE} does not name a data_dir with a prepared cifar10')
  assert os.path.isdir(os.path.join(folder, 'cifar10')), f'{CIFAR10_VARIABLE}={folder} holds no cifar10'
  return folder


@pytest.fixture(scope='session')
def three(tmp_path_factory) -> Path:
  """The checkpoints of steps 10, 20 and 30; not to be changed."""
  return checkpoint_cases.three_checkpoints(tmp_path_factory.mktemp('run') / 'checkpoints')


@pytest.fixture
def directory(three, tmp_path) -> Path:
  """A copy of `three` for one test."""
  return Path(shutil.copytree(three, tmp_path / 'checkpoints'))


@pytest.fixture(scope='session')
def pets(tmp_path_factory) -> Path:
  """A data_dir with pets alone; not to be changed."""
  return corrupted_pets.write_pets(tmp_path_factory.mktemp('pets'))


@pytest.fixture(scope='session')
def whole(pets, tmp_path_factory) -> Path:
  """A data_dir with pets and, made in one go, pets_c; not to be changed."""
  return corrupted_pets.run(corrupted_pets.copy(pets, tmp_path_factory.mktemp('whole') / 'data'))
