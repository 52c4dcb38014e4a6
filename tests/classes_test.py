"""A run that meets another data set: classes are matched by their names, or refused by them; never by position."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import datasets, evaluate, inference, results, train
from adversarial_augment.classifiers import reorder_outputs
from adversarial_augment.datasets import classes, writer
from adversarial_augment.datasets.classes import Classes
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_run
from adversarial_augment.storage import checkpoints
from adversarial_augment.types import TrainState
from tests import tiny
from tests.classifier_cases import images as random_images
from tests.classifier_cases import make_config, random_state

NUM = 24
NAMES = ('cat', 'dog', 'owl')


def write_pets(data_dir: Path, name: str, class_names: tuple[str, ...]) -> Path:
  """The same images under the same names, however the names are ordered; one class after the other."""
  images = np.random.default_rng(0).integers(0, 256, (NUM, 32, 32, 3), np.uint8)
  labels = [class_names.index(NAMES[i % len(class_names)] if set(class_names) <= set(NAMES) else class_names[i % 3])
            for i in range(NUM)]  # fmt: skip
  description = writer.Description(name, '1.0.0', 'x', class_names, (32, 32, 3), 'own', None)
  splits = {split: writer.Split(NUM, zip(images, labels, strict=True)) for split in ('train', 'test')}
  writer.write(description, splits, data_dir)
  return data_dir


def write_run(workdir: Path, names: tuple[str, ...] = NAMES, recorded: bool = True) -> TrainState:
  config = make_config()
  config.dataset = 'pets'
  state = random_state(config, 2, len(names))
  workdir.mkdir()
  (workdir / 'config.json').write_text(configs.to_json(config))
  if recorded:
    (workdir / 'data.json').write_text(json.dumps({'image_shape': [32, 32, 3], 'class_names': names}))
  checkpoints.save(workdir / 'checkpoints', 2, state, config_sha256=configs.sha256(config))
  return state


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
  """A run on three classes, and data sets of the same images."""
  folder = tmp_path_factory.mktemp('classes')
  write_run(folder / 'run')
  for name, class_names in {
    'same': NAMES, 'turned': ('owl', 'cat', 'dog'), 'others': ('cat', 'cow', 'owl'), 'two': ('cat', 'dog'),
  }.items():  # fmt: skip
    write_pets(folder / 'data', name, class_names)
  return folder


def right(place: Path, *flags: str, name: str = 'clean') -> dict:
  evaluate.main([f'--workdir={place}/run', f'--config.data_dir={place}/data', '--overwrite', *flags])
  return json.loads((place / 'run' / 'results' / f'{name}.json').read_text())


def test_evaluate_matches_classes_by_name_and_says_so(place, capsys):
  same = right(place, '--config.dataset=same', '--evals=clean')
  assert 'order' not in capsys.readouterr().out
  turned = right(place, '--config.dataset=turned', '--evals=clean')
  assert 'note: the classes of turned have another order; they are matched by name' in capsys.readouterr().out
  test = datasets.load('same', 'test', str(place / 'data')).read(np.arange(NUM))
  expected = int((inference.load_classifier(place / 'run')(test.images).argmax(-1) == test.labels).sum())
  assert [same['num_correct'], turned['num_correct']] == [expected, expected]
  assert turned['provenance']['data']['test']['labels'] == 'matched by name'
  assert 'labels' not in same['provenance']['data']['test']


@pytest.mark.slow
def test_attacks_match_them_too(place, capsys):
  flags = ('--attack=pgd', '--norm=linf', '--epsilon=1/255', '--num_examples=8', '--allow_suspect')
  name = results.robustness_name('pgd', 'linf', '1/255')
  found = [right(place, f'--config.dataset={data}', *flags, name=name) for data in ('same', 'turned')]
  for count in ('num_correct', 'num_robust', 'survivors'):
    assert found[0][count] == found[1][count]
  assert 'matched by name' in capsys.readouterr().out


def test_the_surrogate_of_an_attack_has_the_outputs_of_the_run(place, tmp_path, capsys):
  state = write_run(tmp_path / 'other', ('owl', 'cat', 'dog'))
  test = datasets.load('same', 'test', str(place / 'data'))
  config = inference.read_config(place / 'run')
  surrogate, _ = attack_run._surrogate(config, tmp_path / 'other', test, tiny.make_mesh(1))
  head = next(name for name in state.params if name.endswith('/head'))
  np.testing.assert_array_equal(surrogate.state.params[head]['b'], state.params[head]['b'][[1, 2, 0]])
  assert 'matched by name' in capsys.readouterr().out
  test = test._replace(class_names=('cow', 'owl', 'x'))
  with pytest.raises(UserError, match="surrogate .*'cat', 'dog' only in the former, 'cow', 'x' only in the latter"):
    attack_run._surrogate(config, tmp_path / 'other', test, None)


@pytest.mark.parametrize('flags', [('--evals=clean',), ('--attack=pgd', '--norm=linf', '--epsilon=1/255')])
@pytest.mark.parametrize('name, said', [
  ('others', "'dog' only in the former, 'cow' only in the latter"),
  ('two', "3 classes against 2: 'owl' only in the former, none only in the latter"),
])  # fmt: skip
def test_evaluate_refuses_other_classes_by_their_names(place, name, said, flags):
  with pytest.raises(UserError, match=said):
    right(place, f'--config.dataset={name}', *flags)


def start_from(place: Path, source: Path, name: str, expected_head: str = 'taken over') -> TrainState:
  dataset = datasets.load(name, 'train', str(place / 'data'))
  config = make_config()
  config.init_from = str(source)
  fresh = random_state(config, 7, dataset.num_classes)
  state, origin = train._start_from(config, jax.tree.map(jax.numpy.asarray, fresh), dataset, tiny.make_mesh(1))
  assert origin['head'] == expected_head
  assert (origin['workdir'], origin['step'], len(origin['checkpoint_sha256'])) == (source.name, 2, 64)
  return state


def test_init_from_gives_each_class_the_output_of_its_name(place, capsys):
  same = start_from(place, place / 'run', 'same')
  turned = start_from(place, place / 'run', 'turned', 'taken over, outputs matched by name')
  assert 'have another order; they are matched by name' in capsys.readouterr().err
  classifier = inference.load_classifier(place / 'run')
  logits = lambda state: np.asarray(classifier.apply(state.params, state.model_state, random_images(2)))
  np.testing.assert_array_equal(logits(turned), logits(same)[:, [2, 0, 1]])


@pytest.mark.parametrize('names, recorded, name, said', [
  (('cat', 'dog'), True, 'same', "2 classes against 3: none only in the former, 'owl' only in the latter"),
  (('cat', 'dog'), False, 'same', '2 classes against 3'),
  (NAMES, True, 'others', "'dog' only in the former, 'cow' only in the latter"),
])  # fmt: skip
def test_init_from_other_classes_takes_the_body_and_makes_a_new_head(
  place, tmp_path, capsys, names, recorded, name, said
):
  given = write_run(tmp_path / 'run', names, recorded=recorded)
  state = start_from(place, tmp_path / 'run', name, 'new')
  (line,) = [line for line in capsys.readouterr().err.splitlines() if 'head' in line]
  assert f"the body of '{tmp_path / 'run'}' after step 2, with a new head for 3 classes" in line
  assert said in line
  fresh = random_state(make_config(), 7, 3)
  for module, leaves in state.params.items():
    expected = fresh if module.endswith('/head') else given
    jax.tree.map(np.testing.assert_array_equal, leaves, expected.params[module])
  jax.tree.map(np.testing.assert_array_equal, state.model_state, given.model_state)


@pytest.mark.parametrize('unknown', ['run', 'data set'])
def test_init_from_and_the_surrogate_say_that_classes_are_matched_by_position(place, tmp_path, capsys, unknown):
  write_run(tmp_path / 'other', recorded=unknown != 'run')
  write_pets(tmp_path / 'data', 'numbers', NAMES)
  if unknown == 'data set':
    (tmp_path / 'data' / 'numbers' / '1.0.0' / 'label.labels.txt').unlink()
  start_from(tmp_path, tmp_path / 'other', 'numbers')
  assert capsys.readouterr().err.count('not known on both sides; they are matched by position') == 1
  test = datasets.load('numbers', 'test', str(tmp_path / 'data'))
  attack_run._surrogate(inference.read_config(place / 'run'), tmp_path / 'other', test, tiny.make_mesh(1))
  assert 'of the surrogate are not known on both sides; they are matched by position' in capsys.readouterr().out


def test_names_that_are_one_name_in_two_normalisations_are_refused(tmp_path):
  write_pets(tmp_path, 'same', NAMES)
  (tmp_path / 'same' / '1.0.0' / 'label.labels.txt').write_text('caf\u00e9\ncafe\u0301\ndog\n')
  with pytest.raises(UserError, match='does not have 3 names of classes, each once'):
    datasets.load('same', 'test', str(tmp_path))


def test_order():
  pets = datasets.load('embedded', 'test', '')._replace(name='pets', num_classes=3, class_names=NAMES)
  order = lambda known, dataset=pets: classes.order(known, dataset, 'It', 'mend it')
  assert order(Classes(3, NAMES)) is None
  assert order(Classes(3, ('owl', 'dog', 'cat'))) == [2, 1, 0]
  assert order(Classes(3, ())) is None
  assert order(Classes(None, ())) is None
  assert order(Classes(3, NAMES), pets._replace(class_names=())) is None
  with pytest.raises(UserError, match=r'^It and the data set .pets. have different classes, 4 classes against 3; mend'):
    order(Classes(4, ()))
  accents = pets._replace(num_classes=2, class_names=('a', 'caf\u00e9'))
  assert order(Classes(2, ('cafe\u0301', 'a')), accents) == [1, 0]
  many = tuple(f'c{i}' for i in range(9))
  with pytest.raises(UserError, match="'c0', 'c1', 'c2', 'c3', 'c4' and 4 more only in the former"):
    order(Classes(9, many))


def test_outputs_alone_are_reordered():
  params = {'net/head': {'w': np.arange(6.0).reshape(2, 3), 'b': np.arange(3.0)}, 'net/ahead': {'w': np.arange(3.0)}}
  moved = reorder_outputs(jax.tree.map(jax.numpy.asarray, params), [2, 0, 1])
  np.testing.assert_array_equal(moved['net/head']['w'], [[2, 0, 1], [5, 3, 4]])
  np.testing.assert_array_equal(moved['net/head']['b'], [2, 0, 1])
  np.testing.assert_array_equal(moved['net/ahead']['w'], [0, 1, 2])
