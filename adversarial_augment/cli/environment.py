"""What numbers depend on besides config and data: versions of packages, and the environment variables of JAX.

Commands remove variables that nobody needs, with a note. The others are recorded in a run, and compared when it resumes
and between its processes.
"""

import hashlib
import importlib.metadata
import os
from pathlib import Path
import platform

from adversarial_augment import __version__
from adversarial_augment.cli import streams
from adversarial_augment.errors import UserError

_PACKAGES = ('jax', 'jaxlib', 'dm-haiku', 'optax', 'numpy', 'orbax-checkpoint', 'tensorflow-datasets')

# Settings of JAX that commands do not let the environment change, with their values here.
_PINNED = {
  'JAX_ENABLE_X64': '0',
  'JAX_DEFAULT_PRNG_IMPL': 'threefry2x32',
  'JAX_THREEFRY_PARTITIONABLE': '1',
  'JAX_RANDOM_SEED_OFFSET': '0',
  'JAX_NUMPY_DTYPE_PROMOTION': 'standard',
  'JAX_LEGACY_PRNG_KEY': 'allow',
  'JAX_ENABLE_CUSTOM_PRNG': '0',
  'JAX_NO_TRACING': '0',  # this and the next one make JAX refuse work
  'JAX_TRANSFER_GUARD': 'allow',
  'JAX_ENABLE_PREEMPTION_SERVICE': '1',  # stops several processes after the same step
}
# Settings that belong to a machine: recorded.
_RECORDED = (
  'JAX_DEFAULT_MATMUL_PRECISION',
  'JAX_ALLOW_F16_REDUCTIONS',
  'JAX_COMPILER_ENABLE_REMAT_PASS',
  'JAX_DISABLE_MOST_OPTIMIZATIONS',
  'JAX_ENABLE_PGLE',
  'JAX_EXEC_TIME_OPTIMIZATION_EFFORT',
  'JAX_HIGH_DYNAMIC_RANGE_GUMBEL',
  'JAX_MEMORY_FITTING_EFFORT',
  'JAX_MEMORY_FITTING_LEVEL',
  'JAX_OPTIMIZATION_LEVEL',
  'JAX_SOFTMAX_CUSTOM_JVP',
  'JAX_THREEFRY_GPU_KERNEL_LOWERING',
  'JAX_USE_DIRECT_LINEARIZE',
  'JAX_USE_SHARDY_PARTITIONER',
  'LIBTPU_INIT_ARGS',
  'NVIDIA_TF32_OVERRIDE',
  'XLA_FLAGS',
)
_LIVE = ('JAX_DEFAULT_MATMUL_PRECISION',)  # also if a program has set it
_HARMLESS = ('--xla_force_host_platform_device_count', '--xla_dump', '--xla_log', '--xla_hlo_profile')  # of XLA_FLAGS
_TRUE, _FALSE = ('1', 'y', 'yes', 't', 'true', 'on'), ('0', 'n', 'no', 'f', 'false', 'off', '')


def pin() -> None:
  """Removes the variables that commands ignore, with a line for each. Call before JAX is imported."""
  if _plain(os.environ.get('JAX_DISABLE_JIT', '0')) != '0':
    raise UserError(
      f'JAX_DISABLE_JIT={os.environ["JAX_DISABLE_JIT"]}: the steps exist only in compiled form; unset the variable.'
    )
  for name, value in _PINNED.items():
    given = os.environ.get(name)
    if given is not None and _plain(given) != value:
      del os.environ[name]
      streams.say(f'note: {name}={given} is ignored, so that the same config gives the same numbers.')


def settings() -> dict[str, str]:
  """Returns the settings of JAX that change numbers and differ from those of commands: variable -> value."""
  import jax

  found = {name: os.environ[name] for name in _RECORDED if os.environ.get(name)}
  for name in (*_PINNED, *_LIVE):
    value = getattr(jax.config, name.lower(), None)
    text = _plain(str(getattr(value, 'value', value)))
    if text not in (_PINNED.get(name), 'none'):
      found[name] = text
  if flags := sorted(flag for flag in found.pop('XLA_FLAGS', '').split() if not flag.startswith(_HARMLESS)):
    found['XLA_FLAGS'] = ' '.join(flags)
  return found


def versions() -> dict[str, str]:
  """Returns the versions of Python, of this package, and of the packages that compute."""
  own = {'adversarial_augment': __version__, 'python': platform.python_version()}
  return own | {name: importlib.metadata.version(name) for name in _PACKAGES}


def source_sha256() -> str:
  """Returns a hash of this package's code, which changes more often than its version."""
  digest = hashlib.sha256()
  folder = Path(__file__).parents[1]
  for path in sorted(folder.rglob('*.py')):
    digest.update(f'{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n'.encode())
  return digest.hexdigest()


def _plain(text: str) -> str:
  lower = text.lower()
  return '1' if lower in _TRUE else '0' if lower in _FALSE else lower


def cache_folder(name: str) -> Path:
  """Returns a folder of this program in the user's cache, which need not exist; raises RuntimeError without a home."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'adversarial_augment' / name
