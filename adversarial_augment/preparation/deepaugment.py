"""`prepare deepaugment`: sends the training images of a data set through a corruption network with damaged weights."""

import argparse
from collections.abc import Sequence
import json
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np

from adversarial_augment import datasets
from adversarial_augment.cli import signals
from adversarial_augment.cli.ways_out import DEEPAUGMENT, NETS
from adversarial_augment.config import fields
from adversarial_augment.datasets import mixture
from adversarial_augment.errors import UserError, show
from adversarial_augment.parallel import devices
from adversarial_augment.preparation import command, deepaugment_files
from adversarial_augment.storage import artifact
from adversarial_augment.types import Dataset

_QUICK = {'edsr': ('--weights=edsr_4x16_x1',), 'cae': ()}  # what the sets of the embedded images are made with
_SCALES = ('native32', 'published')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--dataset', help='whose training split it is (default: %(default)s)')
  parser.add_argument('--net', choices=tuple(NETS), help='the network (default: %(default)s)')
  parser.add_argument(
    '--weights',
    metavar='WEIGHTS',
    help='a .safetensors file, or the name of weights that ship, such as edsr_4x16_x1; default: '
    + ', '.join(NETS.values()),
  )
  parser.add_argument('--copies', type=int, help='passes over the images (default: %(default)s)')
  parser.add_argument('--name', help='of the set, for --config.deepaugment.sets (default: that of the net)')
  parser.add_argument('--seed', type=int, help='of all draws (default: %(default)s)')
  parser.add_argument(
    '--bug_compatible',
    action=argparse.BooleanOptionalAction,
    help='do as the published code does, slips included; the default',
  )
  parser.add_argument(
    '--scale',
    choices=_SCALES,
    help='native32: images enter the network as they are; published: enlarged four times; the output is averaged down '
    'to their size (default: %(default)s)',
  )
  parser.add_argument('--num_processes', type=int, default=1, metavar='N', help='that share the work, on one folder')
  parser.add_argument('--process_id', type=int, default=0, metavar='I', help='which of them this is, from 0')
  parser.set_defaults(**DEEPAUGMENT)


def run(arguments: argparse.Namespace) -> None:
  data_dir = command.data_dir(arguments)
  name = arguments.net if arguments.name is None else arguments.name
  _check(arguments, name)
  from adversarial_augment import corruption_nets

  chosen = NETS[arguments.net] if arguments.weights is None else arguments.weights
  try:
    weights = corruption_nets.find(chosen)
    params, sizes = corruption_nets.read(arguments.net, weights)
  except UserError as error:
    raise UserError(f'--weights={chosen}: {error}') from None
  train = datasets.load(arguments.dataset, 'train', arguments.data_dir)
  devices.virtual_devices(devices.usable_cores())
  devices.compilation_cache()
  from adversarial_augment import deepaugment

  settings = deepaugment.Settings(arguments.net, arguments.seed, arguments.bug_compatible, arguments.scale)
  origin = {'network': {'name': arguments.net} | sizes, 'sha256': artifact.sha256_of(weights)}
  plan = _plan(train, arguments.copies, settings._asdict() | {'weights': origin}, deepaugment.made_with())
  folder = mixture.folder_of(train.name, name, arguments.data_dir)

  def make(images: np.ndarray, index: np.ndarray, copy: int) -> np.ndarray:
    return deepaugment.generate(images, index, copy, params, settings)

  share = deepaugment_files.Share(arguments.process_id, arguments.num_processes)
  began = time.monotonic()
  with signals.listen(several_processes=False, kept=f"the images made so far are kept in '{folder}'"):
    done = deepaugment_files.write(folder, plan, train, make, share=share, overwrite=arguments.overwrite)
  seconds = time.monotonic() - began
  speed = f', {done.written / seconds:,.0f} a second' if done.written else ''
  print(f"'{folder}': {done.written:,} images written in {seconds:,.0f} s{speed}.")
  if done.missing:
    print(f'{done.missing:,} images are left to the other processes; any of them finishes the set.')
  else:
    print(
      f'Train on it with --config.deepaugment.sets={name} --config.dataset={arguments.dataset} '
      f'--config.data_dir={data_dir}'
    )


def make_embedded(data_dir: str, names: Sequence[str], copies: int) -> None:
  """Makes the sets of the embedded images that are missing and bear a network's name, in some 20 seconds a copy.

  In processes of their own, so that the devices of this one are still to be chosen.

  Raises:
    UserError: it failed; its own line has said why.
  """
  for net in names:
    if net in NETS and not (mixture.folder_of('embedded', net, data_dir) / mixture.MANIFEST).exists():
      flags = ['--dataset=embedded', f'--net={net}', *_QUICK[net], f'--copies={copies}', f'--data_dir={data_dir}']
      print(f'making the DeepAugment set {net} of the embedded images...', flush=True)
      module = [sys.executable, '-m', 'adversarial_augment.prepare', 'deepaugment']
      if subprocess.run([*module, *flags], check=False).returncode:
        raise UserError(f'config.deepaugment.sets={net} could not be made, see above; run the same command again.')


def _check(arguments: argparse.Namespace, name: str) -> None:
  if not re.fullmatch(fields.LABEL, name):
    raise UserError(f'--name={show(name)} must be letters, digits, "_", "-" and ".", a letter or digit first.')
  if not 1 <= arguments.copies <= 1000:
    raise UserError(f'--copies={arguments.copies} must lie between 1 and 1000.')
  if not 0 <= arguments.seed < 2**31:
    raise UserError(f'--seed={arguments.seed} must lie between 0 and 2**31 - 1.')
  if arguments.num_processes < 1:
    raise UserError(f'--num_processes={arguments.num_processes} must be at least 1.')
  if not 0 <= arguments.process_id < arguments.num_processes:
    raise UserError(
      f'--process_id={arguments.process_id} must be from 0 to {arguments.num_processes - 1} '
      f'(--num_processes={arguments.num_processes}).'
    )


def _plan(train: Dataset, copies: int, how: dict[str, Any], made_with: dict[str, str]) -> dict[str, Any]:
  plan = {
    'format': mixture.FORMAT,
    'origin': 'generated',
    'train_set': train.provenance,
    'num_images': train.num_examples,
    'image_shape': train.image_shape,
    'copies': copies,
    'made_with': made_with,
  }
  return json.loads(json.dumps(plan | how))
