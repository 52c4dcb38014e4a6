"""Files of named tensors: safetensors whose header has a hash of the tensors, which `read` verifies.

Nothing in such a file is executed. What the other entries of the header mean is up to the reader.
"""

from collections.abc import Callable, Mapping
import hashlib
import json
import os

import numpy as np
import safetensors
from safetensors.numpy import save as to_bytes

from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import untrusted

# NumPy's dtypes by their names in safetensors.
_NAMES = {'F16': 'float16', 'F32': 'float32', 'F64': 'float64', 'I32': 'int32', 'I64': 'int64'}

Header = Mapping[str, str]


def encode(tensors: Mapping[str, np.ndarray], header: Header) -> bytes:
  """Returns the content of a file with these tensors and header, to which their hash is added."""
  # safetensors writes the memory of a transposed view as it lies, which silently permutes the numbers.
  plain = {key: np.ascontiguousarray(value).reshape(np.shape(value)) for key, value in tensors.items()}
  return to_bytes(plain, metadata={**header, 'sha256': _digest(plain)})


def read(
  path: str | os.PathLike,
  limit: int,
  dtypes: tuple[str, ...],
  way_out: str,
  check_header: Callable[[Header], None] = lambda header: None,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the tensors of a file and its header, verified by the hash in it, if there is one.

  Args:
    path: the file.
    limit: its largest number of bytes.
    dtypes: that its tensors may have.
    way_out: what to do about a file of another kind; ends the message.
    check_header: called before any tensor is read; raises UserError where the file is of another kind.

  Raises:
    UserError: no such file, no safetensors, damaged, or with NaN or infinite values.
  """
  try:
    untrusted.open_file(path, limit).close()
    with safetensors.safe_open(os.fspath(path), framework='numpy') as file:
      header = file.metadata() or {}
      check_header(header)
      tensors = {}
      for key in file.keys():  # noqa: SIM118 (the file is no mapping)
        tag = file.get_slice(key).get_dtype()
        if _NAMES.get(tag) not in dtypes:  # checked before NumPy, which does not know all of them, is asked
          raise UserError(
            f"'{path}': {show(key)} has dtype {tag}; a weight file holds {' or '.join(dtypes)}: {way_out}."
          )
        tensors[key] = file.get_tensor(key)
  except FileNotFoundError as error:
    raise UserError(f"No weight file '{path}'; give an existing .safetensors file.") from error
  except OSError as error:
    raise UserError(f"Cannot read the weight file '{path}': {error.strerror or error}.") from error
  except (safetensors.SafetensorError, untrusted.Unusable) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f"'{path}' is damaged or not a .safetensors weight file ({reason}); get or make it again."
    ) from error
  if header.get('sha256', '') not in ('', _digest(tensors)):
    raise UserError(f"'{path}' is damaged: its tensors do not have the SHA-256 in its header; get or make it again.")
  for key, value in tensors.items():
    if not np.isfinite(value).all():
      raise UserError(f"'{path}': {show(key)} holds NaN or infinite values; get or make the file again.")
  return tensors, header


def wrong_shape(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
  """Returns what is wrong with the first array that is missing, mis-shaped or one too many; '' where none is."""
  for key, shape in wanted.items():
    if key not in found:
      return f"lacks '{key}', which must have shape {list(shape)}"
    if tuple(found[key]) != tuple(shape):
      return f"holds '{key}', which has shape {list(found[key])} and must have {list(shape)}"
  extra = [key for key in found if key not in wanted]
  return f'holds {show(extra[0])} of shape {list(found[extra[0]])}, which the network does not have' if extra else ''


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
  """SHA-256 over names, dtypes, shapes and bytes."""
  digest = hashlib.sha256()
  for key in sorted(tensors):
    value = np.ascontiguousarray(tensors[key])
    digest.update(json.dumps([key, value.dtype.name, list(value.shape)]).encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
