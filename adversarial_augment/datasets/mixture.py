"""Training images together with their DeepAugment copies, which `prepare deepaugment` has written.

A set lies in DATA_DIR/DATASET_deepaugment/NAME: images.npy, labels.npy and index.npy, one row for each (copy, image)
with the copies one after the other, and MANIFEST.json, which says how they were made and has the hash of each file.
Images are memory-mapped, and copies read as data sets in the order of the training images, so that what holds images
out of training holds their copies out too.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from adversarial_augment import files
from adversarial_augment.datasets import cifar10_c, commands, npy
from adversarial_augment.datasets.reasons import one_line
from adversarial_augment.errors import UserError
from adversarial_augment.types import Batch, Dataset

FORMAT = 'adversarial_augment.deepaugment.1'
MANIFEST, PLAN = 'MANIFEST.json', 'PLAN.json'  # of a set that is whole, and of one that is being made
IMAGES, LABELS, INDEX = FILES = ('images.npy', 'labels.npy', 'index.npy')
MIXES = ('concat', 'half', 'only')
SCALES = ('native32', 'published')
NETS = ('edsr', 'cae')  # of which sets are made; the usual names of the sets
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


def command_of(folder: pathlib.Path, about: Mapping[str, Any], *, copies: int | None = None, anew: bool = False) -> str:
  """Returns the command line that makes a set as its plan or manifest says.

  Args:
    folder: of the set.
    about: what its plan or manifest holds.
    copies: instead of its own number.
    anew: with --overwrite.
  """
  copies = about['copies'] if copies is None else copies
  weights = about['weights'].get('file', 'WEIGHTS')  # older sets know the hash of the file alone
  flags = [f'--dataset={about["train_set"]["name"]}', f'--net={about["net"]}', f'--weights={weights}']
  flags += [f'--copies={copies}'] if copies != 1 else []
  flags += [f'--name={folder.name}'] if folder.name != about['net'] else []
  flags += [f'--seed={about["seed"]}'] if about['seed'] else []
  flags += [] if about['bug_compatible'] else ['--no-bug_compatible']
  flags += [f'--scale={about["scale"]}'] if about['scale'] != SCALES[0] else []
  return commands.prepare(folder.parents[1], 'deepaugment', *flags, *(['--overwrite'] if anew else []))


def read_plan(path: pathlib.Path) -> dict[str, Any]:
  """Returns what the PLAN.json of a set says that is being made.

  Raises:
    UserError: it is damaged.
  """
  try:
    return dict(json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise UserError(f"'{path}' is damaged ({one_line(error)}); start anew with --overwrite.") from error


def _open(train: Dataset, data_dir: str, name: str, copies: int | None) -> list[Dataset]:
  folder = folder_of(train.name, name, data_dir)
  if (folder / PLAN).exists() and not (folder / MANIFEST).exists():
    raise UserError(
      f"The DeepAugment set '{folder}' (config.deepaugment.sets) is not finished; start "
      f'{command_of(folder, read_plan(folder / PLAN))}, which goes on where it was stopped.'
    )
  if not (folder / MANIFEST).is_file():
    flags = [f'--dataset={train.name}', f'--net={name}' if name in NETS else f'--name={name}']
    state = 'is damaged: it has no MANIFEST.json' if folder.exists() else 'does not exist'
    raise UserError(
      f"The DeepAugment set '{folder}' (config.deepaugment.sets) {state}; start "
      f'{commands.prepare(data_dir, "deepaugment", *flags)}.'
    )
  manifest = read_manifest(folder / MANIFEST)
  if manifest['train_set']['sha256'] != train.provenance['sha256']:
    raise UserError(
      f"'{folder}' was made from images with SHA-256 {manifest['train_set']['sha256']}, but the training images of "
      f"'{train.name}' have {train.provenance['sha256']}; make it again with {command_of(folder, manifest, anew=True)}."
    )
  made = manifest['copies']
  wanted = made if copies is None else copies
  if wanted > made:
    raise UserError(
      f"'{folder}' has {made} copies, but config.deepaugment.copies={wanted}; lower it, or make more with "
      f'{command_of(folder, manifest, copies=wanted, anew=True)}.'
    )
  check_sizes(folder, manifest)
  n = train.num_examples
  shapes = {IMAGES: (made * n, *train.image_shape), LABELS: (made * n,), INDEX: (made * n,)}
  try:
    arrays = {file: _checked(folder / file, manifest, shapes[file]) for file in FILES}
  except OSError as error:
    raise UserError(f"'{error.filename or folder}' cannot be read ({error.strerror or error}); mend it.") from error
  if not np.array_equal(arrays[INDEX], np.tile(np.arange(n), made)) or not np.array_equal(
    arrays[LABELS], np.tile(cifar10_c.labels_of(train), made)
  ):
    raise UserError(
      f"'{folder}': its labels are not those of '{train.name}'; make it again with "
      f'{command_of(folder, manifest, anew=True)}.'
    )
  provenance = {'name': name} | {key: value for key, value in manifest.items() if key != 'train_set'}
  return [_copy(train, arrays[IMAGES], arrays[LABELS], number, provenance) for number in range(wanted)]


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
    manifest = json.loads(path.read_text())
    if manifest['format'] != FORMAT:
      raise ValueError(f'format {manifest["format"]!r}, not {FORMAT!r}')
    entries = [manifest['files'][file] for file in FILES]
    texts = [manifest['train_set']['sha256'], *(entry['sha256'] for entry in entries)]
    numbers = [manifest['copies'], *(entry['bytes'] for entry in entries)]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
      raise ValueError('a field of another type')
    if manifest['copies'] < 1:
      raise ValueError(f'copies is {manifest["copies"]}')
    command_of(path.parent, manifest)
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"'{path}' is damaged or not of this program ({type(error).__name__}: {one_line(error)}); make the set again "
      'with python -m adversarial_augment.prepare deepaugment --overwrite.'
    ) from error
  return manifest


def check_sizes(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
  """Looks whether the files of a set are there.

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
      raise UserError(f"'{path}' {state}; make the set again with {command_of(folder, manifest, anew=True)}.")


def _hash_file(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, which may be larger than the memory."""
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while block := file.read(_CHUNK):
      digest.update(block)
  return digest.hexdigest()


def _checked(path: pathlib.Path, manifest: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray:
  """Returns the array of a file, memory-mapped, which is as the manifest says."""
  array = npy.open_array(npy.whole(path))
  dtype = np.uint8 if path.name == IMAGES else np.int32
  again = f'make the set again with {command_of(path.parent, manifest, anew=True)}.'
  if array.shape != shape or array.dtype != dtype:
    raise UserError(
      f"'{path}' has shape {list(array.shape)} and type {array.dtype.name}, but must be {np.dtype(dtype).name} "
      f'{list(shape)}; {again}'
    )
  found, wanted = _hash_file(path), manifest['files'][path.name]['sha256']
  if found != wanted:
    raise UserError(f"'{path}' has SHA-256 {found}, but {wanted} in {MANIFEST}: it was changed or damaged; {again}")
  return array
