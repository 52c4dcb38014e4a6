"""Writes a data set as TFDS would prepare it (ArrayRecord files of PNG images), with no TensorFlow."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import io
import itertools
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from adversarial_augment.cli import progress
from adversarial_augment.datasets.fingerprint import fingerprint
from adversarial_augment.datasets.source import PROVENANCE
from adversarial_augment.errors import ArtifactError
from adversarial_augment.storage import artifact
from adversarial_augment.types import Batch

_CHUNK = 500  # examples serialised at once; TFDS rewrites its JSON files after each chunk
_SHARD = 100_000  # examples a file


class Description(NamedTuple):
  """What is known of a data set beside its examples."""

  name: str
  version: str  # '1.0.0'
  text: str
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  origin: str  # official, generated, own, unverified
  archive_sha256: str | None
  has_ids: bool = False  # a feature 'id' such as train_00001, as TFDS's own CIFAR-10 has it
  config: str | None = None  # of TFDS, such as fog_1 of cifar10_corrupted
  made: Mapping[str, Any] | None = None  # how the images were made, JSON; kept in provenance.json


class Split(NamedTuple):
  num_examples: int
  examples: Iterable[tuple[np.ndarray, int]]  # image uint8 [h, w, 3] and label, read once, in order


def folder_of(description: Description, data_dir: pathlib.Path) -> pathlib.Path:
  """Returns where `write` puts the data set."""
  return data_dir / description.name / (description.config or '') / description.version


def check_target(description: Description, data_dir: pathlib.Path, num_examples: int, overwrite: bool) -> None:
  """Looks, before any work, whether `write` can succeed.

  Raises:
    UserError: the data set exists, and `overwrite` is False.
    StorageError: the disk has no room, or cannot be looked at.
  """
  folder = folder_of(description, data_dir)
  with artifact.storage_errors(f"write under '{data_dir}'"):
    exists = folder.exists()
  if exists and not overwrite:
    raise ArtifactError(f"'{folder}' exists already", folder, remedy='use or replace')
  artifact.check_space(data_dir, space_for(num_examples, description.image_shape))


def space_for(num_examples: int, image_shape: tuple[int, int, int]) -> int:
  """Returns how many bytes so many examples may need, as if PNG saved nothing."""
  return int(num_examples * (np.prod(image_shape) + 256) * 1.1) + (1 << 20)


def write(
  description: Description, splits: Mapping[str, Split], data_dir: pathlib.Path, overwrite: bool = False
) -> pathlib.Path:
  """Writes all splits into a temporary folder, and then renames it: the data set is there wholly, or not at all.

  Args:
    description: goes into TFDS's metadata and, with the hash of each split, into provenance.json beside it.
    splits: by name, such as 'train' and 'test'.
    data_dir: the folder of prepared data sets.
    overwrite: whether to replace an existing data set.

  Returns:
    The folder DATA_DIR/NAME/VERSION, or DATA_DIR/NAME/CONFIG/VERSION.

  Raises:
    UserError: the data set exists, and `overwrite` is False; or what reading an example raises.
    StorageError: the disk is full or not writable.
  """
  check_target(description, data_dir, sum(split.num_examples for split in splits.values()), overwrite)
  folder = folder_of(description, data_dir)
  with contextlib.ExitStack() as stack:
    stack.enter_context(artifact.storage_errors(f"write under '{data_dir}'"))
    data_dir.mkdir(parents=True, exist_ok=True)
    scratch = stack.enter_context(_scratch(folder, data_dir))
    fresh = scratch / 'new'
    fresh.mkdir()
    hashes = _write_records(description, splits, fresh)
    content = {'origin': description.origin, 'archive_sha256': description.archive_sha256, 'sha256': hashes}
    sizes = {path.name: artifact.size_of(path) for path in fresh.iterdir()}
    made = {'made': description.made, 'bytes': sizes} if description.made else {}
    (fresh / PROVENANCE).write_text(json.dumps(content | made, indent=2) + '\n')
    folder.parent.mkdir(parents=True, exist_ok=True)
    artifact.commit_folder(fresh, folder, scratch / 'old')
  return folder


@contextlib.contextmanager
def _scratch(folder: pathlib.Path, data_dir: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a temporary folder of one data set's own, emptied of what a start that was killed has left there.

  Raises:
    UserError: another process writes the same data set.
  """
  scratch = data_dir / f'.incomplete-{"-".join(folder.relative_to(data_dir).parts)}'
  scratch.mkdir(exist_ok=True)
  with artifact.lock(scratch):
    for remains in ('new', 'old'):
      shutil.rmtree(scratch / remains, ignore_errors=True)
    try:
      yield scratch
    finally:
      shutil.rmtree(scratch, ignore_errors=True)


def _write_records(description: Description, splits: Mapping[str, Split], folder: pathlib.Path) -> dict[str, str]:
  """Returns the fingerprint of each split."""
  import tensorflow_datasets as tfds

  features = {
    'image': tfds.features.Image(shape=description.image_shape, encoding_format='png'),
    'label': tfds.features.ClassLabel(names=list(description.class_names)),
  }
  if description.has_ids:
    features['id'] = tfds.features.Text()
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=description.name,
      version=tfds.core.Version(description.version),
      data_dir=str(folder),
      module_name=description.name,
      config_name=description.config,
    ),
    features=tfds.features.FeaturesDict(features),
    supervised_keys=('image', 'label'),
    description=description.text,
  )
  records = tfds.core.SequentialWriter(info, max_examples_per_shard=_SHARD, file_format='array_record')
  records.initialize_splits(list(splits))
  hashes = {}
  for name, split in splits.items():
    with progress.images(split.num_examples) as advance:

      def written(
        name: str = name, split: Split = split, advance: Callable[[str, int], None] = advance
      ) -> Iterator[Batch]:
        examples = iter(split.examples)
        number = 0
        while chunk := list(itertools.islice(examples, _CHUNK)):
          batch = Batch(np.stack([image for image, _ in chunk]), np.array([label for _, label in chunk], np.int32))
          rows = [
            {'image': _png(image), 'label': int(label)} | ({'id': f'{name}_{i:05d}'} if description.has_ids else {})
            for i, (image, label) in enumerate(chunk, start=number)
          ]
          records.add_examples({name: rows})
          number += len(chunk)
          advance(name, len(chunk))
          yield batch

      hashes[name] = fingerprint(written())
  records.close_all()
  return hashes


def _png(image: np.ndarray) -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  file.seek(0)
  return file
