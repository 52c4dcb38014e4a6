"""`prepare tiny_imagenet`: downloads Tiny ImageNet, or imports its archive or folder."""

import argparse

from adversarial_augment.datasets import tiny_imagenet, writer
from adversarial_augment.preparation import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
  about = f'{tiny_imagenet.ARCHIVE} or its folder; default: download it (248 MB) to DATA_DIR/downloads'
  command.add_source(parser, 'PATH', about)
  command.add_url(parser, tiny_imagenet.URL, 'archive')


def run(arguments: argparse.Namespace) -> None:
  description = writer.Description(
    name='tiny_imagenet',
    version='1.0.0',
    text='Tiny ImageNet: 100,000 training images and, as test, the 10,000 of validation, 64x64x3, in 200 classes.',
    class_names=(),
    image_shape=(tiny_imagenet.SIDE, tiny_imagenet.SIDE, 3),
    origin='unverified',
    archive_sha256=None,
  )
  data_dir = command.data_dir(arguments)
  source = None if arguments.source is None else command.source(arguments)
  writer.check_target(description, data_dir, sum(tiny_imagenet.COUNTS.values()), arguments.overwrite)
  path = source or command.downloaded(
    arguments.url, data_dir, tiny_imagenet.ARCHIVE, tiny_imagenet.ARCHIVE_SHA256, tiny_imagenet.ARCHIVE_BYTES
  )
  with (
    command.readable(path),
    tiny_imagenet.open_source(path, tiny_imagenet.COUNTS, tiny_imagenet.NUM_CLASSES) as content,
  ):
    splits = {name: writer.Split(len(files), content.images(files)) for name, files in content.splits.items()}
    description = description._replace(
      class_names=content.class_names, origin=content.origin, archive_sha256=content.archive_sha256
    )
    command.write(description, splits, data_dir, arguments.overwrite)
  command.print_use('--config.dataset=tiny_imagenet', arguments)
