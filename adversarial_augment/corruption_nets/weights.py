"""Weight files: `.safetensors` with a header that says where the weights come from, and a hash that `load` verifies.

Files hold float32 or float16 (how the shipped weights stay small); `load` always gives float32. Keys are those of
Haiku, joined by a slash: `{'edsr/head': {'w': array}}` is stored as `edsr/head/w`.
"""

from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from adversarial_augment.config.fields import show
from adversarial_augment.config.tables import NETWORK_SIZES, SIZE_KINDS
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, tensor_files, untrusted

FORMAT = 'adversarial_augment.weights.1'
DTYPES = ('float16', 'float32')
MAX_BYTES = 1_400_000_000  # an EDSR of the largest sizes has 1.3 GB

WAY_OUT = 'give a file that adversarial_augment.pretrain or adversarial_augment.convert wrote'

Params = dict[str, dict[str, np.ndarray]]


def save(
  path: str | os.PathLike,
  params: Mapping[str, Mapping[str, Any]],
  metadata: Mapping[str, Any],
  *,
  dtype: str = 'float16',
) -> None:
  """Writes parameters and their provenance (any JSON-serialisable values) to `path`, atomically.

  Raises:
    UserError: a value that is not finite in the dtype, 'float16' or 'float32'.
    StorageError: the file cannot be written.
  """
  tensors = {}
  for key, value in _flatten(params).items():
    with np.errstate(over='ignore'):  # too large for half precision is reported below
      tensors[key] = np.asarray(value).astype(dtype)
    if not np.isfinite(tensors[key]).all():
      raise UserError(
        f"Parameter {key!r} holds values that are not finite in {dtype}; '{path}' was not written: take other weights"
        f'{", or store them as float32" if dtype == "float16" else ""}.'
      )
  provenance = json.dumps(dict(metadata), sort_keys=True)
  with artifact.storage_errors(f"write the weight file '{path}'"):
    artifact.replace(Path(path), tensor_files.encode(tensors, {'format': FORMAT, 'provenance': provenance}))


def load(path: str | os.PathLike) -> tuple[Params, dict[str, Any]]:
  """Returns the parameters, float32, and the metadata that `save` wrote, verified.

  Raises:
    UserError: no such file, not a weight file of this package, damaged, or with NaN or infinite values.
  """
  check_header = lambda header: _check_header(path, header)
  tensors, header = tensor_files.read(path, MAX_BYTES, DTYPES, WAY_OUT, check_header)
  params: Params = {}
  for key in list(tensors):
    module, _, name = key.rpartition('/')
    params.setdefault(module, {})[name] = tensors.pop(key).astype(np.float32, copy=False)
  return params, untrusted.parse_json(header['provenance'])


def network_of(metadata: Mapping[str, Any], path: str | os.PathLike) -> tuple[str, dict[str, int]]:
  """Returns the name of the network that a weight file was made for, and its sizes; none of an unknown network.

  Raises:
    UserError: the header does not name a network, or not by its name and sizes alone.
  """
  network = metadata.get('network')
  entries: dict[str, Any] = network if isinstance(network, dict) else {}
  name: Any = entries.get('name')
  known = isinstance(name, str)
  if known and name not in NETWORK_SIZES:
    return name, {}
  sizes: dict[str, Any] = {key: entries.get(key) for key in NETWORK_SIZES[name]} if known else {}
  if not known or entries.keys() != {'name', *sizes}:
    wanted = ', '.join(('name', *sizes) if known else ('name', 'the sizes of that network'))
    raise UserError(
      f"'{path}' does not say what network its weights are of: 'network' in its header is {show(network)} and must "
      f'have exactly {wanted}; {WAY_OUT}.'
    )
  if wrong := wrong_size(sizes):
    raise UserError(f"'{path}': 'network' in its header has {wrong}; {WAY_OUT}.")
  return name, sizes


def wrong_size(sizes: Mapping[str, Any]) -> str:
  """Returns the first of the sizes that no network may have, with the rule; nothing where all are right."""
  for key, size in sizes.items():
    if not SIZE_KINDS[key].accepts(size):
      return f'{key}={show(size)}, which must be {SIZE_KINDS[key].expected}'
  return ''


def check(
  params: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]], path: str | os.PathLike
) -> None:
  """Raises UserError unless parameters from `path` have the expected shapes (or the shapes of the expected arrays)."""
  found = {key: value.shape for key, value in _flatten(params).items()}
  wanted = {key: getattr(value, 'shape', value) for key, value in _flatten(expected).items()}
  if wrong := tensor_files.wrong_shape(found, wanted):
    raise UserError(f"'{path}' {wrong}; these are not the weights of the network it is meant for: {WAY_OUT}.")


def _check_header(path: str | os.PathLike, header: Mapping[str, str]) -> None:
  """Raises UserError unless a header is one that `save` writes."""
  missing = [key for key in ('format', 'sha256', 'provenance') if key not in header]
  if missing:
    raise UserError(f"'{path}' is no weight file of this package: its header lacks '{missing[0]}'; {WAY_OUT}.")
  if header['format'] != FORMAT:
    raise UserError(f"'{path}' has format {show(header['format'])}; this version reads '{FORMAT}': {WAY_OUT}.")
  try:
    provenance = untrusted.parse_json(header['provenance'])
  except untrusted.Unusable:
    provenance = None
  if not isinstance(provenance, dict):
    raise UserError(f"'{path}' is damaged: 'provenance' in its header is not a JSON object; get or make it again.")


def _flatten(params: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Module name -> parameter name -> value, as one dict with keys joined by a slash, in sorted order."""
  return {f'{module}/{name}': params[module][name] for module in sorted(params) for name in sorted(params[module])}
