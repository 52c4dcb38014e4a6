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

from adversarial_augment import cli, datasets
from adversarial_augment.cli import signals
from adversarial_augment.cli.ways_out import DEEPAUGMENT, NETS
from adversarial_augment.config import fields
from adversarial_augment.datasets import mixture
from adversarial_augment.errors import UserError, show
from adversarial_augment.parallel import devices
from adversarial_augment.preparation import command, deepaugment_files
from adversarial_augment.storage import artifact

_QUICK = {'edsr': ('--weights=edsr_4x16_x1',), 'cae': ()}  # what the sets of the embedded images are made with


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--dataset', help='data set whose training split is used (default: %(default)s)')
  parser.add_argument('--net', choices=tuple(NETS), help='corruption network (default: %(default)s)')
  parser.add_argument(
    '--weights',
    metavar='WEIGHTS',
    help='a .safetensors file, or the name of weights that ship, such as edsr_4x16_x1; default: '
    + ', '.join(NETS.values()),
  )
  parser.add_argument('--copies', type=int, help='passes over the images (default: %(default)s)')
  parser.add_argument('--name', help='name of the set, for --config.deepaugment.sets (default: that of the network)')
  parser.add_argument('--seed', type=int, help='seed of all random numbers (default: %(default)s)')
  parser.add_argument(
    '--bug_compatible',
    action=argparse.BooleanOptionalAction,
    help='reproduce the published code, including its bugs (the default)',
  )
  parser.add_argument(
    '--scale',
    choices=('native32', 'published'),
    help='native32: images enter the network as they are; published: enlarged four times, and the output is averaged '
    'down to their size (default: %(default)s)',
  )
  parser.add_argument('--num_processes', type=int, default=1, metavar='N', help='processes that share the work')
  parser.add_argument('--process_id', type=int, default=0, metavar='I', help='index of this process, from 0')
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
  plan: dict[str, Any] = {
    'format': mixture.FORMAT,
    'origin': 'generated',
    'train_set': train.provenance,
    'num_images': train.num_examples,
    'image_shape': train.image_shape,
    'copies': arguments.copies,
    'made_with': deepaugment.made_with(),
    **settings._asdict(),
    'weights': {'network': {'name': arguments.net} | sizes, 'sha256': artifact.sha256_of(weights)},
  }
  plan = json.loads(json.dumps(plan))
  folder = mixture.folder_of(train.name, name, arguments.data_dir)

  def make(images: np.ndarray, index: np.ndarray, copy: int) -> np.ndarray:
    return deepaugment.generate(images, index, copy, params, settings)

  share = arguments.process_id, arguments.num_processes
  began = time.monotonic()
  with signals.listen(several_processes=False, kept=f"finished images are kept in '{folder}'"):
    written, missing = deepaugment_files.write(folder, plan, train, make, share=share, overwrite=arguments.overwrite)
  seconds = time.monotonic() - began
  speed = f', {written / seconds:,.0f} a second' if written else ''
  print(f"'{folder}': {written:,} images written in {seconds:,.0f} s{speed}.")
  if missing:
    print(f'{missing:,} images are left to the other processes; any of them finishes the set.')
  else:
    print(
      f'Train on it with --config.deepaugment.sets={name} --config.dataset={arguments.dataset} '
      f'--config.data_dir={data_dir}'
    )


def make_embedded(data_dir: str, names: Sequence[str], copies: int) -> None:
  """Makes the sets of the embedded images that are missing and bear a network's name, in some 20 seconds a copy.

  In processes of their own, so that the devices of this one are still to be chosen; raises UserError if one fails.
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
  command.check_range('--copies', arguments.copies, 1, 1000)
  command.check_range('--seed', arguments.seed, 0, 2**31 - 1)
  cli.check_process_id(arguments.num_processes, arguments.process_id)
