"""CIFAR-10-C and sets like it: a test set under corruptions of five severities, in the layout of the official files.

NAME.npy holds uint8 [5 n, h, w, 3]: all n images at severity 1, then all at severity 2, and so on; labels.npy the n
labels five times over (D. Hendrycks, Zenodo record 2535967). `prepare cifar10_c` adds MANIFEST.json, which says how the
files were made, of which test set, and with which SHA-256.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment.config.fields import optional, text
from adversarial_augment.datasets import archives, npy
from adversarial_augment.datasets.sampling import batches
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.metrics import CORRUPTIONS_VERSION, GENERATED_OLDER, SEVERITIES, generated_origin
from adversarial_augment.storage import artifact, untrusted
from adversarial_augment.storage.artifact import MANIFEST
from adversarial_augment.types import Dataset

KIND = 'cifar10_c'  # of the errors
FORMAT = 1  # of the manifest
_ORIGINS = ('official', 'generated', GENERATED_OLDER, 'unverified')
LABELS = 'labels.npy'
# MD5 of the files in CIFAR-10-C.tar (Zenodo record 2535967; the archive's own is 56bf5dcef84df0e2308c6dcbcbbd8499), as
# several public loaders list them, for example rai_toolbox/datasets of mit-ll-responsible-ai/responsible-ai-toolbox.
OFFICIAL_MD5 = {
  'brightness.npy': '0a81ef75e0b523c3383219c330a85d48',
  'contrast.npy': '3c8262171c51307f916c30a3308235a8',
  'defocus_blur.npy': '7d1322666342a0702b1957e92f6254bc',
  'elastic_transform.npy': '9421657c6cd452429cf6ce96cc412b5f',
  'fog.npy': '7b397314b5670f825465fbcd1f6e9ccd',
  'frost.npy': '31f6ab3bce1d9934abfb0cc13656f141',
  'gaussian_blur.npy': 'c33370155bc9b055fb4a89113d3c559d',
  'gaussian_noise.npy': 'ecaf8b9a2399ffeda7680934c33405fd',
  'glass_blur.npy': '7361fb4019269e02dbf6925f083e8629',
  'impulse_noise.npy': '2090e01c83519ec51427e65116af6b1a',
  'jpeg_compression.npy': '2b9cc4c864e0193bb64db8d7728f8187',
  'labels.npy': 'c439b113295ed5254878798ffe28fd54',
  'motion_blur.npy': 'fffa5f852ff7ad299cfe8a7643f090f4',
  'pixelate.npy': '0f14f7e2db14288304e1de10df16832f',
  'saturate.npy': '1cfae0964219c5102abbb883e538cc56',
  'shot_noise.npy': '3a7239bb118894f013d9bf1984be7f11',
  'snow.npy': 'bb238de8555123da9c282dea23bd6e55',
  'spatter.npy': '8a5a3903a7f8f65b59501a6093b4311e',
  'speckle_noise.npy': 'ef00b87611792b00df09c0b0237a1e30',
  'zoom_blur.npy': '6ea8e63f1c5cdee1517533840641641b',
}
_FROST = optional(text())
_MAX_MANIFEST = 1 << 20  # bytes


class CorruptionSet(NamedTuple):
  """A test set under several corruptions. The labels are those of the test set."""

  names: tuple[str, ...]  # of the corruptions
  origin: str  # official, generated, 'generated, in memory', 'generated, version 1', unverified
  provenance: dict[str, Any]  # seed, frost, made_with, sha256; None where not known
  read: Callable[[str, int, np.ndarray], np.ndarray]  # name, severity 1..5, indices [k] -> uint8 [k, h, w, 3]
  notes: Mapping[str, Mapping[str, Any]] = {}  # of single corruptions: their constants, the source of frost
  sha256: Mapping[str, str] = {}  # of the files, by name; what is made in memory has none
  warning: ArtifactError | None = None  # what one who uses it should know


def folder_name(dataset: str) -> str:
  """Returns the folder under `data_dir` that holds the corruptions of a data set's test split: cifar10 -> cifar10_c."""
  return f'{dataset.partition(":")[0].replace("/", "_")}_c'


def open_set(path: pathlib.Path, names: Sequence[str], test: Dataset, *, verify: bool = False) -> CorruptionSet:
  """Opens corruptions of a test set; the files are memory-mapped, and only their headers and the labels are read.

  Args:
    path: a folder with NAME.npy and labels.npy, or a tar archive of them, such as CIFAR-10-C.tar, not unpacked.
    names: the corruptions that must be there.
    test: the test set that they must belong to.
    verify: whether to hash every file that is used (2.3 GB for the 15 of CIFAR-10), and compare with the manifest or,
      where there is none, with the official files. Without it, a set without a manifest is 'unverified'.

  Raises:
    UserError: a file is missing, cut off, of another shape or type, of another test set or order, or not as the
      manifest says.
  """
  try:
    return _Opened(path, names, test).check(verify)
  except OSError as error:
    raise UserError(f"'{error.filename or path}' cannot be read ({error.strerror or error}); mend it.") from error


