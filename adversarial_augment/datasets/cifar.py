"""Reads CIFAR-10 and CIFAR-100 in their common forms: the binary or the Python archive, either unpacked, or an .npz."""

from collections.abc import Mapping
import pathlib
from typing import NamedTuple

import numpy as np

from adversarial_augment.datasets import archives, arrays
from adversarial_augment.datasets.arrays import one_line
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, pickles, untrusted
from adversarial_augment.types import Batch


class Published(NamedTuple):
  """A data set as its authors publish it: https://www.cs.toronto.edu/~kriz/cifar.html"""

  title: str
  stem: str  # of the names of its archives and their folders
  archive_bytes: int  # of the binary archive
  archive_sha256: str  # of the binary archive, as in tensorflow_datasets/url_checksums
  python_archive_sha256: str
  class_names: tuple[str, ...]
  parts: Mapping[str, tuple[str, ...]]  # the files of each split
  label_bytes: int  # before each image of the binary version; the last one is the label
  label_key: str  # of the Python version

  @property
  def binary_archive(self) -> str:
    return f'{self.stem}-binary.tar.gz'

  @property
  def url(self) -> str:
    return f'https://www.cs.toronto.edu/~kriz/{self.binary_archive}'

  @property
  def forms(self) -> str:
    return f'give {self.binary_archive}, {self.stem}-python.tar.gz, a folder with their files, or an .npz'


_CLASSES_OF_100 = """
  apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
  caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
  flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
  motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
  poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
  squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
  wardrobe whale willow_tree wolf woman worm
"""
PUBLISHED = {
  'cifar10': Published(
    title='CIFAR-10',
    stem='cifar-10',
    archive_bytes=170_052_171,
    archive_sha256='c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
    python_archive_sha256='6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
    class_names=('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'),
    parts={'train': tuple(f'data_batch_{i}' for i in range(1, 6)), 'test': ('test_batch',)},
    label_bytes=1,
    label_key='labels',
  ),
  'cifar100': Published(
    title='CIFAR-100',
    stem='cifar-100',
    archive_bytes=168_513_733,
    archive_sha256='58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
    python_archive_sha256='85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7',
    class_names=tuple(_CLASSES_OF_100.split()),
    parts={'train': ('train',), 'test': ('test',)},
    label_bytes=2,  # superclass and class
    label_key='fine_labels',
  ),
}
COUNTS = {'train': 50_000, 'test': 10_000}

_NPZ_KEYS = {  # Keras and MedMNIST names
  'train': (('x_train', 'y_train'), ('train_images', 'train_labels')),
  'test': (('x_test', 'y_test'), ('test_images', 'test_labels')),
}
_MAX_FILE = 256 << 20  # bytes; the largest real one has 155 MB
_MAX_MEMBERS = 100
_MAX_ARCHIVE = 1 << 30  # bytes; the real ones have 170 MB, and an .npz 185 MB
_MAX_UNPACKED = 1 << 29  # bytes of a packed archive; the real ones have 187 MB
_PIXELS = 3 * 32 * 32


class Source(NamedTuple):
  splits: dict[str, Batch]  # in the order of the archive
  origin: str  # 'official': the archive has the hash of one of the two published ones; or 'unverified'
  archive_sha256: str | None  # None for a folder


