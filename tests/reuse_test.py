"""What a run's folder knows is measured again only if what decides it has changed."""

from pathlib import Path
import re
import time

import pytest

from adversarial_augment import cli, results
from adversarial_augment.errors import ArtifactError, StorageError, UserError
from adversarial_augment.evaluation import reuse, unfinished
from adversarial_augment.parallel import processes
from adversarial_augment.storage import artifact
from tests.reporting_fixtures import attacked, counted


class Fake:
  """Stands for a `Bench`: every measurement finds one image more."""

  def __init__(self):
    self.measured = 0
    self.images = 'these'

  def conditions(self, name):
    return {'images': self.images}

  def origin(self, name):
    return {'corruptions': {'seed': 7}} if name == 'cifar10_c' else {}

  def measure(self, name, state, poll, known, keep):
    self.measured += 1
    own = attacked() if name == 'ada' else {}
    return counted(self.measured, 2000, 'own') | own | {'seconds': 1.0, 'interval': [0, 0.01]}


def about(sha256='a', weights='w', jax='1'):
  versions = {'adversarial_augment': '0', 'jax': jax, 'optax': '2'}
  provenance = {
    'seed': 3,
    'weights': {'sha256': weights},
    'versions': versions,
    'data': {'test': {'name': 'pets'}},
    'config': {'attack': {'name': 'ada', 'nu': 0.015, 'num_steps': 10, 'min_ssim': 0.3}},
    'devices': {'kind': 'cpu', 'count': 1},
  }
  return {'step': 5, 'checkpoint_sha256': sha256, 'provenance': provenance}


def test_what_decides_a_result_makes_it_be_measured_again(tmp_path: Path):
  fake = Fake()
  find = lambda name='ada', **changed: reuse.measure_once(fake, name, None, tmp_path, about(**changed))['num_correct']
  assert [find(), find()] == [1, 1]
  assert [find(sha256='b'), find(sha256='b')] == [2, 2]
  assert [find(), find(jax='2')] == [3, 4]
  assert [find(), find(weights='v')] == [5, 6]
  fake.images = 'those'
  assert [find(weights='v'), find(weights='v')] == [7, 7]
  assert [find('clean'), find('clean', weights='v')] == [8, 8]  # the weights do not matter
  assert reuse.measure_once(fake, 'clean', None, tmp_path, about(), overwrite=True)['num_correct'] == 9


def test_what_was_found_under_other_conditions_is_kept(tmp_path: Path):
  fake = Fake()
  find = lambda **options: reuse.measure_once(fake, 'clean', None, tmp_path, about(), protected=True, **options)
  assert find() == find()
  fake.images = 'those'
  with pytest.raises(ArtifactError) as caught:
    find()
  assert re.search('clean.json.*--overwrite', cli.describe(caught.value))
  assert find(overwrite=True)['num_correct'] == 2
  assert reuse.measure_once(fake, 'clean', None, tmp_path, about(sha256='b'), protected=True)['num_correct'] == 3


def test_a_damaged_or_foreign_file_is_replaced(tmp_path: Path):
  fake = Fake()
  reuse.measure_once(fake, 'clean', None, tmp_path, about())
  for text in ('{"eval": "cle', '[]', '{}'):
    (tmp_path / 'results' / 'clean.json').write_text(text)
    assert reuse.measure_once(fake, 'clean', None, tmp_path, about())['num_correct'] == fake.measured
  assert fake.measured == 4


def test_a_result_that_contradicts_itself_is_not_shown(tmp_path: Path):
  find = lambda **options: reuse.measure_once(Fake(), 'clean', None, tmp_path, about(), **options)
  path = tmp_path / 'results' / 'clean.json'
  find()
  path.write_text(path.read_text().replace('"num_correct": 1,', '"num_correct": 3,'))
  with pytest.raises(UserError, match="clean.json': accuracy is 0.0005, but must be 0.0015 .*; remove it, and"):
    find()
  assert find(overwrite=True) == find()


def test_a_folder_that_takes_no_file_is_found_before_the_evaluation():
  fake = Fake()
  with pytest.raises(StorageError, match="'/proc/self/results'"):
    reuse.measure_once(fake, 'clean', None, Path('/proc/self'), about())
  assert fake.measured == 0


def test_numbers_that_cannot_be_written_are_printed(tmp_path: Path, monkeypatch, capsys):
  def full(*_):
    raise StorageError('the disk is full.')

  monkeypatch.setattr(results, 'write_evaluation', full)
  monkeypatch.setattr(time, 'sleep', lambda seconds: None)
  with pytest.raises(StorageError, match='the disk is full'):
    reuse.measure_once(Fake(), 'clean', None, tmp_path, about())
  assert 'clean accuracy       0.0005  (1 of 2,000 test images)' in capsys.readouterr().out


def test_a_disk_that_is_full_for_the_counts_alone_stops_nothing(tmp_path: Path, monkeypatch, capsys):
  class Counting(Fake):
    def measure(self, name, state, poll, known, keep):
      keep({'fog': ['gA==']})
      return super().measure(name, state, poll, known, keep)

  def full(path, content):
    raise StorageError('the disk is full.')

  monkeypatch.setattr(unfinished, '_SECONDS', 0)
  monkeypatch.setattr(artifact, 'write_json', full)
  monkeypatch.setattr(results, 'write_evaluation', lambda *_: None)
  found = reuse.measure_once(Counting(), 'cifar10_c', None, tmp_path, about())
  assert (found['num_correct'], found['seed'], found['provenance']['corruptions']) == (1, 7, {'seed': 7})
  assert capsys.readouterr().err == 'warning: the disk is full. The evaluation goes on; a stop would lose it.\n'


def test_processes_with_other_images_are_refused(tmp_path: Path, monkeypatch):
  monkeypatch.setattr(processes, 'all_have', lambda digest: False)
  with pytest.raises(UserError, match='have different images, weights or versions for clean'):
    reuse.measure_once(Fake(), 'clean', None, tmp_path, about())
