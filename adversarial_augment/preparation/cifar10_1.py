"""`prepare cifar10_1`: imports CIFAR-10.1 from the .npy files of its authors."""

import argparse

from adversarial_augment.datasets import cifar, cifar10_1, writer
from adversarial_augment.preparation import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
  files = 'cifar10.1_v4_data.npy, cifar10.1_v4_labels.npy and those of v6'
  about = f'folder with {files}: datasets/ of github.com/modestyachts/CIFAR-10.1'
  command.add_source(parser, 'FOLDER', about, required=True)


def run(arguments: argparse.Namespace) -> None:
  data_dir, source = command.data_dir(arguments), command.source(arguments)
  with command.readable(source):
    found = {version: cifar10_1.read(source, version) for version in cifar10_1.COUNTS}
  jobs = []
  for version, (batch, hashes) in found.items():
    official = all(cifar10_1.SHA256[name] == sha256 for name, sha256 in hashes.items())
    description = writer.Description(
      name='cifar10_1',
      config=version,
      version='1.1.0',  # of the TFDS builder whose layout this is
      text=f'CIFAR-10.1 {version}: {len(batch.labels):,} new test images for CIFAR-10, 32x32x3, in 10 classes.',
      class_names=cifar.PUBLISHED['cifar10'].class_names,
      image_shape=(32, 32, 3),
      origin='official' if official else 'unverified',
      archive_sha256=hashes[f'cifar10.1_{version}_data.npy'],
    )
    writer.check_target(description, data_dir, len(batch.labels), arguments.overwrite)
    jobs.append((description, {'test': writer.Split(len(batch.labels), zip(*batch, strict=True))}))
  for description, splits in jobs:
    command.write(description, splits, data_dir, arguments.overwrite)
  command.print_use('--config.evals=clean,cifar10_1', arguments)
