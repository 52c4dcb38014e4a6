"""Contracts of every entry of every table: what is listed is tested as soon as it is listed."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, augmentations, classifiers, corruption_nets, ssim
from adversarial_augment import config as configs
from adversarial_augment.attacks.ascent import STEPS
from adversarial_augment.classifiers import layers
from adversarial_augment.config.adversaries import ADVERSARIES
from adversarial_augment.config.tables import (
  CLASSIFIER_DEPTHS,
  NETWORK_OPTIONS,
  NETWORK_SIZES,
  NOT_ITS_OWN,
  TABLES,
  TRAIN,
)
from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.training import builders

pytestmark = pytest.mark.usefixtures('quick_compile')

TABLE_OF = {
  'attack.name': {*ADVERSARIES, 'none'},
  'attack.step': STEPS,
  'attack.root': ssim.ROOTS,
  'augment.before': augmentations.AUGMENTATIONS,
  'augment.after': augmentations.AUGMENTATIONS,
  'classifier.name': classifiers.CLASSIFIERS,
  'corruption_net.name': corruption_nets.CORRUPTION_NETS,
}
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(4, 32, 32, 3)).astype(np.float32)
SHAPES = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
ATTACKS = [name for name in ADVERSARIES if hasattr(attacks, name)]  # the others are made of parts
KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.mark.parametrize('field', list(TABLE_OF))
def test_choices_of_a_field_are_the_keys_of_its_table(field):
  assert set(TRAIN[field].kind.choices) == set(TABLE_OF[field])


def options_of(prefix: str, *runs: str) -> dict[str, object]:
  """The fields below a prefix with their defaults, but those that say how it is run and not what it is."""
  fields = {name.removeprefix(prefix): field.default for name, field in TRAIN.items() if name.startswith(prefix)}
  return {name: value for name, value in fields.items() if name not in ('name', *runs)}


@pytest.mark.parametrize('name', ATTACKS)
def test_an_attack_takes_every_field_and_has_its_default(name):
  known = inspect.signature(getattr(attacks, name)).parameters
  of_the_batch = (
    'batch_norm',
    'warmup_epochs',
    'every',
    'growth_epochs',
    'replay',
    'microbatch',
    'fraction',
    'beta_mode',
    'trades',
    'layers',
    'distance',
    'distance_from',
  )
  of_balls = ('norm', 'epsilon')
  unknown = {'ada': of_balls, 'advmix': (*of_balls, 'nu', 'moved'), 'lp': ('nu', 'moved', 'min_ssim', 'root', 'group')}[
    name
  ]
  for field, default in options_of('attack.', *of_the_batch, *unknown).items():
    assert known[field].default == default or field in of_balls, field  # which have none


@pytest.mark.parametrize('name', list(classifiers.CLASSIFIERS))
def test_a_classifier_takes_every_field_and_keeps_the_contract(name):
  factory = classifiers.CLASSIFIERS[name]
  known = {**inspect.signature(layers.classifier).parameters, **inspect.signature(factory).parameters}
  for field, default in options_of('classifier.', *NOT_ITS_OWN.get(name, ())).items():
    published = name == 'preact_resnet' or field not in ('depth', 'width')  # the others have sizes of their own
    assert known[field].default == default or not published, field
  network = factory(7, depth=min(CLASSIFIER_DEPTHS[name]), width=4)
  key = jax.random.key(0)
  params, state = jax.eval_shape(lambda key: network.init(key, jnp.zeros(SHAPES.shape), is_training=True), key)
  for options in ({'is_training': True}, {'is_training': False}, {'is_training': False, 'test_local_stats': True}):
    run = lambda params, state, images, options=options: network.apply(params, state, key, images, **options)
    logits, new = jax.eval_shape(run, params, state, SHAPES)
    assert (logits.shape, logits.dtype) == ((4, 7), jnp.float32)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize('name', list(corruption_nets.CORRUPTION_NETS))
def test_a_corruption_network_takes_its_fields_and_keeps_size_and_range(name):
  factory = corruption_nets.CORRUPTION_NETS[name]
  known = inspect.signature(factory).parameters
  for field, published in NETWORK_SIZES[name].items():
    assert known[field].default == published, field
  for field in NETWORK_OPTIONS[name]:
    assert known[field].default == TRAIN[f'corruption_net.{field}'].default, field
  sizes = {'blocks': 1, 'features': 4, 'scale': 2, 'codes': 6}
  network = factory(**{size: sizes[size] for size in NETWORK_SIZES[name]})
  phi = jax.eval_shape(network.init, jax.random.key(0), SHAPES)
  large = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), phi)
  for images in (IMAGES, IMAGES[:, :19, :30]):  # sides that no network can halve twice
    out = jax.jit(network.apply)(large, images, KEYS[0])
    assert (out.shape, out.dtype) == (images.shape, jnp.float32)
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert np.isfinite(out).all()


def test_every_size_and_option_of_a_network_is_a_field():
  of_networks = {item for table in (NETWORK_SIZES, NETWORK_OPTIONS) for items in table.values() for item in items}
  assert set(options_of('corruption_net.', 'weights')) == of_networks
  assert set(NETWORK_SIZES) == set(NETWORK_OPTIONS) == set(corruption_nets.CORRUPTION_NETS)


@pytest.mark.parametrize('weights', sorted(path.stem for path in corruption_nets._SHIPPED.glob('*.safetensors')))
def test_shipped_weights_load_and_have_no_zero_block(weights):
  _, phi = corruption_nets.load(weights.partition('_')[0], weights)
  assert all(np.any(leaf) and np.isfinite(leaf).all() for leaf in jax.tree.leaves(phi))


@pytest.mark.parametrize('name', list(augmentations.AUGMENTATIONS))
def test_an_augmentation_keeps_shape_type_and_range_and_draws_by_key(name):
  augment = jax.jit(jax.vmap(augmentations.AUGMENTATIONS[name]))
  same = jnp.broadcast_to(IMAGES[0], (64, 32, 32, 3))
  keys = jax.random.split(jax.random.key(1), 64)
  out = np.asarray(augment(keys, same))
  assert (out.shape, out.dtype) == ((64, 32, 32, 3), np.float32)
  assert out.min() >= 0
  assert out.max() <= 1
  assert len(np.unique(out.reshape(64, -1), axis=0)) > 1  # one draw per key
  np.testing.assert_array_equal(augment(keys, same), out)
  with jax.enable_x64(True):
    assert augmentations.AUGMENTATIONS[name](keys[0], jnp.asarray(IMAGES[0], jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize('name', list(STEPS))
def test_a_step_rule_goes_uphill_and_survives_a_zero_gradient(name):
  radii = {'w': jnp.float32(0.5), 'b': jnp.float32(0.1)}
  gradient = {'w': jnp.float32(RNG.normal(size=(3, 4))), 'b': jnp.float32(RNG.normal(size=3))}
  rule = STEPS[name](radii, 0.25)
  move, state = rule.update(gradient, rule.init(gradient))
  for block, g in gradient.items():
    assert float((move[block] * g).sum()) > 0
    assert move[block].dtype == jnp.float32
  still, _ = rule.update(jax.tree.map(jnp.zeros_like, gradient), rule.init(gradient))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(still))
  assert jax.tree.structure(state) == jax.tree.structure(rule.init(gradient))


@pytest.mark.parametrize('name', list(ssim.ROOTS))
def test_a_root_rule_keeps_range_and_the_mild(name):
  corrupted = np.concatenate([1 - IMAGES[:2], 0.95 * IMAGES[2:]])
  out = np.asarray(ssim.line_search(IMAGES, corrupted, min_ssim=0.3, root=name))
  assert np.isfinite(out).all()
  assert out.min() >= 0
  assert out.max() <= 1
  np.testing.assert_array_equal(out[2:], corrupted[2:])


@pytest.mark.parametrize('name', ATTACKS)
def test_an_attack_returns_images_in_range_and_metrics_of_each(name):
  tint = lambda phi, images: jnp.clip(images @ phi['w'] + phi['b'].reshape(1, 1, 1, 3), 0, 1)
  phi = {'w': jnp.eye(3), 'b': jnp.float32([0.1, -0.1, 0.2])}
  logits_fn = lambda images: images.mean((1, 2))
  hull = attacks.Hull(phi, jax.tree.map(lambda p: jnp.stack([p, -p]), phi))
  of_networks, of_balls = {'num_steps': 2, 'apply': tint}, {'num_steps': 2, 'norm': 'linf', 'epsilon': 0.1}
  options, frozen = {
    'ada': (of_networks | {'nu': 0.2}, phi), 'advmix': (of_networks, hull), 'lp': (of_balls, {})
  }[name]  # fmt: skip
  attack = getattr(attacks, name)(**options)
  result = jax.jit(lambda keys: attack(keys, logits_fn, IMAGES, jnp.array([0, 1, 2, 0]), frozen))(KEYS)
  assert (result.images.shape, result.images.dtype) == (IMAGES.shape, jnp.float32)
  assert float(result.images.min()) >= 0
  assert float(result.images.max()) <= 1
  assert {'attack_loss_start', 'attack_loss_end', 'ssim', 'gradient_norm'} <= result.metrics.keys()
  assert ({'ssim_corrected', 'ssim_below_min'} <= result.metrics.keys()) == (name != 'lp')
  for metric, values in result.metrics.items():
    assert values.shape == (4,), metric
    assert np.isfinite(values).all(), metric


def variants() -> list[tuple[str, str]]:
  folder = Path(__file__).parent.parent / 'configs'
  found = []
  for path in sorted(folder.glob('*.py')):
    scope: dict = {}
    exec(compile(path.read_text(), str(path), 'exec'), scope)
    assert scope['__doc__'], path
    found += [(path.name, variant) for variant in scope['VARIANTS']]
  return found


@pytest.mark.parametrize('name, variant', variants())
def test_every_config_and_variant_is_valid(name, variant):
  program = 'pretrain' if name.startswith('pretrain') else 'train'
  config = configs.load(f'configs/{name}:{variant}' if variant else f'configs/{name}', program)
  configs.validate(config)
  assert configs.from_json(configs.to_json(config)) == config
  lines = configs.describe(config).splitlines()
  assert len(lines) == len(TABLES[program])
  if program == 'train' and config.num_steps is None:
    assert sampling.num_steps(config.num_epochs, 10_000, config.batch_size) >= 1


def test_every_config_has_a_smoke_variant_for_tests():
  names = {name for name, _ in variants()}
  assert {name for name, variant in variants() if variant == 'smoke'} == names


@pytest.mark.parametrize('name, variant', [pair for pair in variants() if not pair[0].startswith('pretrain')])
def test_the_weights_of_every_config_ship(name, variant):
  config = configs.load(f'configs/{name}:{variant}' if variant else f'configs/{name}')
  config.evals = ('ada',)
  if (config.corruption_net.name, variant) == ('cae', ''):  # the published size: to be converted or trained
    with pytest.raises(UserError, match='No weights ship .* cae with features=64; .* name their file'):
      builders.check_adversary(config, (32, 32, 3))
    return
  builders.check_adversary(config, (32, 32, 3))  # raises where they do not
  assert corruption_nets.find(builders.weights_of(config)).is_file()
