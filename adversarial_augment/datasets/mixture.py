"""Training images together with their DeepAugment copies, which `prepare deepaugment` has written.

A set lies in DATA_DIR/DATASET_deepaugment/NAME: images.npy, labels.npy and index.npy, one row for each (copy, image)
with the copies one after the other, and MANIFEST.json, which says how they were made and has the hash of each file.
Images are memory-mapped, and copies read as data sets in the order of the training images, so that what holds images
out of training holds their copies out too.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from adversarial_augment.datasets import cifar10_c, deepaugment_command, npy
from adversarial_augment.datasets.reasons import one_line
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files, untrusted
from adversarial_augment.types import Batch, Dataset

FORMAT = 'adversarial_augment.deepaugment.1'
MANIFEST, PLAN = 'MANIFEST.json', 'PLAN.json'  # of a set that is whole, and of one that was begun
IMAGES, LABELS, INDEX = FILES = ('images.npy', 'labels.npy', 'index.npy')
MIXES = ('concat', 'half', 'only')
_CHUNK = 1 << 24  # bytes hashed at once


def folder_of(dataset: str, name: str, data_dir: str) -> pathlib.Path:
  """Returns where a set lies: cifar10, edsr -> DATA_DIR/cifar10_deepaugment/edsr."""
  stem = dataset.partition(':')[0].replace('/', '_')
  return files.user_path(data_dir, 'data_dir') / f'{stem}_deepaugment' / name


def load(train: Dataset, data_dir: str, names: Sequence[str], copies: int | None = None) -> list[Dataset]:
  """Opens DeepAugment sets of a training split.

  Args:
    train: the training split, whole.
    data_dir: the folder of prepared data sets.
    names: of the sets.
    copies: how many of each are used, the first ones; None: all.

  Returns:
    Each copy, as a data set whose example i is training image i.

  Raises:
    UserError: a set is missing, unfinished, damaged, of other images, or has fewer copies.
  """
  return [copy for name in names for copy in _open(train, data_dir, name, copies)]


def mix(train: Dataset, copies: Sequence[Dataset], how: str) -> Dataset:
  """Returns the training images and their copies as one data set, whose epochs stay as long as without copies.

  Args:
    train: the training images.
    copies: at least one, each with the same images in the same order.
    how: 'concat' draws uniformly from images and copies, as the DeepAugment paper does; 'half' draws an image with
      probability 1/2; 'only' draws copies alone.
  """
  n, made = train.num_examples, len(copies) * train.num_examples
  clean = {'concat': n, 'half': made, 'only': 0}[how]  # of the mixture's examples, the first

  def read(indices: np.ndarray) -> Batch:
    rows = np.asarray(indices)
    sources = np.where(rows < clean, -1, (rows - clean) // n)
    rows = np.where(rows < clean, rows, rows - clean) % n
    images = np.empty((len(rows), *train.image_shape), np.uint8)
    labels = np.empty(len(rows), np.int32)
    for source in np.unique(sources):
      chosen = sources == source
      images[chosen], labels[chosen] = (train if source < 0 else copies[source]).read(rows[chosen])
    return Batch(images, labels)

  parts = [train.provenance, *(copy.provenance for copy in copies)]
  sets = {part['name']: part for part in parts[1:]}
  counts = {name: sum(part['name'] == name for part in parts[1:]) for name in sets}
  about = {'mix': how, 'copies': counts, 'sets': list(sets.values()), 'train_sha256': train.provenance['sha256']}
  digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
  return train._replace(
    num_examples=clean + made,
    read=read,
    provenance=train.provenance | {'sha256': digest, 'deepaugment': about},
    epoch_size=n,
  )


def _open(train: Dataset, data_dir: str, name: str, copies: int | None) -> list[Dataset]:
  folder = folder_of(train.name, name, data_dir)
  if not (folder / MANIFEST).exists():
    raise UserError(f"The DeepAugment set '{folder}' (config.deepaugment.sets) {_way_to(folder, train.name, copies)}.")
  manifest = read_manifest(folder / MANIFEST)
  again = lambda **changes: deepaugment_command.command(folder, train.name, manifest | changes, '--overwrite')
  if manifest['train_set']['sha256'] != train.provenance['sha256']:
    raise UserError(
      f"'{folder}' was made from images with SHA-256 {manifest['train_set']['sha256']}, but the training images of "
      f"'{train.name}' have {train.provenance['sha256']}; make it again with {again()}."
    )
  made = manifest['copies']
  wanted = made if copies is None else copies
  if wanted > made:
    raise UserError(
      f"'{folder}' has {made} copies, but config.deepaugment.copies={wanted}; lower it, or make more with "
      f'{again(copies=wanted)}.'
    )
  check_sizes(folder, manifest, train.name)
  n = train.num_examples
  shapes = {IMAGES: (made * n, *train.image_shape), LABELS: (made * n,), INDEX: (made * n,)}
  try:
    arrays = {file: _checked(folder / file, manifest['files'][file], shapes[file], again) for file in FILES}
  except OSError as error:
    raise UserError(f"'{error.filename or folder}' cannot be read ({error.strerror or error}); mend it.") from error
  if not np.array_equal(arrays[INDEX], np.tile(np.arange(n), made)) or not np.array_equal(
    arrays[LABELS], np.tile(cifar10_c.labels_of(train), made)
  ):
    raise UserError(f"'{folder}': its labels are not those of '{train.name}'; make it again with {again()}.")
  provenance = {'name': name} | {key: value for key, value in manifest.items() if key != 'train_set'}
  return [_copy(train, arrays[IMAGES], arrays[LABELS], number, provenance) for number in range(wanted)]


def _way_to(folder: pathlib.Path, dataset: str, copies: int | None) -> str:
  """Returns what is missing of a set without a manifest, and the command that makes it."""
  if (folder / PLAN).exists():
    return (
      f'is not finished; start {deepaugment_command.command(folder, dataset, read_plan(folder / PLAN))}, which goes on '
      'where it was stopped'
    )
  usual = {'copies': copies or 1} | ({'net': folder.name} if folder.name in deepaugment_command.NETS else {})
  state = 'is not finished' if folder.exists() else 'does not exist'
  return f'{state}; start {deepaugment_command.command(folder, dataset, usual)}'


def _copy(train: Dataset, images: np.ndarray, labels: np.ndarray, number: int, provenance: dict[str, Any]) -> Dataset:
  def read(indices: np.ndarray) -> Batch:
    rows = number * train.num_examples + np.asarray(indices)
    return Batch(np.asarray(images[rows]), np.asarray(labels[rows]))

  return train._replace(read=read, provenance=provenance)


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
  """Returns what a set's MANIFEST.json says.

  Raises:
    UserError: it is damaged, or of another format.
  """
  try:
    manifest = untrusted.read_json(path)
    if manifest['format'] != FORMAT:
      raise ValueError(f'format {manifest["format"]!r}, not {FORMAT!r}')
    entries = [manifest['files'][file] for file in FILES]
    texts = [manifest['train_set']['sha256'], *(entry['sha256'] for entry in entries)]
    numbers = [manifest['copies'], *(entry['bytes'] for entry in entries)]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
      raise ValueError('a field of another type')
    if manifest['copies'] < 1:
      raise ValueError(f'copies={manifest["copies"]}, not at least 1')
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"'{path}' is damaged or not of this program ({type(error).__name__}: {one_line(error)}); make the set again "
      'with the flags of its first time and --overwrite.'
    ) from error
  return manifest


def read_plan(path: pathlib.Path) -> dict[str, Any]:
  """Returns what a set's PLAN.json says.

  Raises:
    UserError: it is damaged.
  """
  try:
    return dict(untrusted.read_json(path))
  except (OSError, ValueError, TypeError) as error:
    raise UserError(
      f"'{path}' is damaged ({one_line(error)}); start anew with the flags of its first time and --overwrite."
    ) from error


def check_sizes(folder: pathlib.Path, manifest: Mapping[str, Any], dataset: str) -> None:
  """Looks whether the files of a set of `dataset` are there.

  Raises:
    UserError: one is missing or cut off.
  """
  for name in FILES:
    path = folder / name
    size = path.stat().st_size if path.is_file() else None
    if size != manifest['files'][name]['bytes']:
      state = (
        'is missing' if size is None else f'has {size:,} bytes, and {manifest["files"][name]["bytes"]:,} when made'
      )
      again = deepaugment_command.command(folder, dataset, manifest, '--overwrite')
      raise UserError(f"'{path}' {state}; make the set again with {again}.")


def _hash_file(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, which may be larger than the memory."""
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while block := file.read(_CHUNK):
      digest.update(block)
  return digest.hexdigest()


def _checked(
  path: pathlib.Path, entry: Mapping[str, Any], shape: tuple[int, ...], again: Callable[[], str]
) -> np.ndarray:
  """Returns the array of a file, memory-mapped, which is as the manifest says; the command `again` mends it."""
  array = npy.open_array(npy.whole(path))
  dtype = np.uint8 if path.name == IMAGES else np.int32
  if array.shape != shape or array.dtype != dtype:
    raise UserError(
      f"'{path}' has shape {list(array.shape)} and type {array.dtype.name}, but must be {np.dtype(dtype).name} "
      f'{list(shape)}; make the set again with {again()}.'
    )
  found = _hash_file(path)
  if found != entry['sha256']:
    raise UserError(
      f"'{path}' has SHA-256 {found}, but {entry['sha256']} in {MANIFEST}: it was changed or damaged; make the set "
      f'again with {again()}.'
    )
  return array
