"""`prepare cifar10_c`: corrupts a test split at five severities, seeded, or imports CIFAR-10-C itself."""

import argparse
import json
import pathlib
import shlex
import time
from typing import Any

import numpy as np

from adversarial_augment import datasets, metrics, registry
from adversarial_augment.cli import signals
from adversarial_augment.datasets import cifar10_c
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import devices
from adversarial_augment.preparation import command, corruption_files
from adversarial_augment.preparation.corruption_files import Corrupted
from adversarial_augment.types import Dataset

_FORMATS = {  # who writes it, and what to do with it
  'npy': (
    corruption_files.write_npy,
    'Evaluate on it with --config.evals=clean,cifar10_c --config.dataset={dataset} --config.data_dir={data_dir}',
  ),
  'array_record': (
    corruption_files.write_records,
    "Read it with adversarial_augment.datasets.load('{folder}/NAME_SEVERITY', 'test', '{data_dir}'), or with TFDS.",
  ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--dataset', default='cifar10', help='whose test split it is (default: %(default)s)')
  parser.add_argument('--names', help=f'corruptions, with commas; default: all of {", ".join(metrics.ALL_NAMES)}')
  parser.add_argument('--seed', type=int, help='of all draws (default: 0)')
  parser.add_argument(
    '--format',
    choices=tuple(_FORMATS),
    default='npy',
    help="npy: DATA_DIR/DATASET_c in the layout of CIFAR-10-C, which the evaluations read; array_record: TFDS's layout "
    'and names, DATA_DIR/DATASET_corrupted/fog_1 (default: %(default)s)',
  )
  parser.add_argument(
    '--frost',
    metavar='FOLDER',
    help="holds frost1.png and so on, the photographs of CIFAR-10-C; default: those of the package 'imagecorruptions' "
    'or, if it is not installed, procedural textures, which are not comparable with published results',
  )
  parser.add_argument(
    '--from',
    dest='source',
    metavar='PATH',
    help='import CIFAR-10-C.tar (Zenodo record 2535967), not unpacked, or a folder with its files',
  )


def run(arguments: argparse.Namespace) -> None:
  data_dir, source = command.data_dir(arguments), command.source(arguments)
  names = _names(arguments.names)
  if source is not None and (arguments.seed is not None or arguments.frost is not None):
    raise UserError('--seed and --frost say how images are made, and have no meaning with --from; leave them out.')
  if arguments.frost is not None and 'frost' not in names:
    raise UserError('--frost is what frost is made of, which --names leaves out; name frost too, or leave --frost out.')
  seed = arguments.seed or 0
  if not 0 <= seed < 2**31:
    raise UserError(f'--seed={seed} must lie between 0 and 2**31 - 1.')
  test = datasets.load(arguments.dataset, 'test', arguments.data_dir)
  if min(test.image_shape[:2]) < metrics.MIN_SIZE:
    raise UserError(
      f"'{test.name}' has images of {test.image_shape[0]}x{test.image_shape[1]} pixels, but the corruptions need "
      f'{metrics.MIN_SIZE} a side; prepare it with --size={metrics.MIN_SIZE} or more.'
    )
  write, use = _FORMATS[arguments.format]
  # Python's own handlers may be called where JAX swallows what they raise.
  kept = f"the corruptions that are whole are kept in '{data_dir}'"
  resume = f'run the same command again{" without --overwrite" if arguments.overwrite else ""} to resume'
  with signals.listen(several_processes=False, kept=kept, resume=resume):
    corrupted = _generated(names, test, seed, arguments.frost) if source is None else _imported(names, test, source)
    began = time.monotonic()
    done = write(corrupted, test, data_dir, arguments.overwrite)
    seconds = time.monotonic() - began
  what = names[0] if len(names) == 1 else f'{len(names)} corruptions'
  print(
    f"'{done.path}' has {what} at {len(metrics.SEVERITIES)} severities of {test.num_examples:,} "
    f'images, origin {corrupted.images.origin}; {done.num_written:,} images written in {seconds:,.0f} s.'
  )
  if set(names) >= set(metrics.NAMES) or arguments.format != 'npy':  # what an evaluation needs
    print(use.format(dataset=arguments.dataset, data_dir=shlex.quote(arguments.data_dir), folder=done.path.name))


def _names(text: str | None) -> tuple[str, ...]:
  if text is None:
    return metrics.ALL_NAMES
  known = dict.fromkeys(metrics.ALL_NAMES)
  for name in text.split(','):
    registry.lookup(known, name, 'corruption in --names')
  return tuple(dict.fromkeys(text.split(',')))


def _generated(names: tuple[str, ...], test: Dataset, seed: int, frost: str | None) -> Corrupted:
  """Returns corruptions that are made when they are read, spread over the processor's cores."""
  devices.virtual_devices(devices.usable_cores())
  devices.compilation_cache()
  from adversarial_augment import corruptions  # imports JAX

  images = test.read(np.arange(test.num_examples)).images

  def read(name: str, severity: int, indices: np.ndarray) -> np.ndarray:
    return corruptions.corrupt(images[indices], name, severity, seed, indices, frost=frost)

  provenance = {
    'seed': seed,
    'frost': corruptions.describe_frost(frost) if 'frost' in names else None,
    'made_with': corruptions.made_with(),
  }
  notes: dict[str, dict[str, Any]] = {name: {'constants': corruptions.CORRUPTIONS[name].severities} for name in names}
  if 'frost' in names:
    notes['frost']['frost'] = provenance['frost']
  corrupted = cifar10_c.CorruptionSet(names, 'generated', provenance, read, notes)
  return _with_manifest(corrupted, test, None)


def _imported(names: tuple[str, ...], test: Dataset, source: pathlib.Path) -> Corrupted:
  print(f"Checking '{source}' ...", flush=True)
  return _with_manifest(cifar10_c.open_set(source, names, test, verify=True), test, source)


def _with_manifest(corrupted: cifar10_c.CorruptionSet, test: Dataset, source: pathlib.Path | None) -> Corrupted:
  manifest: dict[str, Any] = {
    'format': cifar10_c.FORMAT,
    'origin': corrupted.origin,
    'source': source and str(source.resolve()),
    'test_set': test.provenance,
    'num_images': test.num_examples,
    'image_shape': test.image_shape,
    'seed': corrupted.provenance['seed'],
    'made_with': corrupted.provenance['made_with'],
  }
  manifest, notes = json.loads(json.dumps([manifest, corrupted.notes]))
  return Corrupted(corrupted, manifest, notes)
