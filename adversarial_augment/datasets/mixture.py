"""Training images together with their DeepAugment copies, as written by `prepare deepaugment`.

DATA_DIR/DATASET_deepaugment/NAME has images.npy, labels.npy and index.npy, one row for each (copy, image), the copies
one after the other; and MANIFEST.json, which records how they were made and the hash of each file. Images are
memory-mapped. A copy is a data set in the order of the training images, so what holds out images also holds out copies.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from adversarial_augment.datasets import arrays, manifests
from adversarial_augment.errors import ArtifactError
from adversarial_augment.storage import artifact, files
from adversarial_augment.types import Batch, Dataset

FORMAT = 'adversarial_augment.deepaugment.1'
KIND = 'deepaugment'  # of the errors
MANIFEST, PLAN = artifact.MANIFEST, 'PLAN.json'  # of a finished set, and of an unfinished one
IMAGES, LABELS, INDEX = FILES = ('images.npy', 'labels.npy', 'index.npy')


class _Files(msgspec.Struct):
  images: manifests.File = msgspec.field(name=IMAGES)
  labels: manifests.File = msgspec.field(name=LABELS)
  index: manifests.File = msgspec.field(name=INDEX)


class _Manifest(msgspec.Struct):
  format: Literal['adversarial_augment.deepaugment.1']
  copies: Annotated[int, msgspec.Meta(ge=1)]
  train_set: manifests.Source
  files: _Files


def folder_of(dataset: str, name: str, data_dir: str) -> pathlib.Path:
  """Returns the folder of a set: cifar10, edsr -> DATA_DIR/cifar10_deepaugment/edsr."""
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
    copies: at least one, as from `load`.
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
  hashed = about | {'sets': [_as_in_0_1_0(part) for part in sets.values()]}
  digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
  return train._replace(
    num_examples=clean + made,
    read=read,
    provenance=train.provenance | {'sha256': digest, 'deepaugment': about},
    epoch_size=n,
  )


def _as_in_0_1_0(part: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the provenance of a set as release 0.1.0 recorded it, so that runs of that release can be resumed."""
  made_with = manifests.with_code(part.get('made_with'), 'deepaugment')
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

  def error(facts: str, remedy: str = 'remake') -> ArtifactError:
    about = {'dataset': train.name, 'made': manifest, 'copies': wanted}
    return ArtifactError(facts, folder, KIND, remedy, about)

  if manifest['train_set']['sha256'] != train.provenance['sha256']:
    raise error(
      f"'{folder}' was made from images with SHA-256 {manifest['train_set']['sha256']}, but the training images of "
      f"'{train.name}' have {train.provenance['sha256']}"
    )
  if wanted > made:
    raise error(f"'{folder}' has {made} copies, but {wanted} are wanted", 'more copies')
  with arrays.readable(folder):
    check_files(folder, manifest, train.name)
    images, labels, index = found = [arrays.open_array(arrays.whole(folder / file)) for file in FILES]
    rows, dtypes = (made * n,), ('uint8', 'int32', 'int32')
    for file, array, dtype, shape in zip(FILES, found, dtypes, ((*rows, *train.image_shape), rows, rows), strict=True):
      if fault := arrays.mismatch(array, f"'{folder / file}'", dtype, shape):
        raise error(fault)
    expected = np.tile([arrays.labels_of(train), np.arange(n)], made)
    if not np.array_equal([labels, index], expected):
      raise error(f"'{folder}': its labels are not those of '{train.name}'")
  provenance = {'name': name} | {key: value for key, value in manifest.items() if key != 'train_set'}
  return [_copy(train, images, labels, number, provenance) for number in range(wanted)]


def _missing(folder: pathlib.Path, dataset: str, copies: int | None) -> ArtifactError:
  """Returns the error of a set without a manifest."""
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
  """Returns the MANIFEST.json of a set of `dataset`; raises ArtifactError if it is damaged, or of another format."""
  return _read(path, dataset, _Manifest)


def read_plan(path: pathlib.Path, dataset: str) -> dict[str, Any]:
  """Returns the PLAN.json of a set; raises as `read_manifest`."""
  return _read(path, dataset, dict[str, Any])


def _read(path: pathlib.Path, dataset: str, record: Any) -> dict[str, Any]:
  return artifact.read(path, record, path=path.parent, kind=KIND, remedy='remake', about={'dataset': dataset})


def check_files(folder: pathlib.Path, manifest: Mapping[str, Any], dataset: str, *, hashed: bool = True) -> None:
  """Raises ArtifactError if a file is missing or differs from the manifest, in size or, if `hashed`, in SHA-256."""
  try:
    artifact.verify(folder, {name: manifest['files'][name] for name in FILES}, hashed=hashed)
  except artifact.Damaged as damage:
    about = {'dataset': dataset, 'made': manifest}
    raise ArtifactError(f"'{folder / damage.name}' {damage.detail}", folder, KIND, 'remake', about) from damage
