"""Prepares data sets for `train`: CIFAR-10 and its kin, corrupted and new test sets, or a folder of images.

    python -m adversarial_augment.prepare cifar10
    python -m adversarial_augment.prepare cifar10 --from=cifar-10-python.tar.gz
    python -m adversarial_augment.prepare cifar100
    python -m adversarial_augment.prepare tiny_imagenet --from=tiny-imagenet-200.zip
    python -m adversarial_augment.prepare images --name=pets --from=FOLDER --size=32
    python -m adversarial_augment.prepare cifar10_c
    python -m adversarial_augment.prepare cifar10_c --from=CIFAR-10-C.tar
    python -m adversarial_augment.prepare cifar10_c_bar
    python -m adversarial_augment.prepare cifar10_1 --from=FOLDER
    python -m adversarial_augment.prepare deepaugment --net=edsr --copies=10

Data sets are written in the format of TFDS (ArrayRecord), so `tfds.data_source` can read them. Corrupted test sets are
.npy files in the layout of CIFAR-10-C, and DeepAugment copies are .npy files, too. An interrupted command leaves no
half-written data set; repeating it resumes downloads, corruptions and copies.
"""

from collections.abc import Sequence
from typing import Any

from adversarial_augment import cli
from adversarial_augment.cli.ways_out import DATA_DIR
from adversarial_augment.preparation import cifar, cifar10_1, corruptions, deepaugment, images, tiny_imagenet

# A new subcommand is a module or object with `add_arguments` and `run`, and a line here.
COMMANDS: dict[str, tuple[Any, str]] = {
  'cifar10': (cifar.CIFAR10, 'download or import CIFAR-10'),
  'cifar100': (cifar.CIFAR100, 'download or import CIFAR-100'),
  'tiny_imagenet': (tiny_imagenet, 'download or import Tiny ImageNet'),
  'images': (images, 'import a folder of images, one folder for each class'),
  'cifar10_c': (
    corruptions.C,
    'corrupt the test split of a data set as in CIFAR-10-C, or import CIFAR-10-C or its kin',
  ),
  'cifar10_c_bar': (
    corruptions.C_BAR,
    'corrupt the test split of a data set as in CIFAR-10-C-bar, or import such a set',
  ),
  'cifar10_1': (cifar10_1, 'import CIFAR-10.1, versions v4 and v6'),
  'deepaugment': (deepaugment, 'write DeepAugment copies of the training images of a data set'),
}


def main(argv: Sequence[str]) -> None:
  """Runs the command line; see `--help`."""
  arguments = _parser().parse_args(argv)
  COMMANDS[arguments.command][0].run(arguments)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog='python -m adversarial_augment.prepare', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, (module, about) in COMMANDS.items():
    sub = commands.add_parser(name, help=about, description=about)
    module.add_arguments(sub)
    sub.add_argument('--data_dir', default=DATA_DIR, help='folder of prepared data sets (default: %(default)s)')
    sub.add_argument('--overwrite', action='store_true', help='replace the data set if it exists')
  return parser


if __name__ == '__main__':
  cli.run(main, kept='whatever was finished is kept; run the same command again')
