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
from adversarial_augment.datasets.commands import prepare
from adversarial_augment.datasets.reasons import one_line
from adversarial_augment.datasets.sampling import batches
from adversarial_augment.errors import UserError
from adversarial_augment.metrics import CORRUPTIONS_VERSION, GENERATED_OLDER, SEVERITIES, generated_origin
from adversarial_augment.storage import untrusted
from adversarial_augment.types import Dataset

MANIFEST = 'MANIFEST.json'
FORMAT = 1  # of the manifest
_ORIGINS = ('official', 'generated', GENERATED_OLDER, 'unverified')
OF_FILES = ('bytes', 'sha256')  # what the manifest says of every file
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
_CHUNK = 1 << 22  # bytes hashed at once


class _Hashes(NamedTuple):
  sha256: str
  md5: str


class CorruptionSet(NamedTuple):
  """A test set under several corruptions. The labels are those of the test set."""

  names: tuple[str, ...]  # of the corruptions
  origin: str  # official, generated, 'generated, in memory', 'generated, version 1', unverified
  provenance: dict[str, Any]  # seed, frost, made_with, sha256; None where not known
  read: Callable[[str, int, np.ndarray], np.ndarray]  # name, severity 1..5, indices [k] -> uint8 [k, h, w, 3]
  notes: Mapping[str, Mapping[str, Any]] = {}  # of single corruptions: their constants, the source of frost
  sha256: Mapping[str, str] = {}  # of the files, by name; what is made in memory has none
  warning: str = ''  # what one who uses it should know


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
    return _open(path, names, test, verify)
  except OSError as error:
    raise UserError(f"'{error.filename or path}' cannot be read ({error.strerror or error}); mend it.") from error


def _open(path: pathlib.Path, names: Sequence[str], test: Dataset, verify: bool) -> CorruptionSet:
  parts = _parts(path)
  wanted = (LABELS, *(f'{name}.npy' for name in names))
  if missing := [file for file in wanted if file not in parts]:
    raise UserError(
      f"'{path}' has no {', '.join(missing)}; it must hold NAME.npy for {', '.join(names)}, and {LABELS}: make them "
      f'with {command(path, test)}, or get CIFAR-10-C.tar (Zenodo record 2535967).'
    )
  manifest = _manifest(path, parts, wanted, test) if MANIFEST in parts else None
  _check_labels(path, parts[LABELS], test)
  images = {name: _images(parts[f'{name}.npy'], test) for name in names}
  hashes = _verified(path, parts, wanted, manifest, test) if verify else {}

  def read(name: str, severity: int, indices: np.ndarray) -> np.ndarray:
    return np.asarray(images[name][(severity - 1) * test.num_examples + np.asarray(indices)])

  if manifest:
    origin, seed, made_with = manifest['origin'], manifest['seed'], manifest['made_with']
    if origin == 'generated':
      origin = generated_origin(made_with, names)
    entries = {name: manifest['files'][f'{name}.npy'] for name in names}
    notes = {name: {key: entry[key] for key in entry if key not in OF_FILES} for name, entry in entries.items()}
    sha256 = {file: manifest['files'][file]['sha256'] for file in wanted}
  else:
    official = hashes and all(OFFICIAL_MD5.get(file) == hashed.md5 for file, hashed in hashes.items())
    origin, seed, made_with, notes = 'official' if official else 'unverified', None, None, {}
    sha256 = {file: hashed.sha256 for file, hashed in hashes.items()}
  # A hash of the used files' hashes, whatever lies beside them.
  digest = hashlib.sha256(json.dumps(sha256, sort_keys=True).encode()).hexdigest() if sha256 else None
  provenance = {'seed': seed, 'frost': notes.get('frost', {}).get('frost'), 'made_with': made_with, 'sha256': digest}
  warning = _older(path, test) if origin == GENERATED_OLDER else ''
  return CorruptionSet(tuple(names), origin, provenance, read, notes, sha256, warning)


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


