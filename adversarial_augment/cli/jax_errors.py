"""Errors of JAX that are of the machine or its settings, in one line: no such device, or too little memory."""

import os
import re
import sys
import traceback

from adversarial_augment.errors import StorageError, UserError

# As CPUs, GPUs (when they run, and when they try kernels while compiling), TPUs (when they compile) and CUDA put it.
_MEMORY = re.compile('RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|ALLOC_FAILED', re.IGNORECASE)
_AMOUNT = re.compile(
  r'(?:allocat\w*|Used)[^\n;\[]*?[0-9][0-9.,]*\s*(?:[KMGT]i?B?|bytes)\b(?:[^.\n;\[]|\.[0-9])*', re.IGNORECASE
)
_WHERE = ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'CUDA_VISIBLE_DEVICES')
_LONGEST = 160  # characters of JAX's own words


def explain(error: BaseException, less_memory: str) -> tuple[str, int] | None:
  """Returns the line and the exit code of an error of this kind; None of another one.

  Args:
    error: anything that was raised.
    less_memory: what lowers the memory that the program needs, for the message.
  """
  if isinstance(error, MemoryError) or (_is_of_runtime(error) and _MEMORY.search(str(error))):
    words = _AMOUNT.search(str(error))
    amount = f' ({_short(words[0])})' if words else ''
    return f'Out of memory{amount}; {less_memory}.', StorageError.exit_code
  if not isinstance(error, Exception) or not _while_starting(error):
    return None
  where = ', '.join(f'{name}={os.environ[name]}' for name in _WHERE if name in os.environ)
  reason = _short(str(error)) or 'no device of that platform was found'
  return (
    f'JAX cannot start{where and " with "}{where}: {reason}; unset the variable that is to blame, or install JAX for '
    "the device: pip install 'jax[cuda13]' or 'jax[tpu]'."
  ), UserError.exit_code


def _is_of_runtime(error: BaseException) -> bool:
  jax = sys.modules.get('jax')
  return jax is not None and isinstance(error, jax.errors.JaxRuntimeError)


def _while_starting(error: Exception) -> bool:
  """Returns whether it came while JAX was imported, or while it looked for devices."""
  for frame, _ in traceback.walk_tb(error.__traceback__):
    file = frame.f_code.co_filename.replace(os.sep, '/')
    importing = file.endswith('/jax/__init__.py') and frame.f_code.co_name == '<module>'
    if importing or file.endswith('/jax/_src/xla_bridge.py'):
      return True
  return False


def _short(text: str) -> str:
  """Returns the first line, with numbers of bytes as gibibytes."""
  in_gib = lambda match: f'{int(match[1]) / 2**30:,.2f} GiB'
  line = re.sub(r'\b([0-9]{7,})( bytes)?\b', in_gib, text.strip().partition('\n')[0]).strip(' .')
  return line if len(line) <= _LONGEST else f'{line[:_LONGEST]}...'
