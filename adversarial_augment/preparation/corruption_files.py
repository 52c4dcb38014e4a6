"""Writes corrupted test sets, as .npy files or as TFDS's data sets; what is there already is not made again."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment import metrics
from adversarial_augment.cli import progress
from adversarial_augment.datasets import cifar10_c, npy, writer
from adversarial_augment.datasets.made_with import comparable
from adversarial_augment.datasets.sampling import batches
from adversarial_augment.datasets.source import PROVENANCE
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.storage import artifact, files
from adversarial_augment.types import Dataset

_AT_ONCE = 1 << 24  # bytes of images corrupted at once, so that every core has work
_FEWEST = 250  # images corrupted at once
_TFDS_NAMES = {'glass_blur': 'frosted_glass_blur', 'elastic_transform': 'elastic'}  # where TFDS spells them differently


class Corrupted(NamedTuple):
  """A corrupted test set that is to be written."""

  images: cifar10_c.CorruptionSet
  manifest: dict[str, Any]  # of the whole set: all but the files; as JSON gives it back
  notes: dict[str, dict[str, Any]]  # what the manifest has to say of single corruptions

  def hash_of(self, name: str) -> dict[str, str]:
    """Returns the 'sha256' of a corruption's .npy file, or {} where it is yet to be made."""
    file = f'{name}.npy'
    return {'sha256': self.images.sha256[file]} if file in self.images.sha256 else {}


class Done(NamedTuple):
  path: pathlib.Path
  num_written: int  # images; the others were there


