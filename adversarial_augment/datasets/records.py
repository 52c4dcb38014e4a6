"""Data sets as TFDS lays them out on disk, read as data.

TFDS imports the classes that features.json names. Here names are compared, and nothing is imported; files are read by
ArrayRecord's own reader, after a look at how much their parts say that they unpack to.
"""

from collections.abc import Iterator, Mapping
import mmap
import os
import pathlib
import re
import struct
from typing import Any, NamedTuple
import unicodedata

from adversarial_augment.config.fields import show
from adversarial_augment.datasets.reasons import one_line
from adversarial_augment.errors import UserError
from adversarial_augment.storage import untrusted
from adversarial_augment.storage.untrusted import Unusable

FORMAT = 'array_record'
_FEATURES = 'tensorflow_datasets.core.features.'
_IMAGE, _LABEL = f'{_FEATURES}image_feature.Image', f'{_FEATURES}class_label_feature.ClassLabel'
_CLASS = re.compile(rf'{re.escape(_FEATURES)}[a-z_]+\.[A-Za-z0-9_]+')  # those of other features are left unread
_NAME, _VERSION = r'\w[\w.\-]*', r'\d+\.\d+\.\d+'
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'  # where dataset_info.json has none, as in older ones
_MAX_CLASSES = 1 << 17

# Of record files, see https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40  # bytes
_MAX_CHUNK = 1 << 24  # bytes that a record, and what is packed together with it, may have
_MAX_RATIO = 16  # PNG and JPEG do not pack any further
_MAX_PARTS = 1000  # of a file beside its records
_AT_ONCE = 32  # records


class Shard(NamedTuple):
  path: pathlib.Path
  num_records: int


class Prepared(NamedTuple):
  """What a prepared data set says of itself."""

  full_name: str  # name/version or name/config/version
  splits: dict[str, tuple[Shard, ...]]
  class_names: tuple[str, ...]  # their numbers, where they have no names


def open_folder(folder: pathlib.Path, label: str) -> Prepared:
  """Reads dataset_info.json, features.json and label.labels.txt.

  Args:
    folder: of one version of the data set.
    label: of the data set, begins the messages.

  Raises:
    UserError: they cannot be read; it is not ArrayRecord; it does not hold uint8 RGB images and their classes.
  """
  try:
    info = _object(untrusted.read_json(folder / 'dataset_info.json'))
    features = _object(untrusted.read_json(folder / 'features.json'))
    file_format = _get(info, 'fileFormat')
    if file_format != FORMAT:
      found = file_format if str(file_format).isidentifier() else show(file_format)
      raise UserError(
        f'{label} is stored as {found}, but must be {FORMAT}; prepare it again with '
        f"tfds's download_and_prepare(file_format='{FORMAT}') or with adversarial_augment.prepare."
      )
    name, config, version = (_get(info, key) for key in ('name', 'configName', 'version'))
    _require(name, _NAME, 'name')
    _require(version, _VERSION, 'version')
    if config:
      _require(config, _NAME, 'configName')
    splits = {
      _require(_get(split, 'name'), _NAME, 'the name of a split'): _shards(folder, name, split)
      for split in map(_object, _list(_get(info, 'splits')))
    }
    return Prepared('/'.join(filter(None, (name, config, version))), splits, _classes(folder, features, label))
  except UserError:
    raise
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f'{label} cannot be opened ({one_line(error)}); prepare it again.') from error


def read(shards: tuple[Shard, ...]) -> Iterator[tuple[bytes, int]]:
  """Yields the encoded image and the label of each example, in order.

  Raises:
    Exception: of many kinds, where a file is missing or damaged, or holds more than it can.
  """
  from array_record.python import array_record_module
  from tensorflow_datasets.proto import tf_example_pb2  # takes half a second

  for path, num_records in shards:
    _check_sizes(path, num_records)
    reader = array_record_module.ArrayRecordReader(str(path), 'readahead_buffer_size:0', file_reader_buffer_size=32768)
    if not reader.ok() or reader.num_records() != num_records:
      raise ValueError(f'{path.name} has {reader.num_records():,} records, not {num_records:,}')
    for start in range(0, num_records, _AT_ONCE):
      for record in reader.read(start, min(start + _AT_ONCE, num_records)):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        (image,), (label,) = feature['image'].bytes_list.value, feature['label'].int64_list.value
        yield image, label
    reader.close()


def _get(content: Mapping[str, Any], name: str) -> Any:
  """A field of a protocol buffer in JSON, whose name may be spelled in two ways; None where it is not there."""
  return content.get(name, content.get(re.sub('([A-Z])', r'_\1', name).lower()))


