"""Data sets in TFDS's layout on disk, read as data.

TFDS imports the classes that features.json names. Here names are compared, and nothing is imported. Files are read by
ArrayRecord's own reader, after a check of how much their chunks claim to unpack to.
"""

from collections.abc import Iterator
import mmap
import os
import pathlib
import re
import struct
from typing import Any, NamedTuple
import unicodedata

from adversarial_augment.datasets.arrays import one_line
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import untrusted
from adversarial_augment.storage.untrusted import Unusable

FORMAT = 'array_record'
_FEATURES = 'tensorflow_datasets.core.features.'
_IMAGE, _LABEL = f'{_FEATURES}image_feature.Image', f'{_FEATURES}class_label_feature.ClassLabel'
_CLASS = re.compile(rf'{re.escape(_FEATURES)}[a-z_]+\.[A-Za-z0-9_]+')  # those of other features are ignored
_CLASS_KEYS = ('pythonClassName', 'type')  # of features.json; the latter in older ones
_NAME = r'\w[\w.\-]*'
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'  # in older ones, which name none
_MAX_CLASSES = 1 << 17

# Of record files, see https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40  # bytes
_MAX_CHUNK = 1 << 24  # bytes of unpacked records
_MAX_RATIO = 16  # of unpacked to packed bytes; PNG and JPEG hardly pack any further
_MAX_CHUNKS = 1000  # of a file, beside those of its records
_AT_ONCE = 32  # records


class Shard(NamedTuple):
  path: pathlib.Path
  num_records: int


class Prepared(NamedTuple):
  """The metadata of a prepared data set."""

  full_name: str  # name/version or name/config/version
  splits: dict[str, tuple[Shard, ...]]
  class_names: tuple[str, ...]  # their numbers, if they have no names


def open_folder(folder: pathlib.Path, label: str) -> Prepared:
  """Reads dataset_info.json, features.json and label.labels.txt; `label` names the data set in messages.

  Raises:
    UserError: they cannot be read; it is not ArrayRecord; it does not have uint8 RGB images and their classes.
  """
  try:
    info = _read(folder / 'dataset_info.json')
    file_format = info.get('fileFormat')
    if file_format != FORMAT:
      found = file_format if str(file_format).isidentifier() else show(file_format)
      raise UserError(
        f'{label} is stored as {found}, but must be {FORMAT}; prepare it again with '
        f"tfds's download_and_prepare(file_format='{FORMAT}') or with adversarial_augment.prepare."
      )
    name = _match(_NAME, info['name'], 'name')
    full_name = [name, _match(f'({_NAME})?', info.get('configName') or '', 'configName')]
    full_name.append(_match(r'\d+\.\d+\.\d+', info['version'], 'version'))
    splits = {
      _match(_NAME, split['name'], 'the name of a split'): _shards(folder, name, split)
      for split in info.get('splits', ())
    }
    num_classes = _num_classes(_read(folder / 'features.json'), label)
    return Prepared('/'.join(filter(None, full_name)), splits, _class_names(folder, num_classes))
  except UserError:
    raise
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{label} cannot be opened ({one_line(error)}); prepare it again.') from error


def read(shards: tuple[Shard, ...]) -> Iterator[tuple[bytes, int]]:
  """Yields the encoded image and the label of each example, in order; raises nearly anything if a file is damaged."""
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


def _read(path: pathlib.Path) -> Any:
  """Returns a protocol buffer in JSON, whose field names may be in snake_case."""
  return _camel_case(untrusted.read_json(path))


def _camel_case(value: Any) -> Any:
  if isinstance(value, list):
    return [_camel_case(item) for item in value]
  if not isinstance(value, dict):
    return value
  return {re.sub('_([a-z])', lambda match: match[1].upper(), key): _camel_case(item) for key, item in value.items()}


def _match(pattern: str, value: Any, what: str) -> str:
  if not isinstance(value, str) or not re.fullmatch(pattern, value):
    raise Unusable(f'{what} is {show(value)}')
  return value


