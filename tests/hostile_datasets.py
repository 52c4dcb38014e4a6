"""Folders of prepared data sets and of images that attack."""

from collections.abc import Callable
import io
import json
from pathlib import Path
import shutil
import struct
import tarfile
import zlib

from array_record.python import array_record_module
import numpy as np
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from tests.hostile_archives import header
from tests.hostile_base import DEEP, ENDLESS, ROOT, Base, case, device, endless, pipe

# ---- Data sets.


def _pets(folder: Path, base: Base) -> Path:
  return Path(shutil.copytree(base.data / 'pets' / '1.0.0', folder / 'pets' / '1.0.0'))


def train(folder: Path, *flags: str) -> list[str]:
  return ['train', f'--config={ROOT}/configs/nominal.py:smoke', f'--workdir={folder}/w', '--config.evals=clean', *flags]


def _on_pets(folder: Path) -> list[str]:
  return train(folder, '--config.dataset=pets', f'--config.data_dir={folder}')


def _pets_case(name: str, spoil: Callable[[Path], object]) -> None:
  @case(f'data set: {name}')
  def make(folder: Path, base: Base) -> list[str]:
    spoil(_pets(folder, base))
    return _on_pets(folder)


def _json_case(name: str, file: str, change: Callable[[dict], object]) -> None:
  def spoil(folder: Path) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))

  _pets_case(name, spoil)


def _features(content: dict) -> dict:
  return content['featuresDict']['features']


def _splits(**changes) -> Callable[[dict], object]:
  return lambda content: [split.update(changes) for split in content['splits']]


for place in ('image', 'label'):
  _json_case(
    f'a class of its own for {place}',
    'features.json',
    lambda content, place=place: _features(content)[place].update(pythonClassName='pets_payload.Image'),
  )
_json_case(
  'a class deep within',
  'features.json',
  lambda content: _features(content).update(x={'pythonClassName': 'data.X', 'sequence': {}}),
)
_json_case(
  'a module of its own', 'features.json', lambda content: content.update(type='pets_payload.Features', content={})
)
_json_case(
  'classes without end',
  'features.json',
  lambda content: _features(content)['label']['classLabel'].update(numClasses='999999999999'),
)
_json_case('images without end', 'dataset_info.json', _splits(shardLengths=['999999999999']))
_json_case('files elsewhere', 'dataset_info.json', _splits(filepathTemplate='../../../../../../etc/passwd'))
_json_case('a name that is a program', 'dataset_info.json', _splits(filepathTemplate='{SPLIT:>999999999}'))
_json_case('splits that are a number', 'dataset_info.json', lambda content: content.update(splits=3))
_json_case('a name with a line break', 'dataset_info.json', lambda content: content.update(name='a\nb'))
for origin in ({'a': 1}, 3, '\x1b[2J', 'made up'):
  _json_case(f'an origin {origin!a}', 'provenance.json', lambda content, origin=origin: content.update(origin=origin))
_json_case('an archive of its own', 'provenance.json', lambda content: content.update(archive_sha256=['x']))
for file in ('features.json', 'dataset_info.json', 'provenance.json'):
  _pets_case(f'deep {file}', lambda folder, file=file: (folder / file).write_text(f'{{"a": {DEEP}}}'))
  if file != 'dataset_info.json':  # where it is no file, there is no data set
    _pets_case(f'a pipe for {file}', lambda folder, file=file: pipe(folder / file))
  _pets_case(f'endless {file}', lambda folder, file=file: endless(folder / file))
_pets_case('a pipe for the names', lambda folder: pipe(folder / 'label.labels.txt'))
_pets_case('a device for the names', lambda folder: device(folder / 'label.labels.txt'))


def _file(folder: Path) -> Path:
  return next(folder.glob('*train*'))


def _records(folder: Path, *records: bytes) -> None:
  written = array_record_module.ArrayRecordWriter(str(_file(folder)), 'group_size:1')
  for record in records:
    written.write(record)
  written.close()


def _with(folder: Path, *pictures: bytes) -> None:
  """Replaces the training images by others, whose number the data set tells rightly."""
  records = []
  for picture in pictures:
    example = tf_example_pb2.Example()
    example.features.feature['image'].bytes_list.value.append(picture)
    example.features.feature['label'].int64_list.value.append(0)
    records.append(example.SerializeToString())
  _records(folder, *records)
  path = folder / 'dataset_info.json'
  content = json.loads(path.read_text())
  _splits(shardLengths=[str(len(records))])(content)
  path.write_text(json.dumps(content))