def read(path: pathlib.Path, published: Published, counts: Mapping[str, int] = COUNTS) -> Source:
  """Reads all of a data set, and executes nothing that the files contain.

  Args:
    path: the binary or the Python archive; a folder with the files of one; or an .npz with uint8 images
      [n, 32, 32, 3] x_train, x_test (or train_images, test_images) and labels [n] or [n, 1] y_train, y_test (or
      train_labels, test_labels).
    published: what it must be, an entry of `PUBLISHED`.
    counts: the size of each split, of which every class has an equal share.

  Raises:
    UserError: the file is missing, damaged, too large, or another data set.
  """
  archive, num_classes = None, len(published.class_names)
  if path.is_dir():
    splits = _decode(_from_folder(path, published), path, published)
  elif path.is_file():
    if path.stat().st_size > _MAX_ARCHIVE:
      raise UserError(f"'{path}' has {path.stat().st_size:,} bytes, too many for {published.title}; {published.forms}.")
    archive = artifact.sha256_of(path)
    splits = (
      _from_npz(path, published) if path.suffix == '.npz' else _decode(_from_tar(path, published), path, published)
    )
  else:
    problem = 'is neither a file nor a folder' if path.exists() else 'does not exist'
    raise UserError(f"'{path}' {problem}; {published.forms}.")
  for split, (images, labels) in splits.items():
    n, label = counts[split], f"'{path}': the array of {split} labels"
    fault = (
      arrays.mismatch(images, f"'{path}': the array of {split} images", 'uint8', (n, 32, 32, 3))
      or arrays.mismatch(labels, label, 'integers', (n,))
      or arrays.label_fault(labels, label, num_classes, n // num_classes)
    )
    if fault:
      raise UserError(f'{fault}: it is not {published.title}, or incomplete; {published.forms}.')
  return Source(
    splits,
    'official' if archive in (published.archive_sha256, published.python_archive_sha256) else 'unverified',
    archive,
  )


def _files(published: Published) -> set[str]:
  return {f'{part}{suffix}' for parts in published.parts.values() for part in parts for suffix in ('', '.bin')}


def _from_folder(path: pathlib.Path, published: Published) -> dict[str, bytes]:
  """Returns the files of an unpacked archive by name; they may be one folder deeper, as in the archive."""
  found, known = {}, _files(published)
  for file in sorted([*path.glob('*'), *path.glob(f'{published.stem}-*/*')]):
    if file.name in known and file.is_file():
      try:
        found[file.name] = untrusted.read_bytes(file, _MAX_FILE)
      except untrusted.Unusable as error:
        raise UserError(f"'{file}' cannot be used ({error}); {published.forms}.") from error
  return found


def _from_tar(path: pathlib.Path, published: Published) -> dict[str, bytes]:
  """Returns the files of an archive by name, without their folders."""
  found, known = {}, _files(published)
  try:
    with untrusted.open_file(path, _MAX_ARCHIVE) as packed:
      file = archives.unpacked(packed, _MAX_UNPACKED)
      for number, member in enumerate(archives.members(file)):
        if number >= _MAX_MEMBERS or member.size > _MAX_FILE:
          raise UserError(f"'{path}' has too many or too large members ('{member.name}'); it is not {published.title}.")
        name = pathlib.PurePosixPath(member.name).name
        if name in known:
          file.seek(member.offset)
          found[name] = file.read(member.size)
  except (untrusted.Unusable, OSError) as error:
    raise UserError(
      f"'{path}' is not a tar archive, or a damaged one ({one_line(error)}); {published.forms}, or download it again."
    ) from error
  return found


def _decode(files: Mapping[str, bytes], path: pathlib.Path, published: Published) -> dict[str, Batch]:
  """Returns the splits from the files of the binary version or, if there are none, of the Python version."""
  suffix, decode = ('.bin', _from_binary) if any(name.endswith('.bin') for name in files) else ('', _from_pickle)
  splits = {}
  for split, parts in published.parts.items():
    names = [f'{part}{suffix}' for part in parts]
    if missing := [name for name in names if name not in files]:
      raise UserError(f"'{path}' has no file {missing[0]}; {published.forms}.")
    batches = [decode(files[name], f'{path}: {name}', published) for name in names]
    splits[split] = Batch(*(np.concatenate(column) for column in zip(*batches, strict=True)))
  return splits


def _from_binary(data: bytes, where: str, published: Published) -> Batch:
  """Returns the images of one file: records of a byte for each label and 3 x 1024 for the colour planes."""
  first = published.label_bytes
  size = first + _PIXELS
  if not data or len(data) % size:
    raise UserError(f"'{where}' has {len(data):,} bytes, which is not a multiple of {size}; it is damaged.")
  records = np.frombuffer(data, np.uint8).reshape(-1, size)
  return Batch(_planes_last(records[:, first:]), records[:, first - 1].astype(np.int32))


def _from_pickle(data: bytes, where: str, published: Published) -> Batch:
  try:
    content = pickles.load_numpy(data)
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    pixels, labels = content['data'].values, content[published.label_key]
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
      raise ValueError(f'data has shape {pixels.shape} and type {pixels.dtype}')
    if isinstance(labels, pickles.Array):
      labels = labels.values
    elif not all(type(label) is int and 0 <= label < 256 for label in labels):
      raise ValueError('labels that are not small numbers')
    return Batch(_planes_last(pixels), np.array(labels, np.int32))
  except Exception as error:  # a damaged or foreign pickle fails in any way
    raise UserError(
      f"'{where}' is not a file of the Python version of {published.title} ({one_line(error)}); {published.forms}."
    ) from error


def _planes_last(pixels: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _from_npz(path: pathlib.Path, published: Published) -> dict[str, Batch]:
  known = [name for choices in _NPZ_KEYS.values() for pair in choices for name in pair]
  try:
    with untrusted.open_file(path, _MAX_ARCHIVE) as file:
      found = arrays.read_npz(file, _MAX_ARCHIVE, known)
  except (untrusted.Unusable, OSError) as error:
    raise UserError(
      f"'{path}' is not a usable .npz ({one_line(error)}): it must be a zip archive of whole arrays, none of "
      f'them pickled; {published.forms}.'
    ) from error
  splits = {}
  for split, choices in _NPZ_KEYS.items():
    keys = next((pair for pair in choices if set(pair) <= found.keys()), None)
    if keys is None:
      raise UserError(
        f"'{path}' lacks {' or '.join(map(' and '.join, choices))}; add the arrays, or {published.forms}."
      )
    images, labels = found[keys[0]], found[keys[1]]
    splits[split] = Batch(images, labels[:, 0] if labels.shape[1:] == (1,) else labels)
  return splits
