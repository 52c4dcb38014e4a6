"""Reads data sets that TFDS or `prepare` wrote as ArrayRecord files, with no TensorFlow."""

import io
import pathlib
import re
from typing import Any

import numpy as np
from PIL import Image

from adversarial_augment import files, untrusted
from adversarial_augment.datasets.commands import prepare
from adversarial_augment.datasets.fingerprint import fingerprint
from adversarial_augment.datasets.reasons import one_line
from adversarial_augment.datasets.sampling import batches
from adversarial_augment.errors import UserError
from adversarial_augment.metrics import generated_origin
from adversarial_augment.registry import did_you_mean
from adversarial_augment.types import Batch, Dataset

PROVENANCE = 'provenance.json'  # written by `prepare` beside the data
_NAME = re.compile(r'[a-z][a-z0-9_]*(/[A-Za-z0-9_.\-]+)?(:\d+\.\d+\.\d+)?')
_CHUNK = 1000  # records read at once


def load(name: str, split: str, data_dir: str) -> Dataset:
  """Returns one split of a prepared data set, wholly in memory.

  Args:
    name: 'name', 'name/config', each also with ':1.2.3' at its end; without a version, the newest prepared one.
    split: 'train', 'test', or another of its splits.
    data_dir: the folder that holds DIR/name/version.

  Raises:
    UserError: no such data set or split; not ArrayRecord; not uint8 RGB images of one size with labels in range; or a
      file is damaged.
  """
  folder = _folder(name, data_dir)
  label = f"Data set '{name}' in '{folder}'"
  builder = _builder(folder, label)
  names = _class_names(builder, label)
  splits = builder.info.splits
  if split not in splits:
    raise UserError(f"{label} has no split '{split}'; it has: {', '.join(sorted(splits)) or 'none'}.")
  images, labels = _read(builder, split, label)
  if labels.min() < 0 or labels.max() >= len(names):
    raise UserError(
      f"{label}: labels of split '{split}' run from {labels.min()} to {labels.max()}, but must lie in "
      f'[0, {len(names)}); prepare it again.'
    )

  def read(indices: np.ndarray) -> Batch:
    return Batch(images[indices], labels[indices])

  return Dataset(
    name=name,
    num_examples=len(labels),
    num_classes=len(names),
    image_shape=(images.shape[1], images.shape[2], 3),
    read=read,
    provenance=_provenance(folder, split, builder.info.full_name, fingerprint([Batch(images, labels)]), label),
    class_names=() if names == tuple(map(str, range(len(names)))) else names,  # TFDS numbers what has no names
  )


def _folder(name: str, data_dir: str) -> pathlib.Path:
  """Returns the folder of the wanted version, or of the newest."""
  if not _NAME.fullmatch(name):
    raise UserError(f"dataset='{name}' must look like cifar10, name/config or cifar10:3.0.2; name a data set so.")
  root = files.user_path(data_dir, 'data_dir')
  stem, _, version = name.partition(':')
  versions = {
    tuple(map(int, path.name.split('.'))): path
    for path in (root / stem).glob('*')
    if re.fullmatch(r'\d+\.\d+\.\d+', path.name) and (path / 'dataset_info.json').is_file()
  }
  if not versions:
    hint = did_you_mean(stem, [path.name for path in root.glob('*/') if path.name != stem])
    raise UserError(
      f"No data set '{stem}' under data_dir='{data_dir}'{'' if root.is_dir() else ', which does not exist'}; make it "
      f"with {_preparation(stem, data_dir)}, or use the data set 'embedded'.{hint}"
    )
  wanted = tuple(map(int, version.split('.'))) if version else max(versions)
  if wanted not in versions:
    have = ', '.join('.'.join(map(str, known)) for known in sorted(versions))
    raise UserError(f"Data set '{stem}' under '{data_dir}' has no version {version}; it has: {have}.")
  return versions[wanted]


def _preparation(stem: str, data_dir: str) -> str:
  """Returns how a data set that is missing comes about."""
  base, _, variant = stem.partition('/')
  if base == 'cifar10':
    return prepare(data_dir, 'cifar10')
  if base == 'cifar10_1':
    return prepare(data_dir, 'cifar10_1', '--from=FOLDER')
  if base.endswith('_corrupted'):
    return prepare(data_dir, 'cifar10_c', f'--dataset={base.removesuffix("_corrupted")}', '--format=array_record')
  if variant:
    return "tfds's download_and_prepare(file_format='array_record')"
  return prepare(data_dir, 'images', f'--name={base}', '--from=FOLDER')


