"""`prepare cifar10_c` and `cifar10_c_bar`: corrupt a test split at five severities, seeded, or import such a set.

Images that exist already, and were made in the same way, are not made again.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
import itertools
import json
import math
from pathlib import Path
import shlex
import time
from typing import Any, NamedTuple, TypedDict

import numpy as np

from adversarial_augment import checks, datasets, metrics
from adversarial_augment.cli import progress, signals
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.datasets import arrays, cifar10_c, sampling, source, writer
from adversarial_augment.datasets.cifar10_c import CorruptionSet
from adversarial_augment.datasets.manifests import comparable
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.parallel import devices
from adversarial_augment.preparation import command, image_corruptions
from adversarial_augment.storage import artifact, files
from adversarial_augment.types import Dataset

_AT_ONCE = 1 << 24  # bytes of images corrupted at once, so that every core has work
_FEWEST = 250  # images corrupted at once
_TFDS_NAMES = {'glass_blur': 'frosted_glass_blur', 'elastic_transform': 'elastic'}  # where TFDS spells them differently


class Benchmark(NamedTuple):
  """A subcommand, of the name of an evaluation: corruptions that are made or imported together."""

  evaluation: str
  names: tuple[str, ...]
  folder: str
  archive: str  # to import

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--dataset', default='cifar10', help='data set whose test split is used (default: %(default)s)')
    parser.add_argument('--names', help=f'corruptions, comma-separated; default: all of {", ".join(self.names)}')
    parser.add_argument('--seed', type=int, help='seed of all random numbers (default: 0)')
    parser.add_argument(
      '--format',
      choices=tuple(_FORMATS),
      default='npy',
      help=f'npy: DATA_DIR/{self.folder} in the layout of CIFAR-10-C, which evaluations read; array_record: DATA_DIR/'
      'DATASET_corrupted/fog_1 and so on, in the layout of TFDS (default: %(default)s)',
    )
    parser.set_defaults(frost=None)
    if 'frost' in self.names:
      parser.add_argument(
        '--frost',
        metavar='FOLDER',
        help='folder with frost1.png and so on, the photographs of CIFAR-10-C; default: those of the package '
        "'imagecorruptions' if it is installed, else procedural textures, not comparable with published results",
      )
    about = f'{self.archive}, not unpacked, or a folder with its files, to import'
    command.add_source(parser, 'PATH', about)

  def run(self, arguments: argparse.Namespace) -> None:
    data_dir = command.data_dir(arguments)
    path = None if arguments.source is None else command.source(arguments)
    names = _names(arguments.names, self.names)
    if path is not None and (arguments.seed is not None or arguments.frost is not None):
      raise UserError('--seed and --frost say how images are made, and have no meaning with --from; leave them out.')
    if arguments.frost is not None and 'frost' not in names:
      raise UserError(
        '--frost is what frost is made of, which --names leaves out; name frost too, or leave --frost out.'
      )
    seed = arguments.seed or 0
    command.check_range('--seed', seed, 0, 2**31 - 1)
    test = datasets.load(arguments.dataset, 'test', arguments.data_dir)
    if min(test.image_shape[:2]) < metrics.MIN_SIZE:
      raise UserError(
        f"'{test.name}' has images of {test.image_shape[0]}x{test.image_shape[1]} pixels, but the corruptions need "
        f'{metrics.MIN_SIZE} a side; prepare it with --size={metrics.MIN_SIZE} or more.'
      )
    write, use = _FORMATS[arguments.format]
    # Python's own handlers may be called where JAX swallows what they raise.
    kept = f"finished corruptions are kept in '{data_dir}'"
    resume = f'run the same command again{" without --overwrite" if arguments.overwrite else ""} to resume'
    with signals.listen(several_processes=False, kept=kept, resume=resume):
      images = _generated(names, test, seed, arguments.frost) if path is None else _imported(names, test, path)
      manifest = _manifest(images, test, path)
      began = time.monotonic()
      folder, written = write(images, manifest, test, data_dir, arguments.overwrite)
      seconds = time.monotonic() - began
    what = names[0] if len(names) == 1 else f'{len(names)} corruptions'
    print(
      f"'{folder}' has {what} at {len(metrics.SEVERITIES)} severities of {test.num_examples:,} images, origin "
      f'{images.origin}; {written:,} images written in {seconds:,.0f} s.'
    )
    if (
      set(names) >= set(EVALUATIONS[self.evaluation].corruptions) or arguments.format != 'npy'
    ):  # what an evaluation needs
      print(
        use.format(
          evaluation=self.evaluation,
          dataset=arguments.dataset,
          data_dir=shlex.quote(arguments.data_dir),
          folder=folder.name,
        )
      )


def _names(text: str | None, names: tuple[str, ...]) -> tuple[str, ...]:
  if text is None:
    return names
  for name in text.split(','):
    checks.lookup(dict.fromkeys(names), name, 'corruption in --names')
  return tuple(dict.fromkeys(text.split(',')))


def _generated(names: tuple[str, ...], test: Dataset, seed: int, frost: str | None) -> CorruptionSet:
  """Returns corruptions that are made when they are read, spread over the processor's cores."""
  devices.virtual_devices(devices.usable_cores())
  devices.compilation_cache()
  from adversarial_augment import corruptions  # imports JAX

  images = test.read(np.arange(test.num_examples)).images

  def read(name: str, severity: int, indices: np.ndarray) -> np.ndarray:
    return corruptions.corrupt(images[indices], name, severity, seed, indices, frost=frost)

  notes: dict[str, dict[str, Any]] = {name: {'constants': corruptions.CORRUPTIONS[name].severities} for name in names}
  if 'frost' in names:
    notes['frost']['frost'] = corruptions.describe_frost(frost)
  notes = json.loads(json.dumps(notes))  # as a manifest has them
  return CorruptionSet(names, 'generated', {'seed': seed, 'made_with': corruptions.made_with(names)}, read, notes)


