"""Lists the commands, and runs them: python -m adversarial_augment, or adversarial-augment once it is installed.

`adversarial-augment train --config=...` is `python -m adversarial_augment.train --config=...`, in every respect.
"""

import runpy
import sys
from typing import NoReturn

from adversarial_augment import __version__, checks, cli

COMMANDS = {
  'train': 'train a classifier, with an adversary or without',
  'plan': 'estimate memory and time of a training on TPUs or GPUs that you do not have',
  'evaluate': 'evaluate a trained classifier, or attack it',
  'audit': 'evaluate and attack a classifier that was made elsewhere',
  'report': 'make an HTML page of one or several runs',
  'export': 'export a trained classifier: PyTorch, ONNX, safetensors, jax.export, RobustBench',
  'prepare': 'download, import or generate data sets',
  'pretrain': 'train a corruption network',
  'convert': 'convert PyTorch weights of a corruption network or a classifier',
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
    checks.lookup(COMMANDS, argv[0], 'command')
    sys.argv[1:] = argv[1:]
    runpy.run_module(f'adversarial_augment.{argv[0]}', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main()