def read_manifest(part: npy.Part, folder: pathlib.Path, dataset: str) -> dict[str, Any]:
  """Returns what a MANIFEST.json says, with the fields of this module's format.

  Args:
    part: the file.
    folder: the set's folder.
    dataset: whose test split it is of.

  Raises:
    ArtifactError: it is damaged, or of another format.
  """
  where: dict[str, Any] = {'path': folder, 'kind': KIND, 'remedy': 'remake', 'about': {'dataset': dataset}}
  with untrusted.open_file(part.path) as file:
    file.seek(part.offset)
    return artifact.read(part.label, _check_fields, file.read(min(part.size, _MAX_MANIFEST)), **where)


def labels_of(dataset: Dataset) -> np.ndarray:
  """Returns all labels of a split, int [n]."""
  return np.concatenate([dataset.read(index).labels for index in batches(dataset.num_examples, 10_000)])


def _check_fields(manifest: Mapping[str, Any]) -> None:
  """Raises ValueError, KeyError or TypeError where a field is not as `prepare` writes it."""
  if manifest['format'] != FORMAT:
    raise ValueError(f'format {manifest["format"]}, not {FORMAT}')
  entries = list(manifest['files'].values())
  texts = [manifest['origin'], manifest['test_set']['sha256'], *(entry['sha256'] for entry in entries)]
  numbers = [manifest['num_images'], *(entry['bytes'] for entry in entries)]
  if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
    raise ValueError('a field of another type')
  if manifest['origin'] not in _ORIGINS or not isinstance(manifest['seed'], int | None):
    raise ValueError(f'origin {manifest["origin"]!r} or seed {manifest["seed"]!r}')
  frost = manifest['files'].get('frost.npy', {}).get('frost')
  if not _FROST.accepts(frost):
    raise ValueError(f'frost={frost!r}')
  manifest['made_with'], tuple(manifest['image_shape'])


