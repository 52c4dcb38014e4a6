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

from adversarial_augment.datasets import cifar10_c, npy
from adversarial_augment.datasets.made_with import with_code
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.storage import artifact, files
from adversarial_augment.types import Batch, Dataset

FORMAT = 'adversarial_augment.deepaugment.1'
KIND = 'deepaugment'  # of the errors
MANIFEST, PLAN = artifact.MANIFEST, 'PLAN.json'  # of a set that is whole, and of one that was begun
IMAGES, LABELS, INDEX = FILES = ('images.npy', 'labels.npy', 'index.npy')


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
  hashed = about | {'sets': [_as_first_recorded(part) for part in sets.values()]}
  digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
  return train._replace(
    num_examples=clean + made,
    read=read,
    provenance=train.provenance | {'sha256': digest, 'deepaugment': about},
    epoch_size=n,
  )


def _as_first_recorded(part: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the provenance of a set as release 0.1.0 had it: a run of then goes on with the same set made again."""
  made_with = with_code(part.get('made_with'), 'deepaugment')
  if not isinstance(made_with, Mapping) or 'code_sha256' not in made_with:
    return dict(part)
  return {**part, 'made_with': {key: value for key, value in made_with.items() if key != 'deepaugment'}}


def _open(train: Dataset, data_dir: str, name: str, copies: int | None) -> list[Dataset]:
  folder = folder_of(train.name, name, data_dir)
  if not (folder / MANIFEST).exists():
    raise _missing(folder, train.name, copies)
  manifest = read_manifest(folder / MANIFEST, train.name)
  made, n = manifest['copies'], train.num_examples
  wanted = made if copies is None else copies

  def wrong(facts: str, remedy: str = 'remake', **about: Any) -> ArtifactError:
    return ArtifactError(facts, folder, KIND, remedy, {'dataset': train.name, 'made': manifest, **about})

  if manifest['train_set']['sha256'] != train.provenance['sha256']:
    raise wrong(
      f"'{folder}' was made from images with SHA-256 {manifest['train_set']['sha256']}, but the training images of "
      f"'{train.name}' have {train.provenance['sha256']}"
    )
  if wanted > made:
    raise wrong(f"'{folder}' has {made} copies, but {wanted} are wanted", 'more copies', copies=wanted)
  check_files(folder, manifest, train.name, hashed=False)
  shapes = {IMAGES: (made * n, *train.image_shape), LABELS: (made * n,), INDEX: (made * n,)}
  try:
    arrays = {file: npy.open_array(npy.whole(folder / file)) for file in FILES}
    for file, array in arrays.items():
      dtype = np.dtype(np.uint8 if file == IMAGES else np.int32)
      if array.shape != shapes[file] or array.dtype != dtype:
        raise wrong(
          f"'{folder / file}' has shape {list(array.shape)} and type {array.dtype.name}, but must be {dtype.name} "
          f'{list(shapes[file])}'
        )
  except OSError as error:
    raise UserError(f"'{error.filename or folder}' cannot be read ({error.strerror or error}); mend it.") from error
  check_files(folder, manifest, train.name)
  if not np.array_equal(arrays[INDEX], np.tile(np.arange(n), made)) or not np.array_equal(
    arrays[LABELS], np.tile(cifar10_c.labels_of(train), made)
  ):
    raise wrong(f"'{folder}': its labels are not those of '{train.name}'")
  provenance = {'name': name} | {key: value for key, value in manifest.items() if key != 'train_set'}
  return [_copy(train, arrays[IMAGES], arrays[LABELS], number, provenance) for number in range(wanted)]


def _missing(folder: pathlib.Path, dataset: str, copies: int | None) -> ArtifactError:
  """Returns what is to be said of a set without a manifest."""
  about: dict[str, Any] = {'dataset': dataset, 'copies': copies or 1}
  state, remedy = 'is not finished' if folder.exists() else 'does not exist', 'make'
  if (folder / PLAN).exists():
    about['made'], remedy = read_plan(folder / PLAN, dataset), 'resume'
  return ArtifactError(f"The DeepAugment set '{folder}' {state}", folder, KIND, remedy, about)


def _copy(train: Dataset, images: np.ndarray, labels: np.ndarray, number: int, provenance: dict[str, Any]) -> Dataset:
  def read(indices: np.ndarray) -> Batch:
    rows = number * train.num_examples + np.asarray(indices)
    return Batch(np.asarray(images[rows]), np.asarray(labels[rows]))

  return train._replace(read=read, provenance=provenance)


def read_manifest(path: pathlib.Path, dataset: str) -> dict[str, Any]:
  """Returns what the MANIFEST.json of a set of `dataset` says.

  Raises:
    ArtifactError: it is damaged, or of another format.
  """
  return artifact.read(path, _check_fields, **_where(path, dataset))


def read_plan(path: pathlib.Path, dataset: str) -> dict[str, Any]:
  """Returns what a set's PLAN.json says; raises as `read_manifest`."""
  return artifact.read(path, lambda plan: plan.items(), **_where(path, dataset))


def check_files(folder: pathlib.Path, manifest: Mapping[str, Any], dataset: str, *, hashed: bool = True) -> None:
  """Compares the files of a set of `dataset` with its manifest, by size and, if `hashed`, by SHA-256.

  Raises:
    ArtifactError: one is missing, or another one.
  """
  try:
    artifact.verify(folder, {name: manifest['files'][name] for name in FILES}, hashed=hashed)
  except artifact.Damaged as damage:
    about = {'dataset': dataset, 'made': manifest}
    raise ArtifactError(f"'{folder / damage.name}' {damage.detail}", folder, KIND, 'remake', about) from damage


def _where(path: pathlib.Path, dataset: str) -> dict[str, Any]:
  return {'path': path.parent, 'kind': KIND, 'remedy': 'remake', 'about': {'dataset': dataset}}


def _check_fields(manifest: Mapping[str, Any]) -> None:
  """Raises ValueError, KeyError or TypeError where a field is not as `prepare` writes it."""
  if manifest['format'] != FORMAT:
    raise ValueError(f'format {manifest["format"]!r}, not {FORMAT!r}')
  entries = [manifest['files'][file] for file in FILES]
  texts = [manifest['train_set']['sha256'], *(entry['sha256'] for entry in entries)]
  numbers = [manifest['copies'], *(entry['bytes'] for entry in entries)]
  if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
    raise ValueError('a field of another type')
  if manifest['copies'] < 1:
    raise ValueError(f'copies={manifest["copies"]}, not at least 1')
