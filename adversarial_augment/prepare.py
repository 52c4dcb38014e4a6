"""Prepares data sets for `train`: CIFAR-10, its corrupted and new test sets, or a folder of images.

    python -m adversarial_augment.prepare cifar10
    python -m adversarial_augment.prepare cifar10 --from=cifar-10-python.tar.gz
    python -m adversarial_augment.prepare images --name=pets --from=FOLDER --size=32
    python -m adversarial_augment.prepare cifar10_c
    python -m adversarial_augment.prepare cifar10_c --from=CIFAR-10-C.tar
    python -m adversarial_augment.prepare cifar10_1 --from=FOLDER
    python -m adversarial_augment.prepare deepaugment --net=edsr --copies=10

Data sets are written in the format of TFDS (ArrayRecord), so `tfds.data_source` can read them. Corrupted test sets are
.npy files in the layout of CIFAR-10-C, and DeepAugment copies are .npy files, too. An interrupted command leaves no
half-written data set; repeating it resumes downloads, corruptions and copies.
"""

from collections.abc import Sequence

from adversarial_augment import cli
from adversarial_augment.cli import signals
from adversarial_augment.preparation import cifar10, cifar10_1, corruptions, deepaugment, images, ways_out
from adversarial_augment.preparation.command import Command
from adversarial_augment.preparation.ways_out import DATA_DIR

# A new subcommand is a file in preparation/ and a line here.
COMMANDS = {
  'cifar10': Command(
    'download or import CIFAR-10',
    cifar10.add_arguments,
    cifar10.run,
    kept='no data set was written; what was downloaded is kept, and the same command goes on with it',
  ),
  'images': Command('import a folder of images, one folder for each class', images.add_arguments, images.run),
  'cifar10_c': Command(
    'corrupt the test split of a data set as in CIFAR-10-C, or import CIFAR-10-C itself',
    corruptions.add_arguments,
    corruptions.run,
    kept='what was made before is kept, and the same command goes on',
  ),
  'cifar10_1': Command('import CIFAR-10.1, versions v4 and v6', cifar10_1.add_arguments, cifar10_1.run),
  'deepaugment': Command(
    'write DeepAugment copies of the training images of a data set',
    deepaugment.add_arguments,
    deepaugment.run,
    kept='what was made before is kept, and the same command goes on',
  ),
}


@ways_out.added('--data_dir')
def main(argv: Sequence[str]) -> None:
  """Runs one subcommand.

  Args:
    argv: the words after the program's name.

  Raises:
    UserError: a flag or a file is wrong.
    StorageError: the disk is full or not writable.
  """
  arguments = _parser().parse_args(argv)
  command = COMMANDS[arguments.command]
  with signals.keeping(command.kept):
    command.run(arguments)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog='python -m adversarial_augment.prepare', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, command in COMMANDS.items():
    sub = commands.add_parser(name, help=command.help, description=command.help)
    command.add_arguments(sub)
    sub.add_argument('--data_dir', default=DATA_DIR, help='folder of prepared data sets (default: %(default)s)')
    sub.add_argument('--overwrite', action='store_true', help='replace the data set if it exists')
    sub.add_argument('--debug', action='store_true', help='show the traceback of an error')
  return parser


if __name__ == '__main__':
  cli.run(main)
