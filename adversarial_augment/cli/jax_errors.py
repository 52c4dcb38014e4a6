"""Errors of JAX that are due to the machine or its settings, in one line: no such device, or too little memory."""

import os
import re
import sys
import traceback

from adversarial_augment.errors import StorageError, UserError

# As reported by CPUs, GPUs (running, and trying kernels while compiling), TPUs (compiling) and CUDA.
_MEMORY = re.compile('RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|ALLOC_FAILED', re.IGNORECASE)
_AMOUNT = re.compile(
  r'(?:allocat\w*|Used)[^\n;\[]*?[0-9][0-9.,]*\s*(?:[KMGT]i?B?|bytes)\b(?:[^.\n;\[]|\.[0-9])*', re.IGNORECASE
)
_WHERE = ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'CUDA_VISIBLE_DEVICES')
_LONGEST = 160  # characters of JAX's own words


def explain(error: BaseException, less_memory: str) -> tuple[str, int] | None:
  """Returns the line and the exit code of an error of this kind; None for others.

  Args:
    error: any exception.
    less_memory: how to need less memory, for the message.
  """
  jax = sys.modules.get('jax')
  from_runtime = jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
  if isinstance(error, MemoryError) or (from_runtime and _MEMORY.search(str(error))):
    words = _AMOUNT.search(str(error))
    amount = f' ({_short(words[0])})' if words else ''
    return f'Out of memory{amount}; {less_memory}.', StorageError.exit_code
  if not isinstance(error, Exception) or not _while_starting(error):
    return None
  where = ', '.join(f'{name}={os.environ[name]}' for name in _WHERE if name in os.environ)
  reason = _short(str(error)) or 'no device of that platform was found'
  return (
    f'JAX cannot start{where and " with "}{where}: {reason}; unset the wrong variable, or install JAX for the device: '
    "pip install 'jax[cuda13]' or 'jax[tpu]'."
  ), UserError.exit_code


def _while_starting(error: Exception) -> bool:
  """Returns whether it was raised while JAX was imported, or while it looked for devices."""
  frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
  places = [(code.co_filename.replace(os.sep, '/'), code.co_name) for code in frames]
  return any(
    file.endswith('/jax/_src/xla_bridge.py') or (file.endswith('/jax/__init__.py') and name == '<module>')
    for file, name in places
  )


def _short(text: str) -> str:
  """Returns the first line, with numbers of bytes as gibibytes."""
  in_gib = lambda match: f'{int(match[1]) / 2**30:,.2f} GiB'
  line = re.sub(r'\b([0-9]{7,})( bytes)?\b', in_gib, text.strip().partition('\n')[0]).strip(' .')
  return line if len(line) <= _LONGEST else f'{line[:_LONGEST]}...'