class _Opened:
  """A set whose files were found, and what is known of it."""

  def __init__(self, path: pathlib.Path, names: Sequence[str], test: Dataset):
    self.path, self.names, self.test = path, tuple(names), test
    self.manifest: dict[str, Any] | None = None
    self.files = (LABELS, *(f'{name}.npy' for name in names))
    self.parts = _parts(path)
    if missing := [file for file in self.files if file not in self.parts]:
      raise self._error(
        f"'{path}' has no {', '.join(missing)}; it must hold NAME.npy for {', '.join(names)}, and {LABELS}", 'make'
      )
    if MANIFEST in self.parts:
      self.manifest = read_manifest(self.parts[MANIFEST], path, test.name)

  def check(self, verify: bool) -> CorruptionSet:
    """Returns the set; raises UserError where a file is not as it must be."""
    if self.manifest:
      self._check_manifest(self.manifest)
    self._check_labels()
    images = {name: self._images(self.parts[f'{name}.npy']) for name in self.names}
    sha256 = self._hashes() if verify else {}
    n = self.test.num_examples

    def read(name: str, severity: int, indices: np.ndarray) -> np.ndarray:
      return np.asarray(images[name][(severity - 1) * n + np.asarray(indices)])

    known: Mapping[str, Any] = self.manifest or {'origin': 'unverified', 'seed': None, 'made_with': None}
    origin, notes = known['origin'], {}
    if self.manifest:
      entries = {file: self.manifest['files'][file] for file in self.files}
      sha256 = {file: entry['sha256'] for file, entry in entries.items()}
      notes = {name: _without_hashes(entries[f'{name}.npy']) for name in self.names}
      origin = generated_origin(known['made_with'], self.names) if origin == 'generated' else origin
    elif verify and all(self.parts[file].digest('md5') == OFFICIAL_MD5.get(file) for file in self.files):
      origin = 'official'
    provenance = {
      'seed': known['seed'],
      'frost': notes.get('frost', {}).get('frost'),
      'made_with': known['made_with'],
      # A hash of the used files' hashes, whatever lies beside them.
      'sha256': hashlib.sha256(json.dumps(sha256, sort_keys=True).encode()).hexdigest() if sha256 else None,
    }
    warning = None
    if origin == GENERATED_OLDER:
      warning = self._error(
        f"'{self.path}' was made by version 1 of the corruptions, whose motion_blur and snow are rounded up where "
        f"CIFAR-10-C's are truncated (now it is version {CORRUPTIONS_VERSION})",
        'remake',
      )
    return CorruptionSet(self.names, origin, provenance, read, notes, sha256, warning)

  def _error(self, facts: str, remedy: str = '') -> ArtifactError:
    return ArtifactError(facts, self.path, KIND, remedy, {**(self.manifest or {}), 'dataset': self.test.name})

  def _check_manifest(self, manifest: Mapping[str, Any]) -> None:
    """The manifest must be of this test set and list the wanted files with their sizes."""
    label, test = self.parts[MANIFEST].label, self.test
    if manifest['test_set']['sha256'] != test.provenance['sha256']:
      raise self._error(
        f"'{label}' is of a test set with SHA-256 {manifest['test_set']['sha256']}, but the test split of "
        f"'{test.name}' has {test.provenance['sha256']}",
        'remake',
      )
    if manifest['num_images'] != test.num_examples or tuple(manifest['image_shape']) != test.image_shape:
      raise self._error(
        f"'{label}' is of {manifest['num_images']} images {manifest['image_shape']}, but '{test.name}' has "
        f'{test.num_examples} images {list(test.image_shape)}',
        'remake',
      )
    for file in self.files:
      if file not in manifest['files']:
        raise self._error(
          f"'{self.parts[file].label}' is not listed in {MANIFEST}, so that nobody knows what it is", 'resume'
        )
      self._check_entry(file, None)

  def _hashes(self) -> dict[str, str]:
    """Returns the SHA-256 of each file, which is that of the manifest, if there is one."""
    hashes = {}
    for file in self.files:
      hashes[file] = self.parts[file].digest('sha256')
      if self.manifest:
        self._check_entry(file, hashes[file])
    return hashes

  def _check_entry(self, file: str, sha256: str | None) -> None:
    assert self.manifest is not None
    try:
      artifact.check_entry(file, self.manifest['files'][file], self.parts[file].size, sha256)
    except artifact.Damaged as damage:
      raise self._error(f"'{self.parts[file].label}' {damage.detail}", 'remove and resume') from damage

  def _check_labels(self) -> None:
    part, test, n = self.parts[LABELS], self.test, self.test.num_examples
    labels = npy.open_array(part)
    if labels.dtype.kind not in 'iu' or labels.ndim != 1:
      raise self._error(
        f"'{part.label}' has shape {list(labels.shape)} and type {labels.dtype.name}, but must be integers [{5 * n}]"
      )
    self._check_rows(part, len(labels))
    repeated, expected = labels.reshape(len(SEVERITIES), n), labels_of(test)
    wrong = np.argwhere(repeated != expected)
    if not len(wrong):
      return
    severity, i = wrong[0]
    reason, remedy = 'it belongs to another test set', ''
    if (np.sort(repeated) == np.sort(expected)).all():
      reason, remedy = 'the same labels stand in another order', 'remake'
      if test.name.startswith('cifar10'):
        reason, remedy = f'{reason} (TFDS shuffles CIFAR-10)', 'import in order'
    raise self._error(
      f"'{part.label}' has label {repeated[severity, i]} in row {severity * n + i}, but image {i} of the test split of "
      f"'{test.name}' has {expected[i]}: {reason}",
      remedy,
    )

  def _images(self, part: npy.Part) -> np.ndarray:
    images, test = npy.open_array(part), self.test
    if images.dtype != np.uint8 or images.shape[1:] != test.image_shape:
      raise self._error(
        f"'{part.label}' has shape {list(images.shape)} and type {images.dtype.name}, but must be uint8 "
        f"{[5 * test.num_examples, *test.image_shape]}, as the images of '{test.name}'"
      )
    self._check_rows(part, len(images))
    return images

  def _check_rows(self, part: npy.Part, rows: int) -> None:
    n = self.test.num_examples
    if rows != len(SEVERITIES) * n:
      raise self._error(
        f"'{part.label}' has {rows:,} rows, but must have {len(SEVERITIES) * n:,}: all five severities of each of the "
        f"{n:,} images in the test split of '{self.test.name}'"
      )


def _without_hashes(entry: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in entry.items() if key not in ('bytes', 'sha256')}


def _parts(path: pathlib.Path) -> dict[str, npy.Part]:
  """Returns the files by name."""
  if path.is_dir():
    return {file.name: npy.whole(file) for file in path.iterdir() if file.is_file()}
  if not path.is_file():
    raise UserError(f"'{path}' {'is no file or folder' if path.exists() else 'does not exist'}; it must hold NAME.npy.")
  try:
    with untrusted.open_file(path) as file:
      members = list(archives.members(archives.plain(file)))
  except untrusted.Unusable as error:
    raise UserError(
      f"'{path}' is neither a folder nor a whole and uncompressed tar archive; give CIFAR-10-C.tar, or a "
      'folder with its files.'
    ) from error
  return {
    pathlib.PurePosixPath(member.name).name: npy.Part(f'{path}: {member.name}', path, member.offset, member.size)
    for member in members
  }
