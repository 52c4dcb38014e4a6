"""`prepare cifar10`: downloads CIFAR-10, or imports it from any of the forms in which it is handed around."""

import argparse
import pathlib

from adversarial_augment.datasets import cifar10, writer
from adversarial_augment.preparation import command
from adversarial_augment.storage import artifact
from adversarial_augment.storage.download import download


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--from',
    dest='source',
    metavar='PATH',
    help='the binary or the Python archive, a folder with its files, or an .npz with x_train, y_train, x_test, '
    'y_test; without it the official archive is downloaded (170 MB) to DATA_DIR/downloads',
  )
  parser.add_argument('--url', default=cifar10.URL, help='a mirror of the binary archive (default: %(default)s)')


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
  data_dir, source = command.data_dir(arguments), command.source(arguments)
  writer.check_target(description, data_dir, sum(cifar10.COUNTS.values()), arguments.overwrite)
  path = _downloaded(arguments.url, data_dir) if source is None else source
  with command.readable(path):
    content = cifar10.read(path, cifar10.COUNTS)
  splits = {
    name: writer.Split(len(batch.labels), zip(batch.images, batch.labels, strict=True))
    for name, batch in content.splits.items()
  }
  description = description._replace(origin=content.origin, archive_sha256=content.archive_sha256)
  command.report(description, splits, writer.write(description, splits, data_dir, arguments.overwrite), arguments)


def _downloaded(url: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Returns the official binary archive; it is kept, so that it is fetched once."""
  path = data_dir / 'downloads' / 'cifar-10-binary.tar.gz'
  with artifact.storage_errors(f"write under '{data_dir}'"):
    path.parent.mkdir(parents=True, exist_ok=True)
    known = path.is_file() and artifact.sha256_of(path) == cifar10.ARCHIVE_SHA256
  if not known:
    download(url, path, cifar10.ARCHIVE_SHA256, cifar10.ARCHIVE_BYTES)
  return path
