"""Writes DeepAugment sets piece by piece: several processes may share the work, and none is lost when one is killed.

While a set is made, its folder has images.npy in its full size, PLAN.json, which says what is being made, and
pieces/NUMBER.json with the hash of each piece that is on the disk. Whoever finds the last piece writes MANIFEST.json.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import hashlib
import io
import pathlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from adversarial_augment.cli import progress
from adversarial_augment.datasets import cifar10_c, mixture, npy
from adversarial_augment.datasets.made_with import comparable
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.storage import artifact, untrusted
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
    ArtifactError: another set is there, and `overwrite` is False.
    StorageError: the disk is full or not writable.
  """
  work, written = _Set(folder, plan, train), 0
  with artifact.storage_errors(f"write in '{folder}'"):
    folder.mkdir(parents=True, exist_ok=True)
    if work.begin(overwrite):
      return Done(0, 0)
    mine = [piece for piece in work.pieces[share.process :: share.processes] if not work.is_made(piece)]
    with work.images.open('r+b') as file, progress.images(sum(piece.stop - piece.start for piece in mine)) as advance:
      for piece in mine:
        if work.is_made(piece):  # by a process that shares the work otherwise
          continue
        index = np.arange(piece.start, piece.stop)
        work.put(file, piece, make(train.read(index).images, index, piece.copy).tobytes())
        written += len(index)
        advance(f'copy {piece.copy + 1} of {plan["copies"]}', len(index))
    missing = work.finish()
  return Done(written, sum(piece.stop - piece.start for piece in missing))


