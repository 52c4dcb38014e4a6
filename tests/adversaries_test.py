"""The registry of adversaries: one entry makes a new adversary known everywhere."""

import jax.numpy as jnp
import pytest

from adversarial_augment import config as configs
from adversarial_augment.config import adversaries, fields, tables
from adversarial_augment.config.adversaries import ADVERSARIES, Adversary
from adversarial_augment.errors import UserError
from adversarial_augment.exporting import card
from adversarial_augment.reporting import runs
from adversarial_augment.run import summary
from adversarial_augment.training import builders
from adversarial_augment.types import AttackResult
from tests import tiny

pytestmark = pytest.mark.usefixtures('quick_compile')

SHIFT = {'attack.name': 'brighter', 'attack.brightness': '0.25'}


def build(config, group, conv):
  """Adds the field's brightness to every pixel."""
  del group, conv

  def attack(keys, logits_fn, images, labels, frozen=None):
    moved = jnp.clip(images + config.attack.brightness, 0, 1)
    return AttackResult(moved, {'moved': jnp.abs(moved - images).max((1, 2, 3))})

  return builders.Adversary(attack, {})


def broken_rules(flat):
  if not flat['attack.brightness']:
    yield 'config.attack.brightness=0 of config.attack.name=brighter changes nothing; set for example 0.1.'


ENTRY = Adversary(
  meaning='adds brightness',
  builder=f'{__name__}:build',
  moves='pixels',
  method=lambda attack: 'on brighter images',
  strength=lambda attack: f'brightness {attack["brightness"]:g}',
  departure='images are only made brighter',
  fields={'attack.brightness': fields.Field(0.0, fields.number(0, 1), 'what brighter adds')},
  starts=('zero', 'ball'),
  broken_rules=broken_rules,
)


@pytest.fixture
def registered():
  before = dict(ADVERSARIES), dict(tables.TRAIN)
  tables.register('brighter', ENTRY)
  yield
  for table, entries in zip((ADVERSARIES, tables.TRAIN), before, strict=True):
    table.clear()
    table.update(entries)


@pytest.mark.usefixtures('registered')
def test_an_entry_is_trained_with():
  config, static, phi, state = tiny.make(1, **{name.replace('.', '__'): text for name, text in SHIFT.items()})
  _, (metrics,) = tiny.run(static, phi, state, 1)
  assert metrics['moved'] == pytest.approx(0.25)
  assert metrics['finite']
  opening = list(summary.opening(config, static, {'train': tiny.dataset()}, state, phi))
  assert 'adversary: brightness 0.25' in opening
  assert 'departs from Eq. 3: images are only made brighter (attack.name=brighter)' in opening


@pytest.mark.usefixtures('registered')
def test_an_entry_is_described(tmp_path):
  config = configs.override(configs.base_config(), SHIFT)
  assert 'brighter adds brightness' in configs.describe(config)
  assert adversaries.describe(config.attack) == 'brighter, brightness 0.25'
  assert card.title(config).endswith('cifar10 on brighter images')
  (tmp_path / 'config.json').write_text(configs.to_json(config).replace('0.25', '"much"'))
  with pytest.raises(UserError, match="attack.brightness='much' is not a number from 0 to 1; bring it back"):
    runs.collect([tmp_path])


def test_a_report_needs_what_describes_an_entry_and_no_more(tmp_path):
  text = configs.to_json(configs.load('configs/rlat.py:smoke'))
  (tmp_path / 'config.json').write_text(text)
  assert runs.collect([tmp_path])[0].config['attack']['layers'] is None
  (tmp_path / 'config.json').write_text(text.replace('"epsilon": 0.08', '"epsilon": null'))
  with pytest.raises(UserError, match='attack.epsilon=None, .* does not describe attack.name=rlat; bring it back'):
    runs.collect([tmp_path])


@pytest.mark.usefixtures('registered')
def test_the_config_of_an_entry_is_checked():
  config = configs.override(configs.base_config(), SHIFT)
  configs.validate(config)
  assert configs.from_json(configs.to_json(config)) == config
  for overrides, message in (
    (SHIFT | {'attack.brightness': '2'}, 'config.attack.brightness=2.0 must be a number from 0 to 1'),
    (SHIFT | {'attack.brightness': '0'}, 'config.attack.brightness=0 of config.attack.name=brighter changes nothing'),
    (SHIFT | {'attack.init': 'gaussian'}, 'init=gaussian cannot go with .*name=brighter; set .*init=zero or ball'),
    (
      SHIFT | {'attack.name': 'ada'},
      'brightness=0.25 cannot .*name=ada, but only with brighter; set .*=0.0, or',
    ),
    (SHIFT | {'attack.name': 'brigter'}, "Did you mean 'brighter'"),
  ):
    with pytest.raises(UserError, match=message):
      configs.validate(configs.override(configs.base_config(), overrides))


@pytest.mark.parametrize('name', ADVERSARIES)
def test_an_evaluation_under_attack_is_that_of_ada_whatever_the_training_has(name):
  balls = {'lp': {'attack.norm': 'linf', 'attack.epsilon': '8/255', 'attack.init': 'gaussian'}}
  balls |= {'pat': {'attack.distance': 'self', 'attack.epsilon': '0.5', 'attack.batch_norm': 'running'}}
  own = (balls | {'rlat': {'attack.epsilon': '0.08'}}).get(name, {})
  config = configs.override(configs.base_config(), tiny.OVERRIDES | own | {'attack.name': name, 'evals': 'ada'})
  configs.validate(config)
  found = builders.evaluation_adversary(config, tiny.make_mesh(1))
  _, phi = builders.load_network(config)
  assert found.frozen.keys() == phi.keys()


def test_nominal_training_has_no_attack():
  config = configs.override(configs.base_config(), tiny.OVERRIDES | {'attack.name': 'none'})
  assert builders.training_adversary(config, tiny.make_mesh(1)) == (None, {})
  assert adversaries.describe(config.attack) == 'no adversary'
