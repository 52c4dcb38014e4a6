"""Reads data sets that TFDS or `prepare` wrote as ArrayRecord files, with no TensorFlow."""

import io
import math
import pathlib
import re
from typing import Any, Literal
import warnings

import msgspec
import numpy as np
from PIL import Image

from adversarial_augment.checks import did_you_mean
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.datasets import arrays, records
from adversarial_augment.datasets.arrays import one_line
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.metrics import generated_origin
from adversarial_augment.storage import files, untrusted
from adversarial_augment.types import Dataset

KIND = 'data set'  # of the errors
PROVENANCE = 'provenance.json'  # written by `prepare` beside the data
_NAME = re.compile(r'[a-z][a-z0-9_]*(/[A-Za-z0-9_.\-]+)?(:\d+\.\d+\.\d+)?')
_ROOM = 1 << 30  # bytes that images may have, however well they are packed
_MAX_RATIO = 100  # where they are more: of images to files


class _Provenance(msgspec.Struct):
  """provenance.json."""

  origin: Literal['official', 'own', 'generated', 'unverified']
  archive_sha256: str | None
  sha256: dict[str, str]  # by split
  made: Any = None


def load(name: str, split: str, data_dir: str) -> Dataset:
  """Returns one split of a prepared data set, wholly in memory; see `datasets.load`.

  Raises:
    UserError: no such data set or split; not ArrayRecord; not uint8 RGB images of one size with labels in range; or a
      file is damaged.
  """
  folder, label, prepared = _open(name, split, data_dir)
  names = prepared.class_names
  images, labels = _read(prepared.splits[split], split, label)
  if fault := arrays.label_fault(labels, f"{label}, split '{split}'", len(names)):
    raise UserError(f'{fault}; prepare it again.')
  known = () if names == tuple(map(str, range(len(names)))) else names  # TFDS numbers classes without names
  full_name = prepared.full_name.replace('/', ':', 1)
  about = {'name': full_name, 'split': split, 'origin': 'unverified', 'archive_sha256': None}
  dataset = arrays.in_memory(images, labels.astype(np.int32), name, len(names), known, about)
  if (folder / PROVENANCE).exists():
    dataset.provenance.update(_recorded(folder, split, dataset.provenance['sha256'], label))
  return dataset


def count(name: str, split: str, data_dir: str) -> int:
  """Returns how many images a split has by its metadata; see `load`."""
  _, _, prepared = _open(name, split, data_dir)
  return sum(shard.num_records for shard in prepared.splits[split])


def _open(name: str, split: str, data_dir: str) -> tuple[pathlib.Path, str, records.Prepared]:
  """Returns a data set's folder, what messages call it, and its metadata."""
  folder = _folder(name, data_dir)
  label = f"Data set '{name}' in '{folder}'"
  prepared = records.open_folder(folder, label)
  if split not in prepared.splits:
    raise UserError(f"{label} has no split '{split}'; it has: {', '.join(sorted(prepared.splits)) or 'none'}.")
  return folder, label, prepared


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
    near = did_you_mean(stem, [path.name for path in root.glob('*/') if path.name != stem])
    hint = f' ({near.strip()})' if near else ''
    nowhere = '' if root.is_dir() else ', which does not exist'
    evaluation = EVALUATIONS.get(stem.partition('/')[0])
    imported_from = evaluation.imported_from if evaluation else ''
    raise ArtifactError(
      f"No data set '{stem}' under data_dir='{data_dir}'{nowhere}{hint}",
      *(root, KIND, 'make', {'name': stem, 'data_dir': data_dir, 'imported_from': imported_from}),
    )
  wanted = tuple(map(int, version.split('.'))) if version else max(versions)
  if wanted not in versions:
    have = ', '.join('.'.join(map(str, known)) for known in sorted(versions))
    raise UserError(f"Data set '{stem}' under '{data_dir}' has no version {version}; it has: {have}.")
  return versions[wanted]


def _read(shards: tuple[records.Shard, ...], split: str, label: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns all images, uint8 [n, h, w, 3], and labels, int64 [n], as they are."""
  expected = sum(shard.num_records for shard in shards)
  if not expected:
    raise UserError(f"{label}: split '{split}' is empty; prepare it again.")
  images = np.empty(0, np.uint8)  # until the first image tells the size
  labels: list[int] = []
  try:
    room = max(_ROOM, _MAX_RATIO * sum(shard.path.stat().st_size for shard in shards))
    with warnings.catch_warnings():
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      for i, (encoded, number) in enumerate(records.read(shards)):
        # Pillow opens many formats, some with other programs.
        with Image.open(io.BytesIO(encoded), formats=('PNG', 'JPEG')) as file:
          shape = (file.height, file.width, 3)
          if i == 0:
            if expected * math.prod(shape) > room:
              raise ValueError(
                f'{expected:,} images of {file.width} x {file.height} pixels from {room:,} bytes at most'
              )
            images = np.empty((expected, *shape), np.uint8)
          image = np.asarray(file) if shape == images.shape[1:] else None
          if image is None or image.dtype != np.uint8 or image.shape != shape:
            raise UserError(
              f"{label}: image {i} of split '{split}' has {file.width} x {file.height} pixels of mode {file.mode}, but "
              'all must be uint8 RGB of one size; bring them in as a folder of images (prepare images).'
            )
        images[i] = image
        labels.append(number)
    return images, np.array(labels, np.int64)
  except UserError:
    raise
  except Exception as error:  # whatever a damaged file makes the readers of ArrayRecord, protobuf and PNG raise
    raise UserError(
      f"{label}: the files of split '{split}' are damaged ({one_line(error)}); prepare it again."
    ) from error


def _recorded(folder: pathlib.Path, split: str, sha256: str, label: str) -> dict[str, Any]:
  """Returns what provenance.json records, after a comparison of its hash with that of the images."""
  try:
    stored = msgspec.convert(untrusted.read_json(folder / PROVENANCE), _Provenance)
    expected, origin = stored.sha256[split], str(stored.origin)
    if origin == 'generated':  # corruptions, in a folder such as fog_1
      origin = generated_origin(stored.made['made_with'], [folder.parent.name.rpartition('_')[0]])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{label}: '{PROVENANCE}' is damaged ({one_line(error)}); prepare it again.") from error
  if expected != sha256:
    raise UserError(
      f"{label}: split '{split}' has SHA-256 {sha256}, but was prepared with {expected}: its files were changed or "
      'damaged; prepare it again.'
    )
  return {'origin': origin, 'archive_sha256': stored.archive_sha256}
