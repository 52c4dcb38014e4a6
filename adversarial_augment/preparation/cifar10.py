"""`prepare cifar10`: downloads CIFAR-10, or imports it from any of its usual forms."""

import argparse
from pathlib import Path

from adversarial_augment.datasets import cifar10, writer
from adversarial_augment.preparation import command
from adversarial_augment.storage import artifact
from adversarial_augment.storage.download import download


def add_arguments(parser: argparse.ArgumentParser) -> None:
  command.add_source(
    parser,
    'PATH',
    'the binary or Python archive, a folder with its files, or an .npz with x_train, y_train, x_test, y_test; default: '
    'download the official archive (170 MB) to DATA_DIR/downloads',
  )
  parser.add_argument('--url', default=cifar10.URL, help='address of the binary archive (default: %(default)s)')


def run(arguments: argparse.Namespace) -> None:
  description = writer.Description(
    name='cifar10',
    version='3.0.2',  # of the TFDS builder whose layout this is
    text='CIFAR-10: 50,000 training and 10,000 test images, 32x32x3, in 10 classes.',
    class_names=cifar10.CLASS_NAMES,
    image_shape=(32, 32, 3),
    origin='unverified',
    archive_sha256=None,
    has_ids=True,
  )
  data_dir = command.data_dir(arguments)
  source = None if arguments.source is None else command.source(arguments)
  writer.check_target(description, data_dir, sum(cifar10.COUNTS.values()), arguments.overwrite)
  path = source or _downloaded(arguments.url, data_dir)
  with command.readable(path):
    content = cifar10.read(path, cifar10.COUNTS)
  splits = {
    name: writer.Split(len(batch.labels), zip(batch.images, batch.labels, strict=True))
    for name, batch in content.splits.items()
  }
  description = description._replace(origin=content.origin, archive_sha256=content.archive_sha256)
  command.write(description, splits, data_dir, arguments.overwrite)
  command.print_use('--config.dataset=cifar10', arguments)


def _downloaded(url: str, data_dir: Path) -> Path:
  """Returns the official binary archive, which is kept and downloaded only once."""
  path = data_dir / 'downloads' / 'cifar-10-binary.tar.gz'
  with artifact.storage_errors(f"write under '{data_dir}'"):
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.is_file() and artifact.sha256_of(path) == cifar10.ARCHIVE_SHA256
  if not known:
    download(url, path, cifar10.ARCHIVE_SHA256, cifar10.ARCHIVE_BYTES)
  return path
