"""Lists the commands, and runs them: python -m adversarial_augment, or adversarial-augment once it is installed.

`adversarial-augment train --config=...` is `python -m adversarial_augment.train --config=...`, in every respect.
"""

import runpy
import sys
from typing import NoReturn

from adversarial_augment import __version__, cli, registry

COMMANDS = {
  'train': 'train a classifier, with an adversary or without',
  'plan': 'see what a training needs on TPUs or GPUs, before renting any',
  'evaluate': 'evaluate a trained classifier, on corruptions too, or attack it',
  'report': 'make one HTML page of one run, or of several',
  'export': 'write a trained classifier for PyTorch, safetensors or jax.export',
  'prepare': "bring in CIFAR-10, its corrupted and new test sets, or a folder of one's own images",
  'pretrain': 'train a corruption network',
  'convert': "turn PyTorch's EDSR or CAE weights into a weight file",
}


def main() -> NoReturn:
  """Runs the command line of this process and ends it."""
  cli.run(_main)


def _main(argv: list[str]) -> None:
  if not argv or argv[0] in ('-h', '--help'):
    lines = [f'  {name:<10}{about}' for name, about in COMMANDS.items()]
    usage = 'usage: adversarial-augment COMMAND ...    (or python -m adversarial_augment.COMMAND ...)'
    print('\n'.join([usage, '', *lines, '', 'adversarial-augment COMMAND --help lists the flags of a command.']))
  elif argv[0] == '--version':
    print(__version__)
  else:
    registry.lookup(COMMANDS, argv[0], 'command')
    sys.argv[1:] = argv[1:]
    runpy.run_module(f'adversarial_augment.{argv[0]}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