class _Set:
  """A set on its way."""

  def __init__(self, folder: pathlib.Path, plan: Mapping[str, Any], train: Dataset):
    copies, n = plan['copies'], train.num_examples
    self.folder, self.plan, self.train = folder, plan, train
    self.pieces = list(_pieces(copies, n))
    self.images = folder / mixture.IMAGES
    self._header, self._row = npy.header(np.uint8, (copies * n, *train.image_shape)), int(np.prod(train.image_shape))
    self._size = len(self._header) + copies * n * self._row

  def begin(self, overwrite: bool) -> bool:
    """Makes sure that the set was begun; returns whether it is whole.

    Raises:
      ArtifactError: what is there is damaged or another set, and `overwrite` is False.
    """
    with self._alone():
      try:
        whole = self._is_whole()
        begun = not whole and self._is_begun()
      except ArtifactError:
        if not overwrite:
          raise
        whole = begun = False
      if whole and not overwrite:
        return True
      if not begun:
        self._begin()
    return False

  def is_made(self, piece: _Piece) -> bool:
    return self._hash_of(piece) is not None or (self.folder / mixture.MANIFEST).exists()

  def put(self, file: BinaryIO, piece: _Piece, content: bytes) -> None:
    """Writes a piece to images.npy, and its marker when the piece is on the disk."""
    file.seek(len(self._header) + (piece.copy * self.train.num_examples + piece.start) * self._row)
    file.write(content)
    artifact.sync(file)
    with self._alone():
      if not self._is_whole():
        artifact.write_json(self._marker(piece), {'sha256': hashlib.sha256(content).hexdigest()})

  def finish(self) -> list[_Piece]:
    """Returns the pieces that are missing; where none is, the rest and the manifest are written."""
    with self._alone():
      missing = [piece for piece in self.pieces if not self.is_made(piece)]
      if not missing and not self._is_whole():
        self._check_pieces()
        labels, index = cifar10_c.labels_of(self.train), np.arange(self.train.num_examples)
        entries = {mixture.IMAGES: artifact.entry(self.images)}
        for name, values in ((mixture.LABELS, labels), (mixture.INDEX, index)):
          buffer = io.BytesIO()
          np.save(buffer, np.tile(values, self.plan['copies']).astype(np.int32))
          entries[name] = artifact.replace(self.folder / name, buffer.getvalue())
        artifact.write_json(self.folder / mixture.MANIFEST, dict(self.plan) | {'files': entries})
        self._tidy()
    return missing

  def _alone(self) -> contextlib.AbstractContextManager[None]:
    """Waits for the moment in which no other process begins or finishes the set."""
    return artifact.lock(self.folder, wait=True)

  def _marker(self, piece: _Piece) -> pathlib.Path:
    return self.folder / _PIECES / f'{piece.number:06d}.json'

  def _hash_of(self, piece: _Piece) -> str | None:
    """Returns the hash of a piece, or None where it is yet to be made, or its marker was damaged."""
    try:
      return untrusted.read_json(self._marker(piece))['sha256']
    except (OSError, ValueError, KeyError, TypeError):
      return None

  def _is_whole(self) -> bool:
    """Returns whether the set is there.

    Raises:
      ArtifactError: there, or begun, is one that was made otherwise, or one that was damaged.
    """
    manifest, begun, name = self.folder / mixture.MANIFEST, self.folder / mixture.PLAN, self.train.name
    if manifest.exists():
      found = mixture.read_manifest(manifest, name)
      self._check_same(found, 'use or replace')
      mixture.check_files(self.folder, found, name, hashed=False)
      self._tidy()
      return True
    if begun.exists():
      self._check_same(mixture.read_plan(begun, name), 'resume or replace')
    return False

  def _is_begun(self) -> bool:
    """Returns whether a set was begun, which is the wanted one.

    Raises:
      ArtifactError: what it had is missing or damaged, beyond single pieces.
    """
    if not (self.folder / mixture.PLAN).exists():
      return False
    if artifact.size_of(self.images) == self._size and (self.folder / _PIECES).is_dir():
      with self.images.open('rb') as file:
        if file.read(len(self._header)) == self._header:
          return True
    facts = f"'{self.folder}' was begun, but its {mixture.IMAGES} or {_PIECES} are missing or damaged"
    raise ArtifactError(facts, self.folder, mixture.KIND, 'begin anew', {'dataset': self.train.name})

  def _check_same(self, found: Mapping[str, Any], remedy: str) -> None:
    """Refuses a set that was made, or begun, otherwise."""
    was, now = (comparable(one, 'deepaugment') for one in (found, self.plan))
    about = {'dataset': self.train.name, 'made': found, 'differing': list(artifact.differences(was, now))}
    artifact.check_same(self.folder, was, now, kind=mixture.KIND, remedy=remedy, about=about)

  def _begin(self) -> None:
    """Makes images.npy in its full size and the plan; what was there goes when nothing is left that may fail."""
    artifact.check_space(self.folder, self._size)
    with artifact.writing(self.images) as file:  # a training run may still read the old one
      file.write(self._header)
      file.truncate(self._size)
      artifact.sync(file)
      for name in (mixture.MANIFEST, mixture.PLAN, _PIECES, *mixture.FILES):
        artifact.delete(self.folder / name)
    (self.folder / _PIECES).mkdir()
    artifact.write_json(self.folder / mixture.PLAN, self.plan)

  def _check_pieces(self) -> None:
    """Compares what is on the disk with the markers."""
    with self.images.open('rb') as file:
      file.seek(len(self._header))
      for piece in self.pieces:
        content = file.read((piece.stop - piece.start) * self._row)
        if self._hash_of(piece) != hashlib.sha256(content).hexdigest():
          self._marker(piece).unlink()
          raise UserError(
            f"Piece {piece.number} of '{self.folder}' was damaged on the disk; the same command makes it again."
          )

  def _tidy(self) -> None:
    """Removes what only the making needs."""
    artifact.delete(self.folder / mixture.PLAN)
    artifact.delete(self.folder / _PIECES)


def _pieces(copies: int, n: int) -> Iterator[_Piece]:
  starts = range(0, n, _PIECE)
  for copy in range(copies):
    for number, start in enumerate(starts, copy * len(starts)):
      yield _Piece(number, copy, start, min(start + _PIECE, n))
