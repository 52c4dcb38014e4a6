"""What JAX must know of this machine before it starts: the virtual devices of the CPU, and the compilation cache."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path
import re

from adversarial_augment.cli import environment, streams
from adversarial_augment.errors import UserError


def usable_cores() -> int:
  """Returns how many cores this process may run on."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def virtual_devices(batch_size: int) -> int | None:
  """Splits the CPU into virtual devices: XLA runs many ops of one device on one core, so several are faster.

  Their number is the largest divisor of this process's batch size that is at most the number of usable cores, unless
  the user has chosen one: JAX_NUM_CPU_DEVICES, `jax_num_cpu_devices`, XLA_FLAGS=--xla_force_host_platform_device_count.
  Devices that exist already, as in a notebook, stay. Call before any array is made.

  Returns:
    How many devices this process will have, or None if only starting JAX tells, as with accelerators.
  """
  import jax

  forced = re.findall(r'xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  count = int(forced[-1]) if forced else jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
  if count == 0:
    name = 'XLA_FLAGS' if forced else 'JAX_NUM_CPU_DEVICES'
    raise UserError(f'{name} asks for 0 devices of the CPU; ask for at least 1, or leave it out.')
  if not forced and count < 0:
    count = next(n for n in range(min(usable_cores(), batch_size), 0, -1) if batch_size % n == 0)
    try:
      jax.config.update('jax_num_cpu_devices', count)
    except RuntimeError:  # the devices exist already
      return jax.local_device_count()
  return count if _cpu_only() else None


def _cpu_only() -> bool:
  """Returns whether JAX will certainly run on the CPU: it is told to, or no plugin of another platform is installed."""
  import jax

  platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
  plugins = any(importlib.util.find_spec(name) for name in ('jax_plugins', 'libtpu'))
  return platforms == 'cpu' or not (platforms or plugins or importlib.metadata.entry_points(group='jax_plugins'))


def compilation_cache(own: Path | None = None) -> None:
  """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another folder.

  `own` is another folder, in which all programs are kept, also those that take less than a second.
  """
  import jax

  switched_on, chosen = jax.config.jax_enable_compilation_cache, jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if not switched_on or chosen is not None:
    return
  try:
    folder = own or environment.cache_folder('xla')
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError) as error:  # a read-only home, or none
    streams.say(f'Compiled programs are not kept for the next start: {error}.')
    return
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if own:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')  # whose folder would be part of each key