def write_npy(corrupted: Corrupted, test: Dataset, data_dir: pathlib.Path, overwrite: bool) -> Done:
  """Writes DATA_DIR/DATASET_c/NAME.npy, labels.npy and MANIFEST.json, which lists what is wholly there.

  Each file is written beside its place, and renamed when it is whole and on the disk. A later call with the same
  manifest goes on with the first corruption that is missing.

  Args:
    corrupted: what to write.
    test: the test set, of which this is the corrupted form.
    data_dir: the folder of prepared data sets.
    overwrite: whether to make the named corruptions again, and to remove a set that was made otherwise.

  Raises:
    UserError: another set is there and `overwrite` is False, another process writes it, or reading the images fails.
    StorageError: the disk is full or not writable.
  """
  folder = data_dir / cifar10_c.folder_name(test.name)
  if corrupted.manifest['source'] == str(folder.resolve()):
    raise UserError(f"--from='{folder}' is where the set belongs, and is used as it is; there is nothing to import.")
  n = len(metrics.SEVERITIES) * test.num_examples
  with contextlib.ExitStack() as stack:
    stack.enter_context(artifact.storage_errors(f"write in '{folder}'"))
    absent = sum(not (folder / f'{name}.npy').exists() for name in corrupted.images.names)
    artifact.check_space(data_dir, (absent + overwrite) * n * int(np.prod(test.image_shape)) + (1 << 20))
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(artifact.lock(folder))
    written = _kept(folder, corrupted, test, overwrite)
    missing = [name for name in corrupted.images.names if f'{name}.npy' not in written]

    def list_written() -> None:
      artifact.write_json(folder / artifact.MANIFEST, corrupted.manifest | {'files': written})

    def add(name: str, dtype: type, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
      blocks = (np.ascontiguousarray(part).tobytes() for part in parts)
      entry = artifact.replace(folder / f'{name}.npy', itertools.chain([npy.header(dtype, shape)], blocks))
      written[f'{name}.npy'] = entry | corrupted.notes.get(name, {})
      list_written()

    list_written()  # before any file that it listed is replaced
    if cifar10_c.LABELS not in written:
      labels = np.tile(cifar10_c.labels_of(test), len(metrics.SEVERITIES))
      add('labels', np.int32, (n,), iter([labels.astype(np.int32)]))
    with progress.images(len(missing) * n) as advance:
      for name in missing:
        add(name, np.uint8, (n, *test.image_shape), _cells(corrupted.images, name, test, advance))
  return Done(folder, len(missing) * n)


def _cells(
  corrupted: cifar10_c.CorruptionSet, name: str, test: Dataset, advance: Callable[[str, int], None]
) -> Iterator[np.ndarray]:
  """Yields a corruption's images in the order of its file."""
  at_once = max(_FEWEST, _AT_ONCE // int(np.prod(test.image_shape)))
  for severity in metrics.SEVERITIES:
    for indices in batches(test.num_examples, at_once):
      yield corrupted.read(name, severity, indices)
      advance(f'{name} {severity}', len(indices))


def _kept(folder: pathlib.Path, corrupted: Corrupted, test: Dataset, overwrite: bool) -> dict[str, Any]:
  """Returns the manifest's entries of the files that stay, and removes what is in the way.

  Raises:
    ArtifactError: files of another set are there, and `overwrite` is False.
  """
  for remains in folder.glob('.*.npy.tmp'):  # of a start that was killed
    remains.unlink()
  try:
    found = _written(folder, corrupted.manifest, test)
  except ArtifactError:
    if not overwrite:
      raise
    for name in (artifact.MANIFEST, cifar10_c.LABELS, *(f'{name}.npy' for name in metrics.ALL_NAMES)):
      (folder / name).unlink(missing_ok=True)
    return {}
  for name in corrupted.images.names:
    file = f'{name}.npy'
    entry = found.pop(file, None)
    if entry and not overwrite:
      same = {key: entry[key] for key in ('bytes', 'sha256')} | corrupted.hash_of(name)  # generated ones have none yet
      artifact.check_same(folder, entry, same | corrupted.notes.get(name, {}))
      found[file] = entry
  return found


def _written(folder: pathlib.Path, expected: Mapping[str, Any], test: Dataset) -> dict[str, Any]:
  """Returns the manifest's entries of the files that are wholly there.

  Raises:
    ArtifactError: they were made otherwise, or nobody knows how.
  """
  path = folder / artifact.MANIFEST
  if not path.exists():
    if files.named(folder, '*.npy'):
      raise ArtifactError(
        f"'{folder}' has .npy files and no {path.name}, as the official files would", folder, remedy='use or replace'
      )
    return {}
  manifest = cifar10_c.read_manifest(npy.whole(path), folder, test.name)
  artifact.check_same(folder, comparable(manifest, 'corruptions'), comparable(expected, 'corruptions'))
  return {name: entry for name, entry in manifest['files'].items() if artifact.size_of(folder / name) == entry['bytes']}


def write_records(corrupted: Corrupted, test: Dataset, data_dir: pathlib.Path, overwrite: bool) -> Done:
  """Writes DATA_DIR/DATASET_corrupted/NAME_SEVERITY/1.0.0, which TFDS and `datasets.load` read.

  Each of them is there wholly or not at all; those that are there and were made in the same way are left alone.

  Args:
    corrupted: what to write.
    test: the test set, of which this is the corrupted form.
    data_dir: the folder of prepared data sets.
    overwrite: whether to replace what is there.

  Raises:
    UserError: others are there and `overwrite` is False, or reading the images fails.
    StorageError: the disk is full or not writable.
  """
  dataset = cifar10_c.folder_name(test.name).removesuffix('_c') + '_corrupted'
  n, labels = test.num_examples, cifar10_c.labels_of(test)
  missing = []
  for name, severity in itertools.product(corrupted.images.names, metrics.SEVERITIES):
    description = writer.Description(
      name=dataset,
      config=f'{_TFDS_NAMES.get(name, name)}_{severity}',
      version='1.0.0',  # of the TFDS builder whose layout this is
      text=f"The test split of '{test.name}' under the corruption {name} of severity {severity}.",
      class_names=test.class_names or tuple(map(str, range(test.num_classes))),
      image_shape=test.image_shape,
      origin=corrupted.images.origin,
      archive_sha256=None,
      made=_without_files(corrupted.manifest) | corrupted.hash_of(name) | corrupted.notes.get(name, {}),
    )
    if overwrite or not _is_whole(writer.folder_of(description, data_dir), description.made or {}):
      missing.append((name, severity, description))
  artifact.check_space(data_dir, writer.space_for(len(missing) * n, test.image_shape))
  at_once = max(_FEWEST, _AT_ONCE // int(np.prod(test.image_shape)))
  with progress.images(len(missing) * n) as advance:
    for name, severity, description in missing:
      advance(f'{name} {severity}', 0)
      images = itertools.chain.from_iterable(
        corrupted.images.read(name, severity, indices) for indices in batches(n, at_once)
      )
      writer.write(description, {'test': writer.Split(n, zip(images, labels, strict=True))}, data_dir, overwrite=True)
      advance(f'{name} {severity}', n)
  return Done(data_dir / dataset, len(missing) * n)


def _without_files(manifest: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in manifest.items() if key not in ('files', 'source')}


def _is_whole(folder: pathlib.Path, made: Mapping[str, Any]) -> bool:
  """Returns whether a data set is there with all its files.

  Raises:
    ArtifactError: it was made otherwise, or nobody knows how.
  """
  if not folder.exists():
    return False
  path = folder / PROVENANCE
  if not path.exists():
    raise ArtifactError(f"'{folder}' has no {path.name}, as where TFDS made it", folder, remedy='use or replace')
  found = artifact.read(path, lambda found: (found['made'].items(), found['bytes'].items()), remedy='replace')
  artifact.check_same(folder, comparable(found['made'], 'corruptions'), comparable(made, 'corruptions'))
  return all(artifact.size_of(folder / name) == size for name, size in found['bytes'].items())
