"""Writes DeepAugment sets piece by piece: several processes may share the work, and a kill loses only one piece.

While a set is made, its folder has images.npy in its full size, PLAN.json, which says what is being made, and
pieces/NUMBER.json with the hash of each finished piece. The process that finds no missing piece writes MANIFEST.json.
"""

from collections.abc import Callable, Mapping
import contextlib
import hashlib
import io
import math
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from adversarial_augment.cli import progress
from adversarial_augment.datasets import arrays, mixture
from adversarial_augment.datasets.manifests import comparable
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.storage import artifact, untrusted
from adversarial_augment.types import Dataset

_PIECES = 'pieces'
_PIECE = 500  # images; work is safe once a piece is complete


class _Piece(NamedTuple):
  number: int
  copy: int
  rows: np.ndarray  # of its training images, int [k]


def write(
  folder: Path,
  plan: Mapping[str, Any],
  train: Dataset,
  make: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
  *,
  share: tuple[int, int] = (0, 1),
  overwrite: bool = False,
) -> tuple[int, int]:
  """Writes what is missing of a set.

  Args:
    folder: of the set; see `mixture` for its files.
    plan: the manifest without hashes, as JSON has it.
    train: the training images.
    make: (images uint8 [k, h, w, 3], their indices [k], copy) -> uint8 [k, h, w, 3].
    share: (i, n): this process makes every n-th piece from the i-th on.
    overwrite: replaces a set that is complete, damaged or made otherwise, once there is room for the new one; what
      another process has begun in the same way stays.

  Returns:
    How many images this process has written, and how many are left to others; 0: the set is complete.
  """
  work, written = _Set(folder, plan, train), 0
  with artifact.storage_errors(f"write in '{folder}'"):
    folder.mkdir(parents=True, exist_ok=True)
    if work.begin(overwrite):
      return 0, 0
    mine = [piece for piece in work.pieces[share[0] :: share[1]] if not work.is_made(piece)]
    with work.images.open('r+b') as file, progress.images(sum(len(piece.rows) for piece in mine)) as advance:
      for piece in mine:
        if work.is_made(piece):  # by a process that shares the work otherwise
          continue
        work.put(file, piece, make(train.read(piece.rows).images, piece.rows, piece.copy).tobytes())
        written += len(piece.rows)
        advance(f'copy {piece.copy + 1} of {plan["copies"]}', len(piece.rows))
    missing = work.finish()
  return written, sum(len(piece.rows) for piece in missing)


class _Set:
  """A set that is being made."""

  def __init__(self, folder: Path, plan: Mapping[str, Any], train: Dataset):
    copies, n = plan['copies'], train.num_examples
    self.folder, self.plan, self.train = folder, plan, train
    self.images, self._manifest, self._plan = folder / mixture.IMAGES, folder / mixture.MANIFEST, folder / mixture.PLAN
    places = [(copy, start) for copy in range(copies) for start in range(0, n, _PIECE)]
    self.pieces = [
      _Piece(number, copy, np.arange(start, min(start + _PIECE, n))) for number, (copy, start) in enumerate(places)
    ]
    self._header, self._row = arrays.header(np.uint8, (copies * n, *train.image_shape)), math.prod(train.image_shape)
    self._size = len(self._header) + copies * n * self._row

  def begin(self, overwrite: bool) -> bool:
    """Begins the set if necessary; returns whether it is complete."""
    with self._lock():
      try:
        complete = self._is_complete()
        begun = not complete and self._is_begun()
      except ArtifactError:
        if not overwrite:
          raise
        complete = begun = False
      if complete and not overwrite:
        return True
      if not begun:
        self._begin()
    return False

  def is_made(self, piece: _Piece) -> bool:
    return self._hash_of(piece) is not None or self._manifest.exists()

  def put(self, file: BinaryIO, piece: _Piece, content: bytes) -> None:
    """Writes a piece to images.npy, and its marker once the piece is on the disk."""
    file.seek(len(self._header) + (piece.copy * self.train.num_examples + int(piece.rows[0])) * self._row)
    file.write(content)
    artifact.sync(file)
    with self._lock():
      if not self._is_complete():
        artifact.write_json(self._marker(piece), {'sha256': hashlib.sha256(content).hexdigest()})

  def finish(self) -> list[_Piece]:
    """Returns the missing pieces; if there are none, writes the rest and the manifest."""
    with self._lock():
      missing = [piece for piece in self.pieces if not self.is_made(piece)]
      if not missing and not self._is_complete():
        self._check_pieces()
        entries = {mixture.IMAGES: artifact.entry(self.images)}
        labels, index = arrays.labels_of(self.train), np.arange(self.train.num_examples)
        for name, values in ((mixture.LABELS, labels), (mixture.INDEX, index)):
          buffer = io.BytesIO()
          np.save(buffer, np.tile(values, self.plan['copies']).astype(np.int32))
          entries[name] = artifact.replace(self.folder / name, buffer.getvalue())
        artifact.write_json(self._manifest, {**self.plan, 'files': entries})
        self._delete(mixture.PLAN, _PIECES)
    return missing

  def _lock(self) -> contextlib.AbstractContextManager[None]:
    """Waits until no other process begins or finishes the set."""
    return artifact.lock(self.folder, wait=True)

  def _marker(self, piece: _Piece) -> Path:
    return self.folder / _PIECES / f'{piece.number:06d}.json'

  def _hash_of(self, piece: _Piece) -> str | None:
    """Returns the hash of a piece, or None if it is missing or its marker is damaged."""
    try:
      return untrusted.read_json(self._marker(piece))['sha256']
    except (OSError, ValueError, KeyError, TypeError):
      return None

  def _is_complete(self) -> bool:
    """Returns whether the set is complete; raises ArtifactError if the one here is damaged or another one."""
    name = self.train.name
    if self._manifest.exists():
      found = mixture.read_manifest(self._manifest, name)
      self._check_same(found, 'use or replace')
      mixture.check_files(self.folder, found, name, hashed=False)
      self._delete(mixture.PLAN, _PIECES)  # of a process that was killed before it did
      return True
    if self._plan.exists():
      self._check_same(mixture.read_plan(self._plan, name), 'resume or replace')
    return False

  def _is_begun(self) -> bool:
    """Returns whether the set was begun; raises ArtifactError if more of it than single pieces is damaged."""
    if not self._plan.exists():
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
    """Makes images.npy in its full size and the plan; the old set is deleted when nothing is left that may fail."""
    artifact.check_space(self.folder, self._size)
    with artifact.writing(self.images) as file:  # a training run may still read the old one
      file.write(self._header)
      file.truncate(self._size)
      artifact.sync(file)
      self._delete(mixture.MANIFEST, mixture.PLAN, _PIECES, *mixture.FILES)
    (self.folder / _PIECES).mkdir()
    artifact.write_json(self._plan, self.plan)

  def _check_pieces(self) -> None:
    """Compares what is on the disk with the markers."""
    with self.images.open('rb') as file:
      file.seek(len(self._header))
      for piece in self.pieces:
        content = file.read(len(piece.rows) * self._row)
        if self._hash_of(piece) != hashlib.sha256(content).hexdigest():
          self._marker(piece).unlink()
          raise UserError(
            f"Piece {piece.number} of '{self.folder}' was damaged on the disk; the same command makes it again."
          )

  def _delete(self, *names: str) -> None:
    for name in names:
      artifact.delete(self.folder / name)