def _png(width: int, height: int, more: bytes = b'', rows: int | None = None) -> bytes:
  """A black picture, or the first rows of one that says that it is larger."""
  chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  packer = zlib.compressobj(1)
  row = bytes(3 * width + 1)
  data = b''.join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + more + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def _ztxt() -> bytes:
  data = b'Comment\0\0' + zlib.compress(bytes(100 << 20), 1)
  return struct.pack('>I', len(data)) + b'zTXt' + data + struct.pack('>I', zlib.crc32(b'zTXt' + data))


_pets_case('a record that unpacks to 500 MB', lambda folder: _records(folder, bytes(500 << 20), *[b''] * 7))
_pets_case('many records that unpack to 15 MB', lambda folder: _records(folder, *[bytes(15 << 20)] * 8))
_pets_case('a picture of 900 million pixels', lambda folder: _with(folder, _png(30_000, 30_000, rows=1)))
_pets_case('a picture of 400 million pixels', lambda folder: _with(folder, _png(20_000, 20_000)))
_pets_case('30 pictures of 16 million pixels', lambda folder: _with(folder, *[_png(4000, 4000)] * 30))
_pets_case('a small picture and a large one', lambda folder: _with(folder, _png(32, 32), _png(12_000, 12_000)))
_pets_case('a picture with a text that unpacks', lambda folder: _with(folder, _png(32, 32, _ztxt() * 4)))
_pets_case(
  'pictures of another kind', lambda folder: _with(folder, b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
)
_pets_case('a pipe for the records', lambda folder: pipe(_file(folder)))
_pets_case('a device for the records', lambda folder: device(_file(folder)))
_pets_case('endless records', lambda folder: endless(_file(folder)))
_pets_case('records of noise', lambda folder: _file(folder).write_bytes(np.random.default_rng(0).bytes(1 << 20)))
_pets_case('records of nothing', lambda folder: _records(folder, *[b''] * 8))
_pets_case('records of fields that end nowhere', lambda folder: _records(folder, *[b'\n\xff\xff\xff\xff\x07'] * 8))


# ---- Folders of images.


def _image_case(name: str, make_file: Callable[[Path], object], file: str = 'a.png') -> None:
  @case(f'images: {name}')
  def make(folder: Path, base: Base) -> list[str]:
    for class_ in ('cat', 'dog'):
      (folder / 'in' / class_).mkdir(parents=True)
      for i in range(3):
        Image.new('RGB', (40, 40), (60 * i, 9, 9)).save(folder / 'in' / class_ / f'{i}.png')
    make_file(folder / 'in' / 'cat' / file)
    return ['prepare', 'images', '--name=mine', f'--from={folder}/in', f'--data_dir={folder}/out']


def _webp() -> bytes:
  """A small animation that says that it is large."""
  file = io.BytesIO()
  frames = [Image.new('RGB', (32, 32), (i, i, i)) for i in (9, 200)]
  frames[0].save(file, 'WEBP', save_all=True, append_images=frames[1:])
  content = bytearray(file.getvalue())
  assert content[12:16] == b'VP8X'
  content[24:30] = (16_382).to_bytes(3, 'little') * 2
  return bytes(content)


_image_case('900 million pixels', lambda p: p.write_bytes(_png(30_000, 30_000, rows=1)))
_image_case('150 million pixels', lambda p: p.write_bytes(_png(12_250, 12_250)))
_image_case('a text that unpacks', lambda p: p.write_bytes(_png(32, 32, _ztxt() * 4)))
_image_case('PostScript', lambda p: p.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) run\n'))
_image_case('268 million pixels of WebP', lambda p: p.write_bytes(_webp()), 'a.webp')
_image_case('an endless file', endless)


# ---- Corrupted test sets.


@case('CIFAR-10-C: an extended header of 1 TB')
def corrupted_tar(folder: Path, base: Base) -> list[str]:
  with open(folder / 'c.tar', 'wb') as file:
    file.write(header(ENDLESS, tarfile.XHDTYPE))
    file.truncate(ENDLESS + 1024)
  return _corrupted(folder, base, folder / 'c.tar')


@case('CIFAR-10-C: a deep manifest')
def corrupted_manifest(folder: Path, base: Base) -> list[str]:
  (folder / 'c').mkdir()
  for name in ('labels', 'fog'):
    np.save(folder / 'c' / f'{name}.npy', np.zeros(3, np.uint8))
  (folder / 'c' / 'MANIFEST.json').write_text(DEEP)
  return _corrupted(folder, base, folder / 'c')


def _corrupted(folder: Path, base: Base, source: Path) -> list[str]:
  _pets(folder, base)
  return ['prepare', 'cifar10_c', '--dataset=pets', '--names=fog', f'--data_dir={folder}', f'--from={source}']