def _shards(folder: pathlib.Path, name: str, split: dict[str, Any]) -> tuple[Shard, ...]:
  """Returns the files of a split that have records; they are in the folder of the data set."""
  lengths = split.get('shardLengths', [])
  if not isinstance(lengths, list):
    raise Unusable(f'{show(lengths)} is not a list')
  width, template = max(5, len(str(len(lengths)))), split.get('filepathTemplate') or _TEMPLATE
  found = []
  for index, length in enumerate(map(int, lengths)):
    number, total = f'{index:0{width}d}', f'{len(lengths):0{width}d}'
    values = {
      'DATASET': name, 'SPLIT': split['name'], 'FILEFORMAT': FORMAT, 'SHARD_INDEX': number, 'NUM_SHARDS': total,
      'SHARD_X_OF_Y': f'{number}-of-{total}',
    }  # fmt: skip
    file = re.sub(r'\{(\w+)\}', lambda match, values=values: values.get(match[1], match[0]), template)
    if length < 0:
      raise Unusable(f'a file of {length} records')
    if length:
      found.append(Shard(folder / _match(f'{_NAME}(/{_NAME})*', file, 'the name of a file'), length))
  return tuple(found)


def _num_classes(content: Any, label: str) -> int:
  """Returns the number of classes in features.json, after a check of its features 'image' and 'label'."""
  for name in _classes(content):
    if not isinstance(name, str) or not _CLASS.fullmatch(name):
      raise UserError(
        f'{label}: features.json names the class {show(name)}, which is not one of TFDS and is not imported; bring the '
        'images in as a folder (prepare images).'
      )
  features = content['featuresDict']['features']
  if missing := [key for key in ('image', 'label') if key not in features]:
    raise UserError(f"{label} has no feature '{missing[0]}'; it has: {', '.join(sorted(features)[:20])}.")
  image_class, label_class = (next(_classes(features[key]), '') for key in ('image', 'label'))
  if label_class != _LABEL:
    raise UserError(f"{label}: feature 'label' must be a ClassLabel, not {label_class.rpartition('.')[2]}.")
  image = features['image'].get('image', {})
  shape, dtype = tuple(map(int, image.get('shape', {}).get('dimensions', ()))), image.get('dtype')
  if image_class != _IMAGE or dtype != 'uint8' or len(shape) != 3 or shape[-1] != 3:
    raise UserError(
      f'{label} has images of shape {shape} and type {dtype}, but must have RGB uint8 [height, width, 3]; bring it in '
      'as a folder of images (prepare images).'
    )
  count = int(features['label']['classLabel']['numClasses'])
  if not 0 < count <= _MAX_CLASSES:
    raise Unusable(f'{count:,} classes')
  return count


def _class_names(folder: pathlib.Path, count: int) -> tuple[str, ...]:
  try:
    text = untrusted.read_bytes(folder / 'label.labels.txt', untrusted.MAX_JSON).decode()
  except FileNotFoundError:
    return tuple(map(str, range(count)))
  names = tuple(name.strip() for name in text.split('\n') if name.strip())
  different = {unicodedata.normalize('NFC', name) for name in names}
  if len(names) != count or len(different) != count or any(unicodedata.category(c) == 'Cc' for c in ''.join(names)):
    raise Unusable(f'label.labels.txt does not have {count:,} names of classes, each once')
  return names


def _classes(features: Any) -> Iterator[Any]:
  """Yields the names of the classes of features, at any depth, the outermost first."""
  if isinstance(features, dict):
    yield from (features[key] for key in _CLASS_KEYS if key in features)
    features = list(features.values())
  for item in features if isinstance(features, list) else ():
    yield from _classes(item)


def _check_sizes(path: pathlib.Path, num_records: int) -> None:
  """Checks the header of every chunk of a record file; its reader unpacks as many bytes as they claim."""
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
      if kind >> 8 > num_records + _MAX_CHUNKS or number > 2 * num_records + _MAX_CHUNKS:
        raise Unusable(f'{path.name} has more chunks than its {num_records:,} records')
      if whole > _MAX_CHUNK or unpacked > _MAX_RATIO * size + _MAX_CHUNK:
        raise Unusable(f'{path.name} unpacks to {unpacked:,} bytes or more')
      # Every block begins with a header of its own, which a chunk may span.
      blocks, inside = divmod(inside - _BLOCK_HEADER + _CHUNK_HEADER + packed, _BLOCK - _BLOCK_HEADER)
      end = position - position % _BLOCK + blocks * _BLOCK + (_BLOCK_HEADER + inside if inside else 0)
      position = max(end, position + (kind >> 8))
    if position != size:
      raise Unusable(f'{path.name} is cut off')
