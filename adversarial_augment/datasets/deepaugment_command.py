"""Command lines of `prepare deepaugment` that make a set, from what its MANIFEST.json or PLAN.json says."""

from collections.abc import Mapping
import hashlib
import pathlib
from typing import Any

from adversarial_augment import registry
from adversarial_augment.datasets import commands
from adversarial_augment.storage import files

NETS = {'edsr': 'edsr_16x64_x4', 'cae': 'cae_16'}  # of which sets are made, and their weights, the largest that ship
DEFAULTS: dict[str, Any] = {  # of the flags
  'dataset': 'cifar10', 'net': 'edsr', 'copies': 1, 'seed': 0, 'bug_compatible': True, 'scale': 'native32',
}  # fmt: skip
FIELDS = (*DEFAULTS, 'weights')  # of a manifest, that the flags decide
_SHIPPED = pathlib.Path(__file__).parents[1] / 'corruption_nets' / 'shipped'


def command(folder: pathlib.Path, dataset: str, about: Mapping[str, Any], *more: str) -> str:
  """Returns the command line that makes a set.

  Args:
    folder: of the set.
    dataset: whose images it has.
    about: what its manifest or its plan says; what is missing has its default.
    more: further flags.
  """
  flat = registry.flatten(about)
  values = {name: flat[name] if type(flat.get(name)) is type(usual) else usual for name, usual in DEFAULTS.items()}
  values |= {'dataset': dataset}
  flags = [_flag(name, values[name]) for name, usual in DEFAULTS.items() if values[name] != usual]
  if folder.name != values['net']:
    flags.append(f'--name={folder.name}')
  usual, sha256, note = NETS.get(values['net'], ''), flat.get('weights.sha256'), ''
  weights = usual if sha256 is None else _shipped(sha256)
  if weights is None:
    weights, note = 'FILE.safetensors', f' (FILE.safetensors being what has SHA-256 {sha256})'
  if weights != usual:
    flags.append(f'--weights={weights}')
  return commands.prepare(folder.parent.parent, 'deepaugment', *flags, *more) + note


def _flag(name: str, value: str | int) -> str:
  return f'--no-{name}' if value is False else f'--{name}={value}'


def _shipped(sha256: str) -> str | None:
  """Returns the name of the weights that ship and have this hash, or None."""
  shipped = files.named(_SHIPPED, '*.safetensors')
  return next((file.stem for file in shipped if hashlib.sha256(file.read_bytes()).hexdigest() == sha256), None)
