"""Tests of `prepare cifar10_c_bar`, and of evaluations that read what it writes."""

import io
import tarfile

from ml_collections import ConfigDict
import numpy as np
import pytest

from adversarial_augment import corruptions, metrics, prepare
from adversarial_augment.datasets import cifar10_c
from adversarial_augment.evaluation import corrupted
from tests.corrupted_pets import N, load, manifest_of, write_pets
from tests.described import refused

NAMES = ('lines', 'ripple')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A data_dir with pets, pets_c_bar with two corruptions, and pets_c with one."""
  data_dir = write_pets(tmp_path_factory.mktemp('bar data'))
  for name, names in (('cifar10_c_bar', NAMES), ('cifar10_c', ['brightness'])):
    prepare.main([name, '--dataset=pets', f'--names={",".join(names)}', f'--data_dir={data_dir}'])
  return data_dir


def test_files_hold_what_corrupt_gives(made):
  images = load(made).read(np.arange(N)).images
  found = cifar10_c.open_set(made / 'pets_c_bar', NAMES, load(made), verify=True)
  assert found.origin == 'generated'
  assert 'scikit-image' in found.provenance['made_with']
  for name in NAMES:
    for severity in metrics.SEVERITIES:
      np.testing.assert_array_equal(
        found.read(name, severity, np.arange(N)), corruptions.corrupt(images, name, severity, 0)
      )


def test_sets_of_both_benchmarks_stay_apart(made):
  assert {path.name for path in (made / 'pets_c').glob('*.npy')} == {'brightness.npy', 'labels.npy'}
  assert 'scikit-image' not in manifest_of(made)['made_with']


def test_evaluations_read_it(made):
  config = ConfigDict({'dataset': 'pets', 'data_dir': str(made), 'frost_dir': None})
  assert corrupted.open_set(config, load(made), 'cifar10_c_bar', NAMES, True).origin == 'generated'
  with refused('has no blue_noise_sample.npy'):
    corrupted.open_set(config, load(made), 'cifar10_c_bar', metrics.BAR_NAMES, True)


def test_a_missing_corruption_is_made_by_the_same_subcommand(made):
  with refused('has no sparkles.npy.*prepare cifar10_c_bar --dataset=pets.*'):
    cifar10_c.open_set(made / 'pets_c_bar', [*NAMES, 'sparkles'], load(made))


@pytest.mark.parametrize('name, corruption', [('cifar10_c', 'ripple'), ('cifar10_c_bar', 'fog')])
def test_names_of_the_other_benchmark_are_refused(made, name, corruption):
  with refused(f"'{corruption}'"):
    prepare.main([name, '--dataset=pets', f'--names={corruption}', f'--data_dir={made}'])


def _archive(path, members):
  with tarfile.open(path, 'w') as archive:
    for name, array in members:
      content = io.BytesIO()
      np.save(content, array)
      info = tarfile.TarInfo(name)
      info.size = len(content.getvalue())
      archive.addfile(info, io.BytesIO(content.getvalue()))
  return path


def _published(test, folder='CIFAR-10-C-Bar/'):
  """The members of an archive in the published layout: int64 labels, and uint8 images by severity."""
  images, labels = test.read(np.arange(N))
  five = np.concatenate([corruptions.corrupt(images, 'ripple', severity, 9) for severity in metrics.SEVERITIES])
  return [(f'{folder}ripple.npy', five), (f'{folder}labels.npy', np.tile(labels, 5).astype(np.int64))]


def test_a_published_archive_is_imported(tmp_path):
  data_dir = write_pets(tmp_path / 'data')
  members = _published(load(data_dir))
  archive = _archive(tmp_path / 'bar.tar', members)
  flags = ['cifar10_c_bar', '--dataset=pets', '--names=ripple', f'--data_dir={data_dir}', f'--from={archive}']
  prepare.main(flags)
  found = cifar10_c.open_set(data_dir / 'pets_c_bar', ['ripple'], load(data_dir), verify=True)
  assert found.origin == 'unverified'
  np.testing.assert_array_equal(found.read('ripple', 3, np.arange(N)), members[0][1][2 * N : 3 * N])


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda members: [('../ripple.npy', members[0][1]), members[1]], r'\.\./ripple.npy.*leads out of it'),
    (lambda members: [('/ripple.npy', members[0][1]), members[1]], 'leads out of it'),
    (lambda members: [*members, ('other/ripple.npy', members[0][1])], 'has the name of'),
    (lambda members: members[:1], 'has no labels.npy'),
    (lambda members: [members[0], ('labels.npy', (members[1][1] + 1) % 3)], 'another test set'),
    (lambda members: [('ripple.npy', members[0][1][:-1]), members[1]], r'\[199, '),
    (lambda members: [('ripple.npy', members[0][1] / 255), members[1]], 'float64'),
  ],
)
def test_damaged_archives(made, tmp_path, change, said):
  archive = _archive(tmp_path / 'bar.tar', change(_published(load(made), '')))
  with refused(said):
    prepare.main(['cifar10_c_bar', '--dataset=pets', '--names=ripple', f'--data_dir={made}', f'--from={archive}'])


@pytest.mark.parametrize('name, expected', [('pets', 'pets_c_bar'), ('cifar100:3.0.2', 'cifar100_c_bar')])
def test_folder_name(name, expected):
  assert cifar10_c.folder_name(name, metrics.BAR_NAMES) == expected


def test_official_hashes_of_cifar100_are_of_the_same_files():
  official = cifar10_c.OFFICIAL_MD5_OF_CIFAR100
  assert official.keys() == cifar10_c.OFFICIAL_MD5.keys()
  assert len({*official.values(), *cifar10_c.OFFICIAL_MD5.values()}) == 40