def _object(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise Unusable(f'{show(value)} is no JSON object')
  return value


def _list(value: Any) -> list[Any]:
  if not isinstance(value, list | None):
    raise Unusable(f'{show(value)} is no list')
  return value or []


def _require(value: Any, pattern: str, what: str) -> str:
  if not isinstance(value, str) or not re.fullmatch(pattern, value):
    raise Unusable(f'{what} is {show(value)}')
  return value


def _integer(value: Any) -> int:
  """A number in the JSON of a protocol buffer, which may be written as a string."""
  return int(_require(str(value) if type(value) is int else value, '-?[0-9]{1,15}', 'a number'))


def _shards(folder: pathlib.Path, name: str, split: Mapping[str, Any]) -> tuple[Shard, ...]:
  """The files of a split that hold records; they lie in the folder of the data set."""
  lengths = [_integer(length) for length in _list(_get(split, 'shardLengths'))]
  digits = max(5, len(str(len(lengths))))
  found = []
  for index, length in enumerate(lengths):
    number, count = f'{index:0{digits}d}', f'{len(lengths):0{digits}d}'
    values = {
      'DATASET': name, 'SPLIT': split['name'], 'FILEFORMAT': FORMAT, 'SHARD_INDEX': number, 'NUM_SHARDS': count,
      'SHARD_X_OF_Y': f'{number}-of-{count}',
    }  # fmt: skip
    file = _get(split, 'filepathTemplate') or _TEMPLATE
    for key, value in values.items():
      file = str(file).replace(f'{{{key}}}', value)
    if length < 0:
      raise Unusable(f'a file of {length} records')
    if length:
      found.append(Shard(folder / _require(file, rf'{_NAME}(/{_NAME})*', 'the name of a file'), length))
  return tuple(found)


def _classes(folder: pathlib.Path, features: Mapping[str, Any], label: str) -> tuple[str, ...]:
  """The names of the classes, their numbers where they have none, after a look at 'image' and 'label'."""
  for name in _class_names(features):
    if not isinstance(name, str) or not _CLASS.fullmatch(name):
      raise UserError(
        f'{label}: features.json names the class {show(name)}, which is not one of TFDS and is not imported; bring the '
        'images in as a folder (prepare images).'
      )
  inner = {name: _object(feature) for name, feature in _object(_object(features['featuresDict'])['features']).items()}
  missing = [key for key in ('image', 'label') if key not in inner]
  if missing:
    raise UserError(f"{label} has no feature '{missing[0]}'; it has: {', '.join(sorted(inner)[:20])}.")
  kinds = {key: next(_class_names(inner[key]), '') for key in ('image', 'label')}
  if kinds['label'] != _LABEL:
    raise UserError(f"{label}: feature 'label' must be a ClassLabel, not {kinds['label'].rpartition('.')[2]}.")
  image = _object(_get(inner['image'], 'image') or {})
  sides = _list(_object(_get(image, 'shape') or {}).get('dimensions'))
  shape = tuple(None if side < 0 else side for side in map(_integer, sides))
  if kinds['image'] != _IMAGE or image.get('dtype') != 'uint8' or len(shape) != 3 or shape[-1] != 3:
    raise UserError(
      f'{label} holds images of shape {shape} and type {image.get("dtype")}, but must hold RGB uint8 [height, width, '
      '3]; bring it in as a folder of images (prepare images).'
    )
  count = _integer(_get(_object(_get(inner['label'], 'classLabel') or {}), 'numClasses'))
  if not 0 < count <= _MAX_CLASSES:
    raise Unusable(f'{count:,} classes')
  try:
    text = untrusted.read_bytes(folder / 'label.labels.txt', untrusted.MAX_JSON).decode()
  except FileNotFoundError:
    return tuple(map(str, range(count)))
  names = tuple(name.strip() for name in text.split('\n') if name.strip())
  different = {unicodedata.normalize('NFC', name) for name in names}
  if len(names) != count or len(different) != count or any(unicodedata.category(c) == 'Cc' for c in ''.join(names)):
    raise Unusable(f'label.labels.txt does not have {count:,} names of classes, each once')
  return names


def _class_names(features: Any) -> Iterator[Any]:
  """Yields the names of the classes of features, at any depth, the outermost first."""
  level = [features]
  while level:
    for content in level:
      if isinstance(content, dict):
        yield from (content[key] for key in ('pythonClassName', 'python_class_name', 'type') if key in content)
    level = [
      item
      for content in level
      if isinstance(content, dict | list)
      for item in (content.values() if isinstance(content, dict) else content)
    ]


def _check_sizes(path: pathlib.Path, num_records: int) -> None:
  """Looks at the header of every part of a record file: what it says that it unpacks to is what its reader unpacks."""
  with untrusted.open_file(path) as file:
    size = os.fstat(file.fileno()).st_size
    if not size:
      raise Unusable(f'{path.name} is empty')
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  with content:
    position = unpacked = number = 0
    while position < size:
      inside = position % _BLOCK or _BLOCK_HEADER
      start = position - position % _BLOCK + inside
      first = min(_CHUNK_HEADER, _BLOCK - inside)
      rest = start + first + _BLOCK_HEADER
      header = content[start : start + first] + content[rest : rest + _CHUNK_HEADER - first]
      if len(header) < _CHUNK_HEADER:
        raise Unusable(f'{path.name} is cut off')
      packed, kind, whole = struct.unpack('<8xQ8xQQ', header)
      number, unpacked = number + 1, unpacked + whole
      if kind >> 8 > num_records + _MAX_PARTS or number > 2 * num_records + _MAX_PARTS:
        raise Unusable(f'{path.name} has more parts than its {num_records:,} records')
      if whole > _MAX_CHUNK or unpacked > _MAX_RATIO * size + _MAX_CHUNK:
        raise Unusable(f'{path.name} unpacks to {unpacked:,} bytes or more')
      # Every block of the file begins with a header of its own, which counts for nothing.
      blocks, inside = divmod(inside - _BLOCK_HEADER + _CHUNK_HEADER + packed, _BLOCK - _BLOCK_HEADER)
      end = position - position % _BLOCK + blocks * _BLOCK + (_BLOCK_HEADER + inside if inside else 0)
      position = max(end, position + (kind >> 8))
    if position != size:
      raise Unusable(f'{path.name} is cut off')