def _manifest(
  path: pathlib.Path, parts: Mapping[str, npy.Part], wanted: Sequence[str], test: Dataset
) -> dict[str, Any]:
  """Returns the manifest, which must be of this test set and list the wanted files with their sizes."""
  part = parts[MANIFEST]
  manifest = read_manifest(part, command(path, test, '--overwrite'))
  if manifest['test_set']['sha256'] != test.provenance['sha256']:
    raise UserError(
      f"'{part.label}' is of a test set with SHA-256 {manifest['test_set']['sha256']}, but the test split of "
      f"'{test.name}' has {test.provenance['sha256']}; make it again with {command(path, test, '--overwrite')}."
    )
  if manifest['num_images'] != test.num_examples or tuple(manifest['image_shape']) != test.image_shape:
    raise UserError(
      f"'{part.label}' is of {manifest['num_images']} images {manifest['image_shape']}, but '{test.name}' has "
      f'{test.num_examples} images {list(test.image_shape)}; make it again with '
      f'{command(path, test, "--overwrite")}.'
    )
  for file in wanted:
    found = manifest['files'].get(file)
    if found is None:
      raise UserError(
        f"'{parts[file].label}' is not listed in {MANIFEST}, so that nobody knows what it is; start "
        f'{_again(path, test, manifest)} once more, which goes on where it was interrupted.'
      )
    if found['bytes'] != parts[file].size:
      raise UserError(
        f"'{parts[file].label}' has {parts[file].size:,} bytes, but {found['bytes']:,} in {MANIFEST}; remove it, and "
        f'start {_again(path, test, manifest)} once more.'
      )
  return manifest


def command(path: pathlib.Path, test: Dataset, *flags: str) -> str:
  """Returns the command line that makes the set at `path`; another folder or archive is there to be imported."""
  if not _belongs(path, test):
    return 'the same command without --from'
  return prepare(path.parent, 'cifar10_c', f'--dataset={test.name}', *flags)


def _belongs(path: pathlib.Path, test: Dataset) -> bool:
  return path.name == folder_name(test.name)


def _again(path: pathlib.Path, test: Dataset, manifest: Mapping[str, Any]) -> str:
  """Returns the command line that goes on with a set that has this manifest."""
  if not _belongs(path, test):
    return 'the command that made it'
  source, seed = manifest.get('source'), manifest['seed']
  return command(path, test, *([f'--from={source}'] if source else [f'--seed={seed}'] if seed else []))


def _older(path: pathlib.Path, test: Dataset) -> str:
  """Returns what is to be known of a set that an older version has generated."""
  return (
    f"'{path}' was made by version 1 of the corruptions, whose motion_blur and snow are rounded up where CIFAR-10-C's "
    f'are truncated (now it is version {CORRUPTIONS_VERSION}); replace it with {command(path, test, "--overwrite")}.'
  )


