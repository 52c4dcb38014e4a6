"""The manifest of a checkpoint: a hash of every file, and of itself, so that damage of any byte is found.

The manifest's bytes are the canonical JSON of its content; its own hash therefore covers every one of them.
"""

from collections.abc import Mapping
import hashlib
import json
import os
from pathlib import Path
import re
from typing import Any

from adversarial_augment.storage import untrusted

NAME = 'MANIFEST.json'
FORMAT = 2  # 1 had an array for each leaf
_CHUNK = 1 << 22  # bytes
_MAX_LINES = 10**7  # of a log
_DTYPE = re.compile(r'bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16')


class Damaged(Exception):
  """A checkpoint that must not be used; the message is `<reason> in <file>`."""


def canonical(value: Any) -> bytes:
  """Returns the one JSON spelling of `value`: sorted keys, no spaces."""
  return json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False).encode()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `content` with the hash of all its fields."""
  return {**content, 'manifest_sha256': hashlib.sha256(canonical(content)).hexdigest()}


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
  """Returns {relative path: {bytes, sha256}} of every file below `folder` but the manifest."""
  return {name: {'bytes': path.stat().st_size, 'sha256': _sha256(path)} for name, path in _files(folder).items()}


def verify(folder: Path, step: int) -> dict[str, Any]:
  """Returns the manifest of the checkpoint `step` in `folder`, every byte of which is as it was written.

  Raises:
    Damaged: a byte, a file or the step is not; names the first file.
  """
  name = NAME
  try:
    manifest = _parse(untrusted.read_bytes(folder / NAME, untrusted.MAX_JSON))
    if manifest['format'] not in range(1, FORMAT + 1):
      raise Damaged(f'unknown format {manifest["format"]} in {NAME}')
    if manifest['step'] != step:
      raise Damaged(f'step {manifest["step"]} in {NAME}')
    files, expected = _files(folder), manifest['files']
    for name in sorted(expected):
      if name not in files:
        raise Damaged(f'missing file in {name}')
      if files[name].stat().st_size != expected[name]['bytes']:
        raise Damaged(f'wrong size in {name}')
      if _sha256(files[name]) != expected[name]['sha256']:
        raise Damaged(f'sha256 mismatch in {name}')
  except untrusted.Unusable as error:
    raise Damaged(f'{error} in {name}') from error
  except OSError as error:
    raise Damaged(f'{error.strerror or error} in {name}') from error
  return manifest


def _parse(content: bytes) -> dict[str, Any]:
  """The manifest, if its bytes are the canonical ones of a sealed manifest."""
  try:
    manifest = untrusted.parse_json(content)
    body = {field: value for field, value in manifest.items() if field != 'manifest_sha256'}
    intact = canonical(seal(body)) == content
  except (ValueError, AttributeError) as error:  # no JSON, or JSON that is no object
    raise Damaged(f'no manifest in {NAME}') from error
  if not intact:
    raise Damaged(f'sha256 mismatch in {NAME}')
  try:  # whoever sealed it need not have been a run
    for name in ('config_sha256', 'state_sha256'):
      _require(isinstance(manifest[name], str))
    for file in manifest['files'].values():
      _require(isinstance(file['bytes'], int) and isinstance(file['sha256'], str))
    for shape, dtype in manifest['leaves'].values():
      _require(all(type(size) is int and 0 < size < 2**48 for size in shape) and _DTYPE.fullmatch(dtype))
    before = lines = 0
    for first, last, distance in manifest.get('log', ()):  # older ones have none
      _require(all(type(number) is int for number in (first, last, distance)))
      _require(before < first <= last <= manifest['step'] and distance > 0)
      before, lines = last, lines + (last - first) // distance + 1
    _require(lines <= _MAX_LINES)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Damaged(f'a field that is missing or of another type in {NAME}') from error
  return manifest


def _require(right: Any) -> None:
  if not right:
    raise ValueError


def _files(folder: Path) -> dict[str, Path]:
  """Every file below `folder` but the manifest, by its relative path."""
  paths = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
  files = {path.relative_to(folder).as_posix(): path for path in paths}
  files.pop(NAME, None)
  return files


def _sha256(path: Path) -> str:
  digest = hashlib.sha256()
  with untrusted.open_file(path) as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()