def _imported(names: tuple[str, ...], test: Dataset, path: Path) -> CorruptionSet:
  print(f"Checking '{path}' ...", flush=True)
  if image_corruptions.is_published_so(path):
    return image_corruptions.open_set(path, names, test)
  return cifar10_c.open_set(path, names, test, verify=True)


def _manifest(images: CorruptionSet, test: Dataset, path: Path | None) -> dict[str, Any]:
  """Returns the manifest of a whole set, without its files."""
  manifest: dict[str, Any] = {
    'format': cifar10_c.FORMAT,
    'origin': images.origin,
    'source': path and str(path.resolve()),
    'test_set': test.provenance,
    'num_images': test.num_examples,
    'image_shape': test.image_shape,
    'seed': images.provenance['seed'],
    'made_with': images.provenance['made_with'],
  }
  return json.loads(json.dumps(manifest))


def _notes(images: CorruptionSet, name: str) -> dict[str, Any]:
  """Returns what is known of a corruption before it is written: constants, source of frost, hash of an import."""
  sha256 = {'sha256': images.sha256[f'{name}.npy']} if images.sha256 else {}
  return {**sha256, **images.notes.get(name, {})}


def _batches(images: CorruptionSet, name: str, severity: int, test: Dataset) -> Iterator[np.ndarray]:
  at_once = max(_FEWEST, _AT_ONCE // math.prod(test.image_shape))
  return (images.read(name, severity, indices) for indices in sampling.batches(test.num_examples, at_once))


def _write_npy(
  images: CorruptionSet, manifest: dict[str, Any], test: Dataset, data_dir: Path, overwrite: bool
) -> tuple[Path, int]:
  """Writes DATA_DIR/DATASET_c/NAME.npy, labels.npy and MANIFEST.json; returns the folder and the number of images.

  The manifest lists the files that are complete.
  """
  folder = data_dir / cifar10_c.folder_name(test.name, images.names)
  if manifest['source'] == str(folder.resolve()):
    raise UserError(f"--from='{folder}' is where the set belongs, and is used as it is; there is nothing to import.")
  shape = (len(metrics.SEVERITIES) * test.num_examples, *test.image_shape)
  absent = sum(not (folder / f'{name}.npy').exists() for name in images.names)
  artifact.check_space(data_dir, (absent + overwrite) * math.prod(shape) + (1 << 20))
  with artifact.storage_errors(f"write in '{folder}'"):
    folder.mkdir(parents=True, exist_ok=True)
    with artifact.lock(folder):
      listed = _kept(folder, images, manifest, test, overwrite)
      missing = [name for name in images.names if f'{name}.npy' not in listed]

      def add(name: str, dtype: type, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
        blocks = (np.ascontiguousarray(part, dtype).tobytes() for part in parts)
        entry = artifact.replace(folder / f'{name}.npy', itertools.chain([arrays.header(dtype, shape)], blocks))
        listed[f'{name}.npy'] = entry | dict(images.notes.get(name, {}))
        artifact.write_json(folder / artifact.MANIFEST, manifest | {'files': listed})

      # Before any file that it listed is replaced.
      artifact.write_json(folder / artifact.MANIFEST, manifest | {'files': listed})
      if cifar10_c.LABELS not in listed:
        add('labels', np.int32, shape[:1], [arrays.labels_of(test)] * len(metrics.SEVERITIES))
      with progress.images(len(missing) * shape[0]) as advance:

        def all_severities(name: str) -> Iterator[np.ndarray]:
          for severity in metrics.SEVERITIES:
            for batch in _batches(images, name, severity, test):
              yield batch
              advance(f'{name} {severity}', len(batch))

        for name in missing:
          add(name, np.uint8, shape, all_severities(name))
  return folder, len(missing) * shape[0]


def _kept(
  folder: Path, images: CorruptionSet, manifest: dict[str, Any], test: Dataset, overwrite: bool
) -> dict[str, Any]:
  """Returns the manifest's entries of the files that stay, and removes what is in the way if `overwrite`."""
  for remains in folder.glob('.*.npy.tmp'):  # of a start that was killed
    remains.unlink()
  path, found = folder / artifact.MANIFEST, {}
  try:
    if path.exists():
      made = cifar10_c.read_manifest(arrays.whole(path), folder, test.name)
      _check_same(folder, made, manifest)
      found = made['files']
    elif files.named(folder, '*.npy'):
      raise ArtifactError(
        f"'{folder}' has .npy files and no {path.name}, as the official files would", folder, remedy='use or replace'
      )
  except ArtifactError:
    if not overwrite:
      raise
    for name in (
      artifact.MANIFEST,
      cifar10_c.LABELS,
      *(f'{name}.npy' for name in (*metrics.ALL_NAMES, *metrics.BAR_NAMES)),
    ):
      (folder / name).unlink(missing_ok=True)
    found = {}
  kept = {file: entry for file, entry in found.items() if artifact.size_of(folder / file) == entry['bytes']}
  for name in images.names:
    file = f'{name}.npy'
    if overwrite:
      kept.pop(file, None)
    elif file in kept:
      known = {key: kept[file][key] for key in ('bytes', 'sha256')}
      artifact.check_same(folder, kept[file], known | _notes(images, name))
  return kept


def _check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  artifact.check_same(folder, comparable(found, 'corruptions'), comparable(wanted, 'corruptions'))


def _write_records(
  images: CorruptionSet, manifest: dict[str, Any], test: Dataset, data_dir: Path, overwrite: bool
) -> tuple[Path, int]:
  """Writes DATA_DIR/DATASET_corrupted/NAME_SEVERITY/1.0.0, which TFDS and `datasets.load` read; returns as _write_npy.

  Each of them is written completely or not at all; those that were made in the same way stay.
  """
  dataset = cifar10_c.folder_name(test.name).removesuffix('_c') + '_corrupted'
  n, labels = test.num_examples, arrays.labels_of(test)
  made = {key: value for key, value in manifest.items() if key != 'source'}
  missing = []
  for name, severity in itertools.product(images.names, metrics.SEVERITIES):
    description = writer.Description(
      name=dataset,
      config=f'{_TFDS_NAMES.get(name, name)}_{severity}',
      version='1.0.0',  # of the TFDS builder whose layout this is
      text=f"The test split of '{test.name}' under the corruption {name} of severity {severity}.",
      class_names=test.class_names or tuple(map(str, range(test.num_classes))),
      image_shape=test.image_shape,
      origin=images.origin,
      archive_sha256=None,
      made=made | _notes(images, name),
    )
    if overwrite or not _is_complete(writer.folder_of(description, data_dir), description.made or {}):
      missing.append((name, severity, description))
  artifact.check_space(data_dir, writer.space_for(len(missing) * n, test.image_shape))
  with progress.images(len(missing) * n) as advance:
    for name, severity, description in missing:
      advance(f'{name} {severity}', 0)
      examples = zip(itertools.chain.from_iterable(_batches(images, name, severity, test)), labels, strict=True)
      writer.write(description, {'test': writer.Split(n, examples)}, data_dir, overwrite=True)
      advance(f'{name} {severity}', n)
  return data_dir / dataset, len(missing) * n


class _Provenance(TypedDict):
  made: dict[str, Any]
  bytes: dict[str, int]


def _is_complete(folder: Path, made: Mapping[str, Any]) -> bool:
  """Returns whether a data set has all its files; raises ArtifactError if it was made otherwise, or is of TFDS."""
  if not folder.exists():
    return False
  path = folder / source.PROVENANCE
  if not path.exists():
    raise ArtifactError(f"'{folder}' has no {path.name}, as where TFDS made it", folder, remedy='use or replace')
  found = artifact.read(path, _Provenance, remedy='replace')
  _check_same(folder, found['made'], made)
  return all(artifact.size_of(folder / name) == size for name, size in found['bytes'].items())


_FORMATS = {  # who writes it, and how it is used
  'npy': (
    _write_npy,
    'Evaluate on it with --config.evals=clean,{evaluation} --config.dataset={dataset} --config.data_dir={data_dir}',
  ),
  'array_record': (
    _write_records,
    "Read it with adversarial_augment.datasets.load('{folder}/NAME_SEVERITY', 'test', '{data_dir}'), or with TFDS.",
  ),
}

C = Benchmark(
  'cifar10_c',
  metrics.ALL_NAMES,
  'DATASET_c',
  'CIFAR-10-C.tar (Zenodo record 2535967), CIFAR-100-C.tar (3555552) or Tiny-ImageNet-C.tar (2536630)',
)
C_BAR = Benchmark('cifar10_c_bar', metrics.BAR_NAMES, 'DATASET_c_bar', 'a tar archive of CIFAR-10-C-Bar')