def read_manifest(part: npy.Part, remedy: str) -> dict[str, Any]:
  """Returns what a MANIFEST.json says, with the fields of this module's format.

  Args:
    part: the file.
    remedy: the command line that makes the set again.

  Raises:
    UserError: it is damaged, or of another format.
  """
  try:
    with untrusted.open_file(part.path) as file:
      file.seek(part.offset)
      manifest = untrusted.parse_json(file.read(min(part.size, _MAX_MANIFEST)))
    if manifest['format'] != FORMAT:
      raise ValueError(f'format {manifest["format"]}, not {FORMAT}')
    texts = [manifest['origin'], manifest['test_set']['sha256'], *(f['sha256'] for f in manifest['files'].values())]
    numbers = [manifest['num_images'], *(f['bytes'] for f in manifest['files'].values())]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int) for number in numbers):
      raise ValueError('a field of another type')
    if manifest['origin'] not in _ORIGINS or not isinstance(manifest['seed'], int | None):
      raise ValueError(f'origin {manifest["origin"]!r} or seed {manifest["seed"]!r}')
    frost = manifest['files'].get('frost.npy', {}).get('frost')
    if not _FROST.accepts(frost):
      raise ValueError(f'frost={frost!r}')
    manifest['made_with'], tuple(manifest['image_shape'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"'{part.label}' is damaged or not of this program ({type(error).__name__}: {one_line(error)}); make the set "
      f'again with {remedy}.'
    ) from error
  return manifest


def labels_of(dataset: Dataset) -> np.ndarray:
  """Returns all labels of a split, int [n]."""
  return np.concatenate([dataset.read(index).labels for index in batches(dataset.num_examples, 10_000)])


def _check_labels(path: pathlib.Path, part: npy.Part, test: Dataset) -> None:
  labels, n = npy.open_array(part), test.num_examples
  if labels.dtype.kind not in 'iu' or labels.ndim != 1:
    raise UserError(
      f"'{part.label}' has shape {list(labels.shape)} and type {labels.dtype.name}, but must be integers [{5 * n}]."
    )
  _check_rows(part, len(labels), test)
  repeated, expected = labels.reshape(len(SEVERITIES), n), labels_of(test)
  wrong = np.argwhere(repeated != expected)
  if not len(wrong):
    return
  severity, i = wrong[0]
  order = (np.sort(repeated) == np.sort(expected)).all()
  reason = (
    'the same labels stand in another order (TFDS shuffles CIFAR-10: bring it in with '
    f'{prepare(path.parent, "cifar10", "--overwrite") if _belongs(path, test) else "prepare cifar10"} instead)'
    if order and test.name.startswith('cifar10')
    else 'the same labels stand in another order; make it again'
    if order
    else 'it belongs to another test set'
  )
  raise UserError(
    f"'{part.label}' has label {repeated[severity, i]} in row {severity * n + i}, but image {i} of the test split of "
    f"'{test.name}' has {expected[i]}: {reason}."
  )


def _images(part: npy.Part, test: Dataset) -> np.ndarray:
  images = npy.open_array(part)
  if images.dtype != np.uint8 or images.shape[1:] != test.image_shape:
    raise UserError(
      f"'{part.label}' has shape {list(images.shape)} and type {images.dtype.name}, but must be uint8 "
      f"{[5 * test.num_examples, *test.image_shape]}, as the images of '{test.name}'."
    )
  _check_rows(part, len(images), test)
  return images


def _check_rows(part: npy.Part, rows: int, test: Dataset) -> None:
  n = test.num_examples
  if rows != len(SEVERITIES) * n:
    raise UserError(
      f"'{part.label}' has {rows:,} rows, but must have {len(SEVERITIES) * n:,}: all five severities of each of the "
      f"{n:,} images in the test split of '{test.name}'."
    )


def _verified(
  path: pathlib.Path,
  parts: Mapping[str, npy.Part],
  wanted: Sequence[str],
  manifest: Mapping[str, Any] | None,
  test: Dataset,
) -> dict[str, _Hashes]:
  """Returns the hashes of each file; its SHA-256 is that of the manifest, if there is one."""
  found = {}
  for name in wanted:
    sha256, md5, part = hashlib.sha256(), hashlib.md5(usedforsecurity=False), parts[name]
    with part.path.open('rb') as file:
      file.seek(part.offset)
      for start in range(0, part.size, _CHUNK):
        block = file.read(min(_CHUNK, part.size - start))
        sha256.update(block)
        md5.update(block)
    found[name] = _Hashes(sha256.hexdigest(), md5.hexdigest())
    if manifest and found[name].sha256 != manifest['files'][name]['sha256']:
      raise UserError(
        f"'{part.label}' has SHA-256 {found[name].sha256}, but {manifest['files'][name]['sha256']} in {MANIFEST}: it "
        f'was changed or damaged; remove it, and start {_again(path, test, manifest)} once more.'
      )
  return found