def _builder(folder: pathlib.Path, label: str) -> Any:
  """Returns the TFDS builder of a prepared data set."""
  import tensorflow_datasets as tfds  # takes half a second

  try:
    builder = tfds.builder_from_directory(str(folder))
  except Exception as error:  # of many kinds: TFDS parses two JSON files and imports what they name
    raise UserError(f'{label} cannot be opened ({one_line(error)}); prepare it again.') from error
  file_format = builder.info.file_format
  if file_format is None or file_format.value != 'array_record':
    raise UserError(
      f'{label} is stored as {file_format and file_format.value}, but must be array_record; prepare it again with '
      "tfds's download_and_prepare(file_format='array_record') or with adversarial_augment.prepare."
    )
  return builder


def _class_names(builder: Any, label: str) -> tuple[str, ...]:
  """Returns the names of the classes, their numbers where they have none, after a look at 'image' and 'label'."""
  features = builder.info.features
  missing = [key for key in ('image', 'label') if key not in features]
  if missing:
    raise UserError(f"{label} has no feature '{missing[0]}'; it has: {', '.join(sorted(features))}.")
  image = features['image']
  if image.np_dtype != np.uint8 or len(image.shape) != 3 or image.shape[-1] != 3:
    raise UserError(
      f'{label} holds images of shape {image.shape} and type {np.dtype(image.np_dtype).name}, but must hold RGB '
      'uint8 [height, width, 3]; bring it in as a folder of images (prepare images).'
    )
  if getattr(features['label'], 'num_classes', None) is None:
    raise UserError(f"{label}: feature 'label' must be a ClassLabel, not {type(features['label']).__name__}.")
  return tuple(features['label'].names)


def _read(builder: Any, split: str, label: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns all images, uint8 [n, h, w, 3], and labels, int32 [n]."""
  import tensorflow_datasets as tfds

  expected = builder.info.splits[split].num_examples
  if not expected:
    raise UserError(f"{label}: split '{split}' is empty; prepare it again.")
  images = np.empty(0, np.uint8)  # until the first image tells the size
  labels = np.empty(expected, np.int32)
  try:
    # Pillow, not TFDS, decodes: twice as fast, and the same whether OpenCV is installed or not.
    source = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
    for chunk in batches(expected, _CHUNK):
      records = source.__getitems__(chunk.tolist())
      for i, record in zip(chunk, records, strict=True):
        with Image.open(io.BytesIO(record['image'])) as file:
          image = np.asarray(file)
        if i == 0:
          images = np.empty((expected, *image.shape), np.uint8)
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or image.shape != images.shape[1:]:
          raise UserError(
            f"{label}: image {i} of split '{split}' has shape {image.shape} and type {image.dtype}, but all must be "
            'uint8 RGB of one size; bring them in as a folder of images (prepare images).'
          )
        images[i], labels[i] = image, record['label']
  except UserError:
    raise
  except Exception as error:  # whatever a damaged file makes the readers of ArrayRecord, protobuf and PNG raise
    raise UserError(
      f"{label}: the files of split '{split}' are damaged ({one_line(error)}); prepare it again."
    ) from error
  return images, labels


def _provenance(folder: pathlib.Path, split: str, full_name: str, sha256: str, label: str) -> dict[str, Any]:
  """Returns where the split comes from; what `prepare` wrote about it must agree with what was read."""
  found: dict[str, Any] = {
    'name': full_name.replace('/', ':', 1), 'split': split, 'origin': 'unverified', 'archive_sha256': None,
    'sha256': sha256,
  }  # fmt: skip
  path = folder / PROVENANCE
  if not path.exists():
    return found
  try:
    stored = untrusted.read_json(path)
    expected = stored['sha256'][split]
    found |= {key: stored[key] for key in ('origin', 'archive_sha256')}
    if found['origin'] == 'generated':  # corruptions, in a folder such as fog_1
      found['origin'] = generated_origin(stored['made']['made_with'], [folder.parent.name.rpartition('_')[0]])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{label}: '{path.name}' is damaged ({one_line(error)}); prepare it again.") from error
  if expected != sha256:
    raise UserError(
      f"{label}: split '{split}' has SHA-256 {sha256}, but was prepared with {expected}: its files were changed or "
      'damaged; prepare it again.'
    )
  return found
