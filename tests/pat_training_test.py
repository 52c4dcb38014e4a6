"""Perceptual adversarial training: the train step, runs from the command line, what is refused."""

import functools
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import classifiers, train
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import distances
from adversarial_augment.parallel import devices
from adversarial_augment.storage import checkpoints
from adversarial_augment.training import recipe
from adversarial_augment.types import TrainState
from tests import oracle, tiny, train_step_test, trainer

PAT = {'attack__name': 'pat', 'attack__distance': 'self', 'attack__epsilon': '0.5', 'attack__batch_norm': 'running'}
ALEXNET = PAT | {'attack__distance': 'alexnet', 'attack__epsilon': '1'}
SMOKE = '--config=configs/pat_{}.py:smoke'


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(trainer.ROOT)
  monkeypatch.setattr(devices, 'compilation_cache', lambda: None)


@pytest.mark.slow
@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('num_devices', [1, 8])
@pytest.mark.parametrize('options', [PAT, ALEXNET], ids=['self', 'alexnet'])
def test_steps_on_1_and_on_8_devices_equal_the_oracle(options, num_devices):
  made = config, recipe, phi, state = tiny.make(num_devices, **options, classifier__name='resnet', batch_size='32')
  adversary = functools.partial(oracle.fast_lpa, epsilon=config.attack.epsilon, num_steps=2)
  if options is ALEXNET:
    network = distances.of_training(config).network
    adversary = functools.partial(adversary, features=lambda phi, x: classifiers.features(network, *phi)(x))
  else:
    assert phi == {}
  key = config.attack.distance
  expected = train_step_test.by_oracle((key,), made, 3, adversary=adversary, local_stats=False)
  end, metrics = tiny.run(recipe, phi, state, 3)
  train_step_test.assert_equal(end, metrics, expected)
  assert all(got['finite'] for got in metrics)
  assert max(got['distance'] for got in metrics) > 0.05


@pytest.mark.slow
def test_two_steps_to_the_report(tmp_path, capsys):
  train.main([SMOKE.format('self'), f'--workdir={tmp_path}/w'])
  assert 'adversary: epsilon 0.5 in the distance of its own features, 2 steps\n' in capsys.readouterr().err
  own = {'step', 'epoch', 'loss', 'accuracy', 'learning_rate', 'images_per_second'}
  of_the_attack = {'attack_loss_start', 'attack_loss_end', 'distance', 'ssim_mean'}
  assert [line.keys() for line in trainer.lines(tmp_path / 'w')] == [own | of_the_attack] * 2
  assert 'pat, epsilon 0.5 in the distance of its own features, 2 steps' in (tmp_path / 'w/report.html').read_text()


REFUSED = [
  (
    {'attack.epsilon': 'none'},
    'name=pat must have a ball of a radius above 0, but .*distance=self, .*epsilon=none; set for example',
  ),
  ({'attack.epsilon': '0'}, 'name=pat must have a ball of a radius above 0, but .*distance=self, .*epsilon=0'),
  ({'attack.distance': 'none'}, 'name=pat must have a ball of a radius above 0, but .*distance=none'),
  ({'attack.distance': 'vgg'}, "distance='vgg' must be one of self, alexnet, or none"),
  ({'attack.distance_from': 'runs/a'}, 'distance_from=runs/a cannot go with .*distance=self, which has no file'),
  ({'attack.batch_norm': 'batch'}, 'batch_norm=batch cannot go with .*distance=self.*set config.attack.batch_norm=run'),
  ({'attack.num_steps': '0'}, 'num_steps=0 must be at least 1 with config.attack.name=pat'),
  ({'attack.beta_mode': 'batch'}, 'beta_mode=batch cannot go with config.attack.name=pat'),
  ({'attack.name': 'none'}, 'cannot go with config.attack.name=none, but only with'),
]


@pytest.mark.parametrize(('changes', 'message'), REFUSED)
def test_wrong_fields_are_refused(changes, message):
  config = configs.override(configs.load('configs/pat_self.py:smoke'), changes)
  with pytest.raises(UserError, match=message):
    configs.validate(config)


def test_a_wrong_file_is_one_line_before_anything_starts(tmp_path):
  rig, flag = trainer.Rig(tmp_path), '--config.attack.distance_from={}'
  (tmp_path / 'run').mkdir()
  for given, message in (
    (tmp_path / 'none.safetensors', 'does not exist; name the workdir or the file of an AlexNet, or leave it out'),
    (tmp_path / 'run', 'it has no config.json; name the workdir of a run of train'),
  ):
    run = rig.start(tmp_path / 'w', flag.format(given), base=(SMOKE.format('alexnet'),))
    assert run.wait() == 2
    (line,) = run.err.splitlines()
    assert line.startswith(f"train: config.attack.distance_from='{given}'")
    assert message in line
    assert not (tmp_path / 'w').exists()


def test_the_alexnet_of_a_run_is_read_and_another_classifier_refused(tmp_path, monkeypatch):
  config = configs.load('configs/alexnet.py:smoke')
  network = recipe.build_classifier(config, 10)
  images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
  params, statistics = network.init(jax.random.key(3), images, is_training=True)
  state = TrainState(jnp.int32(2), params, statistics, {'momentum': jnp.ones(3)})
  (tmp_path / 'run').mkdir()
  checkpoints.save(tmp_path / 'run' / 'checkpoints', 2, state, config_sha256=configs.sha256(config))
  (tmp_path / 'run' / 'config.json').write_text(configs.to_json(config))
  monkeypatch.chdir(tmp_path)
  found = distances.load('run', 'x', 'float32')
  assert (found.file, found.sha256) == ('run', checkpoints.state_sha256(state))
  jax.tree.map(np.testing.assert_array_equal, found.variables, (params, statistics))
  of = lambda variables: classifiers.features(network, *variables)(images)
  jax.tree.map(np.testing.assert_array_equal, of(found.variables), of((params, statistics)))
  shutil.copytree(tmp_path / 'run', tmp_path / 'other')
  (tmp_path / 'other' / 'config.json').write_text(configs.to_json(configs.load('configs/nominal_pat.py:smoke')))
  with pytest.raises(UserError, match="other': Checkpoint 2 under .* is of another state"):
    distances.load(str(tmp_path / 'other'), 'x', 'float32')


def test_a_file_of_another_classifier_is_refused(tmp_path, monkeypatch):
  other = configs.load('configs/nominal_pat.py:smoke')
  read = distances.inference.read_file
  monkeypatch.setattr(distances.inference, 'read_file', lambda path: read(path)._replace(config=other))
  shutil.copy(classifiers.SHIPPED_ALEXNET, tmp_path / 'other.safetensors')
  with pytest.raises(UserError, match="other.safetensors': it holds a classifier 'resnet'; train an AlexNet"):
    distances.load(str(tmp_path / 'other.safetensors'), 'x', 'float32')


@pytest.mark.slow
@pytest.mark.parametrize('distance', ['self', 'alexnet'])
def test_kills_change_nothing(distance, tmp_path):
  base = (SMOKE.format(distance), f'--config.num_steps={trainer.NUM_STEPS}', '--config.checkpoint_every=3')
  rig, rng = trainer.Rig(tmp_path), random.Random(0)
  rig.finish(tmp_path / 'straight', base=base)
  for _ in range(3):
    trainer.kill_at_random(rig, tmp_path / 'w', rng, base=base)
  rig.finish(tmp_path / 'w', base=base)
  trainer.assert_same_end(tmp_path / 'w', tmp_path / 'straight')
