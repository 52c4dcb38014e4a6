"""CIFAR-10-C and sets like it: a test set under corruptions of five severities, in the layout of the official files.

NAME.npy is uint8 [5 n, h, w, 3]: all n images at severity 1, then all at severity 2, and so on; labels.npy has the n
labels five times over (D. Hendrycks, Zenodo record 2535967). `prepare cifar10_c` adds MANIFEST.json: how the files were
made, from which test set, and their SHA-256.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from adversarial_augment.datasets import archives, arrays, manifests
from adversarial_augment.errors import ArtifactError, UserError, show
from adversarial_augment.metrics import (
  BAR_NAMES,
  CORRUPTIONS_VERSION,
  GENERATED_OLDER,
  NAMES,
  SEVERITIES,
  generated_origin,
)  # fmt: skip
from adversarial_augment.storage import artifact, untrusted
from adversarial_augment.storage.artifact import MANIFEST
from adversarial_augment.types import Dataset

KIND = 'cifar10_c'  # of the errors
FORMAT = 1  # of the manifest
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
# As OFFICIAL_MD5, of CIFAR-100-C.tar (Zenodo record 3555552).
OFFICIAL_MD5_OF_CIFAR100 = {
  'brightness.npy': 'f22d7195aecd6abb541e27fca230c171',
  'contrast.npy': '322bb385f1d05154ee197ca16535f71e',
  'defocus_blur.npy': 'd923e3d9c585a27f0956e2f2ad832564',
  'elastic_transform.npy': 'a0792bd6581f6810878be71acedfc65a',
  'fog.npy': '4efc7ebd5e82b028bdbe13048e3ea564',
  'frost.npy': '3a39c6823bdfaa0bf8b12fe7004b8117',
  'gaussian_blur.npy': '5204ba0d557839772ef5a4196a052c3e',
  'gaussian_noise.npy': 'ecc4d366eac432bdf25c024086f5e97d',
  'glass_blur.npy': '0bf384f38e5ccbf8dd479d9059b913e1',
  'impulse_noise.npy': '3b3c210ddfa0b5cb918ff4537a429fef',
  'jpeg_compression.npy': 'c851b7f1324e1d2ffddeb76920576d11',
  'labels.npy': 'bb4026e9ce52996b95f439544568cdb2',
  'motion_blur.npy': '732a7e2e54152ff97c742d4c388c5516',
  'pixelate.npy': '96c00c60f144539e14cffb02ddbd0640',
  'saturate.npy': 'c0697e9fdd646916a61e9c312c77bf6b',
  'shot_noise.npy': 'b0a1fa6e1e465a747c1b204b1914048a',
  'snow.npy': '0237be164583af146b7b144e73b43465',
  'spatter.npy': '12ccf41d62564d36e1f6a6ada5022728',
  'speckle_noise.npy': 'e3f215b1a0f9fd9fd6f0d1cf94a7ce99',
  'zoom_blur.npy': '0204613400c034a81c4830d5df81cb82',
}
_MAX_MANIFEST = 1 << 20  # bytes


class CorruptionSet(NamedTuple):
  """A test set under several corruptions. The labels are those of the test set."""

  names: tuple[str, ...]  # of the corruptions
  origin: str  # official, generated, 'generated, in memory', 'generated, version 1', unverified
  provenance: dict[str, Any]  # seed, frost, made_with, sha256; None where not known
  read: Callable[[str, int, np.ndarray], np.ndarray]  # name, severity 1..5, indices [k] -> uint8 [k, h, w, 3]
  notes: Mapping[str, Mapping[str, Any]] = {}  # of single corruptions: their constants, the source of frost
  sha256: Mapping[str, str] = {}  # of the files, by name; what is made in memory has none
  warning: ArtifactError | None = None  # what its users should know


def folder_name(dataset: str, names: Collection[str] = NAMES) -> str:
  """Returns the folder under `data_dir` of corruptions of a test split: cifar10_c, or cifar10_c_bar for BAR_NAMES."""
  suffix = 'c_bar' if set(names) & set(BAR_NAMES) else 'c'
  return f'{dataset.partition(":")[0].replace("/", "_")}_{suffix}'


class _Manifest(msgspec.Struct):
  format: Literal[1]
  origin: Literal['official', 'generated', 'generated, version 1', 'unverified']
  seed: int | None
  made_with: Any
  num_images: int
  image_shape: list[int]
  test_set: manifests.Source
  files: dict[str, manifests.File]


def read_manifest(part: arrays.Part, folder: pathlib.Path, dataset: str) -> dict[str, Any]:
  """Returns the manifest of a set of `dataset` in `folder`; raises ArtifactError if it is damaged or not of FORMAT."""
  with untrusted.open_file(part.path) as file:
    file.seek(part.offset)
    content = file.read(min(part.size, _MAX_MANIFEST))
  about = {'dataset': dataset}
  return artifact.read(part.label, _Manifest, content, path=folder, kind=KIND, remedy='remake', about=about)


class _Files:
  """The files of a set, and what its manifest says of them."""

  def __init__(self, path: pathlib.Path, names: Sequence[str], test: Dataset):
    self.path, self.test = path, test
    self.manifest: dict[str, Any] = {}
    self.names = (LABELS, *(f'{name}.npy' for name in names))
    self.parts = _parts(path)
    if missing := [file for file in self.names if file not in self.parts]:
      raise self.error(
        f"'{path}' has no {', '.join(missing)}; it must have NAME.npy for {', '.join(names)}, and {LABELS}", 'make'
      )
    if MANIFEST in self.parts:
      self.manifest = read_manifest(self.parts[MANIFEST], path, test.name)
      self._check_manifest()

  def error(self, facts: str, remedy: str = '') -> ArtifactError:
    return ArtifactError(facts, self.path, KIND, remedy, {**self.manifest, 'dataset': self.test.name})

  def _check_manifest(self) -> None:
    """The manifest must be of this test set and list the wanted files with their sizes."""
    manifest, test, label = self.manifest, self.test, self.parts[MANIFEST].label
    for what, found, wanted in (
      ('SHA-256', manifest['test_set']['sha256'], test.provenance['sha256']),
      ('size', [manifest['num_images'], *manifest['image_shape']], [test.num_examples, *test.image_shape]),
    ):
      if found != wanted:
        raise self.error(f"'{label}' is of a test set of {what} {found}, but '{test.name}' has {wanted}", 'remake')
    if unlisted := [file for file in self.names if file not in manifest['files']]:
      raise self.error(f"'{self.parts[unlisted[0]].label}' is not listed in {MANIFEST}", 'resume')
    self.check_entries({})

  def check_entries(self, sha256: Mapping[str, str]) -> None:
    """Compares the sizes of the files, and the hashes that are known, with the manifest."""
    for file in self.names:
      try:
        artifact.check_entry(file, self.manifest['files'][file], self.parts[file].size, sha256.get(file))
      except artifact.Damaged as damage:
        raise self.error(f"'{self.parts[file].label}' {damage.detail}", 'remove and resume') from damage

  def array(self, file: str, dtype: str, shape: Sequence[int] = ()) -> np.ndarray:
    """Returns an array of one row of `shape` for each severity and image."""
    array, n = arrays.open_array(self.parts[file]), self.test.num_examples
    if fault := arrays.mismatch(array, f"'{self.parts[file].label}'", dtype, (len(SEVERITIES) * n, *shape)):
      raise self.error(f"{fault}: five severities of the {n:,} images in the test split of '{self.test.name}'")
    return array

  def check_labels(self) -> None:
    test = self.test
    repeated, expected = self.array(LABELS, 'integers').reshape(len(SEVERITIES), -1), arrays.labels_of(test)
    wrong = np.argwhere(repeated != expected)
    if not len(wrong):
      return
    severity, i = wrong[0]
    reason, remedy = 'it belongs to another test set', ''
    if (np.sort(repeated) == np.sort(expected)).all():
      reason, remedy = 'the same labels are in another order', 'remake'
      if test.name.partition(':')[0] in ('cifar10', 'cifar100'):
        reason, remedy = f'{reason} (TFDS shuffles CIFAR)', 'import in order'
    row, found = severity * len(expected) + i, repeated[severity, i]
    raise self.error(
      f"'{self.parts[LABELS].label}' has label {found} in row {row}, but image {i} of the test split of '{test.name}' "
      f'has {expected[i]}: {reason}',
      remedy,
    )


def open_set(path: pathlib.Path, names: Sequence[str], test: Dataset, *, verify: bool = False) -> CorruptionSet:
  """Opens corruptions of a test set; the files are memory-mapped, and only their headers and the labels are read.

  Args:
    path: a folder with NAME.npy and labels.npy, or a tar archive of them, such as CIFAR-10-C.tar, not unpacked.
    names: the corruptions that must be there.
    test: the test set that they must belong to.
    verify: whether to hash every file that is used (2.3 GB for the 15 of CIFAR-10), and compare with the manifest or,
      without one, with the official files. Otherwise a set without a manifest is 'unverified'.

  Raises:
    UserError: a file is missing, cut off, of another shape or type, of another test set or order, or not as the
      manifest says.
  """
  with arrays.readable(path):
    files = _Files(path, names, test)
    files.check_labels()
    images = {name: files.array(f'{name}.npy', 'uint8', test.image_shape) for name in names}
    sha256 = {file: files.parts[file].digest('sha256') for file in files.names} if verify else {}

    def read(name: str, severity: int, indices: np.ndarray) -> np.ndarray:
      return np.asarray(images[name][(severity - 1) * test.num_examples + np.asarray(indices)])

    known, notes = files.manifest or {'origin': 'unverified', 'seed': None, 'made_with': None}, {}
    origin = known['origin']
    if files.manifest:
      files.check_entries(sha256)
      entries = {file: known['files'][file] for file in files.names}
      sha256 = {file: entry['sha256'] for file, entry in entries.items()}
      notes = {name: _without_hashes(entries[f'{name}.npy']) for name in names}
      origin = generated_origin(known['made_with'], names) if origin == 'generated' else origin
    elif verify and any(
      all(files.parts[file].digest('md5') == known_md5.get(file) for file in files.names)
      for known_md5 in (OFFICIAL_MD5, OFFICIAL_MD5_OF_CIFAR100)
    ):
      origin = 'official'
  provenance = {
    'seed': known['seed'],
    'frost': notes.get('frost', {}).get('frost'),
    'made_with': known['made_with'],
    # A hash of the used files' hashes, whatever else is in the folder.
    'sha256': hashlib.sha256(json.dumps(sha256, sort_keys=True).encode()).hexdigest() if sha256 else None,
  }
  warning = None
  if origin == GENERATED_OLDER:
    warning = files.error(
      f"'{path}' was made by version 1 of the corruptions, whose motion_blur and snow are rounded up where "
      f"CIFAR-10-C's are truncated (now it is version {CORRUPTIONS_VERSION})",
      'remake',
    )
  return CorruptionSet(tuple(names), origin, provenance, read, notes, sha256, warning)


def _without_hashes(entry: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in entry.items() if key not in ('bytes', 'sha256')}


def _parts(path: pathlib.Path) -> dict[str, arrays.Part]:
  """Returns the files of a folder or a tar archive by name."""
  if path.is_dir():
    return {file.name: arrays.whole(file) for file in path.iterdir() if file.is_file()}
  if not path.is_file():
    problem = 'is not a file or folder' if path.exists() else 'does not exist'
    raise UserError(f"'{path}' {problem}; give CIFAR-10-C.tar, or a folder with its files.")
  try:
    with untrusted.open_file(path) as file:
      members = list(archives.members(file))
  except untrusted.Unusable as error:
    raise UserError(
      f"'{path}' is neither a folder nor a whole and uncompressed tar archive; give CIFAR-10-C.tar, or a "
      'folder with its files.'
    ) from error
  parts: dict[str, arrays.Part] = {}
  for member in members:
    at = pathlib.PurePosixPath(member.name)
    if at.name in parts or at.is_absolute() or '..' in at.parts:
      problem = 'leads out of it' if at.name not in parts else f"has the name of '{parts[at.name].label}'"
      raise UserError(f"'{path}' has a member {show(member.name)}, which {problem}; get the archive again.")
    parts[at.name] = arrays.Part(f'{path}: {member.name}', path, member.offset, member.size)
  return parts
