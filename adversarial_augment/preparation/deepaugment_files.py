"""Writes DeepAugment sets piece by piece: several processes may share the work, and none is lost when one is killed.

While a set is made, its folder has images.npy in its full size, PLAN.json, which says what is being made, and
pieces/NUMBER.json with the hash of each piece that is on the disk. Whoever finds the last piece writes MANIFEST.json.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment import registry
from adversarial_augment.cli import progress
from adversarial_augment.datasets import cifar10_c, deepaugment_command, mixture, writer
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files, run_directory, untrusted
from adversarial_augment.types import Dataset

_PIECES = 'pieces'
_PIECE = 500  # images between two moments at which work is safe


class Share(NamedTuple):
  """Which pieces a process makes: every `processes`-th from the `process`-th on."""

  process: int = 0
  processes: int = 1


class Done(NamedTuple):
  written: int  # images, by this process
  missing: int  # images that other processes have yet to make; 0: the set is there


class _Piece(NamedTuple):
  number: int
  copy: int
  start: int  # the first of its training images
  stop: int


def write(
  folder: pathlib.Path,
  plan: Mapping[str, Any],
  train: Dataset,
  make: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
  *,
  share: Share = Share(),
  overwrite: bool = False,
) -> Done:
  """Writes what is missing of a set.

  Args:
    folder: of the set; see `mixture` for its files.
    plan: what the manifest will say beside the hashes, as JSON gives it back; `copies` among it.
    train: the training images.
    make: (images uint8 [k, h, w, 3], their indices [k], copy) -> uint8 [k, h, w, 3].
    share: of this process.
    overwrite: whether to replace a set that is whole, damaged or made otherwise, as soon as there is room for the new
      one; what another process has begun in the same way stays.

  Raises:
    UserError: another set is there, and `overwrite` is False.
    StorageError: the disk is full or not writable.
  """
  copies, n = plan['copies'], train.num_examples
  header = _header((copies * n, *train.image_shape))
  row = int(np.prod(train.image_shape))
  pieces = list(_pieces(copies, n))
  images, size, written = folder / mixture.IMAGES, len(header) + copies * n * row, 0
  with files.storage_errors(f"write in '{folder}'"):
    with _alone(folder):
      try:
        whole = _is_whole(folder, plan, train)
        begun = not whole and _is_begun(folder, header, size)
      except UserError:
        if not overwrite:
          raise
        whole = begun = False
      if whole and not overwrite:
        return Done(0, 0)
      if not begun:
        _begin(folder, plan, header, size)
    mine = [piece for piece in pieces[share.process :: share.processes] if not _is_made(folder, piece)]
    with images.open('r+b') as file, progress.images(sum(piece.stop - piece.start for piece in mine)) as advance:
      for piece in mine:
        if _is_made(folder, piece):  # by a process that shares the work otherwise
          continue
        index = np.arange(piece.start, piece.stop)
        content = make(train.read(index).images, index, piece.copy).tobytes()
        file.seek(len(header) + (piece.copy * n + piece.start) * row)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        files.crash_point('before_piece', piece.number)
        with _alone(folder):
          if not _is_whole(folder, plan, train):
            run_directory.write_json(_marker(folder, piece), {'sha256': hashlib.sha256(content).hexdigest()})
        files.crash_point('after_piece', piece.number)
        written += len(index)
        advance(f'copy {piece.copy + 1} of {copies}', len(index))
    with _alone(folder):
      missing = [piece for piece in pieces if not _is_made(folder, piece)]
      if not missing and not _is_whole(folder, plan, train):
        _finish(folder, plan, train, pieces, header, row)
  return Done(written, sum(piece.stop - piece.start for piece in missing))


def _pieces(copies: int, n: int) -> Iterator[_Piece]:
  starts = range(0, n, _PIECE)
  for copy in range(copies):
    for number, start in enumerate(starts, copy * len(starts)):
      yield _Piece(number, copy, start, min(start + _PIECE, n))


def _marker(folder: pathlib.Path, piece: _Piece) -> pathlib.Path:
  return folder / _PIECES / f'{piece.number:06d}.json'


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Waits for the moment in which no other process begins or finishes the set."""
  folder.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(folder / '.lock', os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _header(shape: tuple[int, ...]) -> bytes:
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(header, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
  return header.getvalue()


def _is_made(folder: pathlib.Path, piece: _Piece) -> bool:
  return _hash_of(folder, piece) is not None or (folder / mixture.MANIFEST).exists()


def _hash_of(folder: pathlib.Path, piece: _Piece) -> str | None:
  """Returns the hash of a piece, or None where it is yet to be made, or its marker was damaged."""
  try:
    return untrusted.read_json(_marker(folder, piece))['sha256']
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _is_whole(folder: pathlib.Path, plan: Mapping[str, Any], train: Dataset) -> bool:
  """Returns whether the set is there.

  Raises:
    UserError: there, or begun, is one that was made otherwise, or one that was damaged.
  """
  manifest, begun = folder / mixture.MANIFEST, folder / mixture.PLAN
  if manifest.exists():
    found = mixture.read_manifest(manifest)
    _check_same(found, plan, folder, train)
    mixture.check_sizes(folder, found, train.name)
    _tidy(folder)
    return True
  if begun.exists():
    _check_same(mixture.read_plan(begun), plan, folder, train)
  return False


def _is_begun(folder: pathlib.Path, header: bytes, size: int) -> bool:
  """Returns whether a set was begun, which is the wanted one.

  Raises:
    UserError: what it had is missing or damaged, beyond single pieces.
  """
  if not (folder / mixture.PLAN).exists():
    return False
  images = folder / mixture.IMAGES
  if images.is_file() and images.stat().st_size == size and (folder / _PIECES).is_dir():
    with images.open('rb') as file:
      if file.read(len(header)) == header:
        return True
  raise UserError(
    f"'{folder}' was begun, but its {mixture.IMAGES} or {_PIECES} are missing or damaged; start anew with the same "
    'command and --overwrite.'
  )


def _check_same(found: Mapping[str, Any], plan: Mapping[str, Any], folder: pathlib.Path, train: Dataset) -> None:
  """Refuses a set that was made, or begun (it has no hashes), otherwise."""
  old, new = (registry.flatten({key: about[key] for key in about if key != 'files'}) for about in (found, plan))
  others = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
  if not others:
    return
  key, way = others[0], 'use it as it is, '
  if 'files' not in found:
    by_flags = all(other.partition('.')[0] in deepaugment_command.FIELDS for other in others)
    way = f'go on with it by {deepaugment_command.command(folder, train.name, found)}, ' if by_flags else ''
  raise UserError(
    f"'{folder}' exists already, with {key} = {json.dumps(old.get(key))}, and now it would be "
    f'{json.dumps(new.get(key))}; {way}choose another --name, or replace it with --overwrite.'
  )


def _begin(folder: pathlib.Path, plan: Mapping[str, Any], header: bytes, size: int) -> None:
  """Makes images.npy in its full size and the plan; what was there goes when nothing is left that may fail."""
  writer.check_space(folder, size)
  fresh = folder / f'.{mixture.IMAGES}.tmp'
  fresh.unlink(missing_ok=True)
  try:
    with fresh.open('xb') as file:
      file.write(header)
      file.truncate(size)
      file.flush()
      os.fsync(file.fileno())
    for name in (mixture.MANIFEST, mixture.PLAN, _PIECES, *mixture.FILES):
      _remove(folder / name)
    fresh.rename(folder / mixture.IMAGES)  # a training run may still read the old one
  finally:
    fresh.unlink(missing_ok=True)
  (folder / _PIECES).mkdir()
  run_directory.write_json(folder / mixture.PLAN, plan)


def _remove(path: pathlib.Path) -> None:
  """Removes a file, or a folder with what is in it, which need not exist."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _finish(
  folder: pathlib.Path, plan: Mapping[str, Any], train: Dataset, pieces: list[_Piece], header: bytes, row: int
) -> None:
  """Hashes what is on the disk, and writes the rest and the manifest."""
  digest = hashlib.sha256(header)
  with (folder / mixture.IMAGES).open('rb') as file:
    file.seek(len(header))
    for piece in pieces:
      content = file.read((piece.stop - piece.start) * row)
      digest.update(content)
      if _hash_of(folder, piece) != hashlib.sha256(content).hexdigest():
        _marker(folder, piece).unlink()
        raise UserError(f"Piece {piece.number} of '{folder}' was damaged on the disk; the same command makes it again.")
  copies, n = plan['copies'], train.num_examples
  tables = {mixture.LABELS: cifar10_c.labels_of(train), mixture.INDEX: np.arange(n)}
  entries = {mixture.IMAGES: {'bytes': (folder / mixture.IMAGES).stat().st_size, 'sha256': digest.hexdigest()}}
  for name, values in tables.items():
    buffer = io.BytesIO()
    np.save(buffer, np.tile(values, copies).astype(np.int32))
    files.replace(folder / name, buffer.getvalue())
    entries[name] = {'bytes': len(buffer.getvalue()), 'sha256': hashlib.sha256(buffer.getvalue()).hexdigest()}
  files.crash_point('before_manifest')
  run_directory.write_json(folder / mixture.MANIFEST, dict(plan) | {'files': entries})
  files.crash_point('after_manifest')
  _tidy(folder)


def _tidy(folder: pathlib.Path) -> None:
  """Removes what only the making needs."""
  (folder / mixture.PLAN).unlink(missing_ok=True)
  shutil.rmtree(folder / _PIECES, ignore_errors=True)
