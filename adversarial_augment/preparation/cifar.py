"""`prepare cifar10` and `prepare cifar100`: download CIFAR, or import it from any of its usual forms."""

import argparse

from adversarial_augment.datasets import cifar, writer
from adversarial_augment.preparation import command


class Cifar:
  """The subcommand for one of the two data sets."""

  def __init__(self, name: str, version: str, *, has_ids: bool):
    """`version` as in TFDS, whose layout this is where `has_ids`."""
    self._name, self._version, self._has_ids = name, version, has_ids

  def add_arguments(self, parser: argparse.ArgumentParser) -> None:
    command.add_source(
      parser,
      'PATH',
      'the binary or Python archive, a folder with its files, or an .npz with x_train, y_train, x_test, y_test; '
      'default: download the official archive (170 MB) to DATA_DIR/downloads',
    )
    command.add_url(parser, cifar.PUBLISHED[self._name].url, 'binary archive')

  def run(self, arguments: argparse.Namespace) -> None:
    published = cifar.PUBLISHED[self._name]
    description = writer.Description(
      name=self._name,
      version=self._version,
      text=f'{published.title}: 50,000 training and 10,000 test images, 32x32x3, '
      f'in {len(published.class_names)} classes.',
      class_names=published.class_names,
      image_shape=(32, 32, 3),
      origin='unverified',
      archive_sha256=None,
      has_ids=self._has_ids,
    )
    data_dir = command.data_dir(arguments)
    source = None if arguments.source is None else command.source(arguments)
    writer.check_target(description, data_dir, sum(cifar.COUNTS.values()), arguments.overwrite)
    path = source or command.downloaded(
      arguments.url, data_dir, published.binary_archive, published.archive_sha256, published.archive_bytes
    )
    with command.readable(path):
      content = cifar.read(path, published, cifar.COUNTS)
    splits = {
      name: writer.Split(len(batch.labels), zip(batch.images, batch.labels, strict=True))
      for name, batch in content.splits.items()
    }
    description = description._replace(origin=content.origin, archive_sha256=content.archive_sha256)
    command.write(description, splits, data_dir, arguments.overwrite)
    command.print_use(f'--config.dataset={self._name}', arguments)


CIFAR10 = Cifar('cifar10', '3.0.2', has_ids=True)
CIFAR100 = Cifar('cifar100', '1.0.0', has_ids=False)  # TFDS's own has the superclasses as well
