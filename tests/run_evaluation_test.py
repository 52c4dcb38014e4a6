"""What a run's folder knows is measured again only if what decides it has changed."""

from pathlib import Path

import pytest

from adversarial_augment import processes, results, run_evaluation
from adversarial_augment.errors import UserError


class Fake:
  """Stands for `Evaluations`: every measurement finds one image more."""

  def __init__(self):
    self.measured = 0
    self.images = 'these'

  def conditions(self, name):
    return {'images': self.images}

  def provenance(self, name):
    return {'corruptions': {'seed': 7}} if name == 'cifar10_c' else {}

  def measure(self, name, state, poll):
    self.measured += 1
    return {'num_correct': self.measured, 'num_images': 10, 'accuracy': self.measured / 10, 'origin': 'own'}


def about(sha256='a', weights='w', jax='1'):
  versions = {'adversarial_augment': '0', 'jax': jax, 'optax': '2'}
  data = {'test': {'name': 'pets'}}
  provenance = {'seed': 3, 'weights': {'sha256': weights}, 'versions': versions, 'data': data}
  return {'step': 5, 'checkpoint_sha256': sha256, 'provenance': provenance}


def test_what_decides_a_result_makes_it_be_measured_again(tmp_path: Path):
  fake = Fake()
  find = lambda name='ada', **changed: run_evaluation.find(fake, name, None, tmp_path, about(**changed))['num_correct']
  assert [find(), find()] == [1, 1]
  assert [find(sha256='b'), find(sha256='b')] == [2, 2]
  assert [find(), find(jax='2')] == [3, 4]
  assert [find(), find(weights='v')] == [5, 6]
  fake.images = 'those'
  assert [find(weights='v'), find(weights='v')] == [7, 7]
  assert [find('clean'), find('clean', weights='v')] == [8, 8]  # has nothing to do with the weights
  assert run_evaluation.find(fake, 'clean', None, tmp_path, about(), anew=True)['num_correct'] == 9


def test_what_was_found_under_other_conditions_is_kept(tmp_path: Path):
  fake = Fake()
  find = lambda **options: run_evaluation.find(fake, 'clean', None, tmp_path, about(), keep=True, **options)
  assert find() == find()
  fake.images = 'those'
  with pytest.raises(UserError, match='clean.json.*--overwrite'):
    find()
  assert find(anew=True)['num_correct'] == 2
  assert run_evaluation.find(fake, 'clean', None, tmp_path, about(sha256='b'), keep=True)['num_correct'] == 3


def test_a_damaged_or_foreign_file_is_replaced(tmp_path: Path):
  fake = Fake()
  run_evaluation.find(fake, 'clean', None, tmp_path, about())
  for text in ('{"eval": "cle', '[]', '{}'):
    (tmp_path / 'results' / 'clean.json').write_text(text)
    assert run_evaluation.find(fake, 'clean', None, tmp_path, about())['num_correct'] == fake.measured
  assert fake.measured == 4


def test_the_file_tells_where_its_numbers_come_from(tmp_path: Path):
  found = run_evaluation.find(Fake(), 'cifar10_c', None, tmp_path, about())
  assert results.read(tmp_path / 'results' / 'cifar10_c.json') == found
  assert found['provenance']['corruptions'] == {'seed': 7}
  assert (found['eval'], found['split'], found['seed'], found['step']) == ('cifar10_c', 'test', 7, 5)
  header, row = (tmp_path / 'results' / 'cifar10_c.csv').read_text().splitlines()
  cells = dict(zip(header.split(','), row.split(','), strict=True))
  assert (cells['num_correct'], cells['num_images'], cells['error'], cells['data']) == ('1', '10', '0.9', 'pets')
  assert (cells['origin'], cells['seed'], cells['step'], cells['checkpoint_sha256']) == ('own', '7', '5', 'a')


def test_processes_with_other_images_are_refused(tmp_path: Path, monkeypatch):
  monkeypatch.setattr(processes, 'all_have', lambda digest: False)
  with pytest.raises(UserError, match='have different images or weights for clean'):
    run_evaluation.find(Fake(), 'clean', None, tmp_path, about())
