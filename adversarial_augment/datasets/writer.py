"""Writes a data set in TFDS's layout (ArrayRecord files of PNG images), without TensorFlow."""

from collections.abc import Iterable, Iterator, Mapping
import io
import itertools
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from adversarial_augment.cli import progress
from adversarial_augment.datasets.arrays import fingerprint
from adversarial_augment.datasets.source import PROVENANCE
from adversarial_augment.errors import ArtifactError
from adversarial_augment.storage import artifact
from adversarial_augment.types import Batch

_CHUNK = 500  # examples serialised at once; TFDS rewrites its JSON files after each chunk
_SHARD = 100_000  # examples a file


class Description(NamedTuple):
  """The metadata of a data set."""

  name: str
  version: str  # '1.0.0'
  text: str
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  origin: str  # official, generated, own, unverified
  archive_sha256: str | None
  has_ids: bool = False  # a feature 'id' such as train_00001, as TFDS's own CIFAR-10 has it
  config: str | None = None  # of TFDS, such as fog_1 of cifar10_corrupted
  made: Mapping[str, Any] | None = None  # how the images were made, for provenance.json


class Split(NamedTuple):
  num_examples: int
  examples: Iterable[tuple[np.ndarray, int]]  # image uint8 [h, w, 3] and label, read once, in order


def folder_of(description: Description, data_dir: pathlib.Path) -> pathlib.Path:
  """Returns where `write` puts the data set."""
  return data_dir / description.name / (description.config or '') / description.version


def check_target(description: Description, data_dir: pathlib.Path, num_examples: int, overwrite: bool) -> None:
  """Raises an error, before any work, if the data set exists and `overwrite` is False, or if the disk has no room."""
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
  """Writes all splits into a temporary folder, renames it when it is complete, and returns its path.

  Args:
    description: goes into TFDS's metadata and, with the hash of each split, into provenance.json beside it.
    splits: by name, such as 'train' and 'test'.
    data_dir: the folder of prepared data sets.
    overwrite: whether to replace an existing data set.

  Raises:
    UserError: the data set exists and `overwrite` is False, another process writes it, or an example cannot be read.
    StorageError: the disk is full or not writable.
  """
  check_target(description, data_dir, sum(split.num_examples for split in splits.values()), overwrite)
  folder = folder_of(description, data_dir)
  scratch = data_dir / f'.incomplete-{"-".join(folder.relative_to(data_dir).parts)}'
  with artifact.storage_errors(f"write under '{data_dir}'"):
    scratch.mkdir(parents=True, exist_ok=True)
    with artifact.lock(scratch):
      for remains in ('new', 'old'):  # of a process that was killed
        shutil.rmtree(scratch / remains, ignore_errors=True)
      try:
        fresh = scratch / 'new'
        fresh.mkdir()
        hashes = _write_records(description, splits, fresh)
        content = {'origin': description.origin, 'archive_sha256': description.archive_sha256, 'sha256': hashes}
        sizes = {path.name: artifact.size_of(path) for path in fresh.iterdir()}
        made = {'made': description.made, 'bytes': sizes} if description.made else {}
        (fresh / PROVENANCE).write_text(json.dumps(content | made, indent=2) + '\n')
        folder.parent.mkdir(parents=True, exist_ok=True)
        artifact.commit_folder(fresh, folder, scratch / 'old')
      finally:
        shutil.rmtree(scratch, ignore_errors=True)
  return folder


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
  hashes = {name: fingerprint(_add(records, name, split, description.has_ids)) for name, split in splits.items()}
  records.close_all()
  return hashes


def _add(records: Any, name: str, split: Split, has_ids: bool) -> Iterator[Batch]:
  """Writes the examples of a split with a TFDS writer, and yields them."""
  examples, number = iter(split.examples), 0
  with progress.images(split.num_examples) as advance:
    while chunk := list(itertools.islice(examples, _CHUNK)):
      ids = [{'id': f'{name}_{i:05d}'} if has_ids else {} for i in range(number, number + len(chunk))]
      rows = [
        {'image': _png(image), 'label': int(label)} | more for (image, label), more in zip(chunk, ids, strict=True)
      ]
      records.add_examples({name: rows})
      number += len(chunk)
      advance(name, len(chunk))
      yield Batch(np.stack([image for image, _ in chunk]), np.array([label for _, label in chunk], np.int32))


def _png(image: np.ndarray) -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  file.seek(0)
  return file
