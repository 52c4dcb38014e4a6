"""What follows from a config: steps, rates, the optimiser, and the refusals that no config rule can make."""

import math
import subprocess
import sys

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import corruption_nets
from adversarial_augment.classifiers import CLASSIFIERS
from adversarial_augment.config.tables import CLASSIFIER_DEPTHS
from adversarial_augment.corruption_nets import weights
from adversarial_augment.errors import UserError
from adversarial_augment.training import builders
from adversarial_augment.training import recipe as recipes
from tests import tiny


def build(**overrides):
  changed = tiny.OVERRIDES | {name.replace('__', '.'): value for name, value in overrides.items()}
  config = configs.override(configs.base_config(), changed)
  configs.validate(config)
  return recipes.build(config, tiny.dataset(), tiny.make_mesh(1))


@pytest.mark.parametrize(
  'epochs, num, batch, steps', [(300.0, 50_000, 256, 58_593), (1.0, 64, 8, 8), (0.5, 100, 8, 6), (1.5, 10, 15, 1)]
)
def test_steps_follow_from_epochs_across_their_ends(epochs, num, batch, steps):
  config = configs.base_config()
  config.num_epochs, config.batch_size = epochs, batch
  assert recipes.num_steps_of(config, num) == steps
  config.num_steps = 7
  assert recipes.num_steps_of(config, num) == 7


def test_a_run_without_a_step_is_refused():
  config = configs.base_config()
  config.num_epochs = 0.1
  with pytest.raises(UserError, match='config.num_epochs=0.1 of 64 images make no batch of config.batch_size=256'):
    recipes.num_steps_of(config, 64)


def test_derived_values_follow_the_overrides():
  nominal = {'attack__name': 'none', 'num_steps': 'none', 'num_epochs': '10', 'optimizer__warmup_epochs': '2'}
  small, _ = build(**nominal)
  large, phi = build(**nominal, batch_size='512', optimizer__learning_rate='0.2')
  assert (small.num_steps, large.num_steps) == (80, 1)
  assert phi == {}
  assert large.attack is None
  longer, _ = build(**nominal | {'num_epochs': '100', 'optimizer__warmup_epochs': '20'}, batch_size='512')
  assert longer.num_steps == 12
  assert float(longer.schedule(2)) == pytest.approx(0.2)  # 0.1 * 512 / 256, after 12 * 20 / 100 steps
  assert float(small.schedule(16)) == pytest.approx(0.1)  # batches below 256 keep the base
  set_steps, _ = build(**nominal | {'num_steps': '50'})
  assert float(set_steps.schedule(10)) == pytest.approx(0.1)  # 50 * 2 / 10 steps of warm-up
  assert float(set_steps.schedule(5)) == pytest.approx(0.05)


def test_a_warm_up_of_any_length_ends_with_the_run():
  config = configs.override(configs.base_config(), tiny.OVERRIDES | {'attack.name': 'none', 'num_epochs': '1e-320'})
  config.attack.warmup_epochs, config.optimizer.warmup_epochs = 1e6, 0.0  # their quotient is infinite
  recipe, _ = recipes.build(config, tiny.dataset(), tiny.make_mesh(1))
  assert recipe.warmup_steps == recipe.num_steps


def test_phi_is_what_ships_and_missing_weights_are_refused():
  config = configs.override(configs.base_config(), tiny.OVERRIDES)
  assert builders.weights_of(config) == 'edsr_4x16_x1'
  with pytest.raises(UserError, match='No weights ship .*blocks=5'):
    builders.weights_of(configs.override(config, {'corruption_net.blocks': '5'}))
  with pytest.raises(UserError, match='nowhere.safetensors'):
    builders.check_adversary(configs.override(config, {'corruption_net.weights': 'nowhere.safetensors'}), (32, 32, 3))


NETWORK = {'name': 'edsr', 'blocks': 1, 'features': 4, 'scale': 2}


def asking_for(tmp_path, network=NETWORK, change=lambda params: None, **sizes):
  """A config with a weight file of a small network, whose sizes it asks for."""
  shapes = corruption_nets.shapes('edsr', {'blocks': 1, 'features': 4, 'scale': 2})
  params = {name: {key: np.ones(shape) for key, shape in layer.items()} for name, layer in shapes.items()}
  change(params)
  path = tmp_path / 'phi.safetensors'
  weights.save(path, params, {'network': network})
  asked = {'blocks': 1, 'features': 4, 'scale': 2, 'weights': path} | sizes
  changed = {f'corruption_net.{name}': str(value) for name, value in asked.items()}
  return configs.override(configs.base_config(), tiny.OVERRIDES | changed)


def test_a_weight_file_must_be_of_the_network_that_the_config_names(tmp_path):
  builders.check_adversary(asking_for(tmp_path), (32, 32, 3))
  with pytest.raises(UserError) as error:
    builders.check_adversary(asking_for(tmp_path, blocks=16, scale=4), (32, 32, 3))
  assert str(error.value) == (
    f'config.corruption_net.weights={tmp_path}/phi.safetensors holds edsr with blocks=1 features=4 scale=2, but '
    'config.corruption_net.blocks=16, config.corruption_net.scale=4; set the sizes that the file holds, or name '
    'another file.'
  )
  nominal = configs.override(asking_for(tmp_path, blocks=16), {'attack.name': 'none', 'evals': 'clean'})
  builders.check_adversary(nominal, (32, 32, 3))  # has nothing to do with the file


@pytest.mark.parametrize(
  'harm, words',
  [
    ({'network': NETWORK | {'name': 'rcan'}}, "weights of 'rcan', not of a corruption_net 'edsr'; give a file that"),
    ({'network': None}, "'network' in its header is None and must have exactly name, .*; give a file that"),
    ({'network': NETWORK | {'blocks': 2}}, "lacks 'edsr/block_1/conv_0/b'.*; these are not.*: give a file that"),
    ({'network': NETWORK | {'scale': 1}}, "holds 'edsr/up_0/b' of shape .* which the network does not have; .*: give"),
    ({'network': NETWORK | {'features': 8}}, "'edsr/[^']*', which has shape .* and must have .*; .*: give a file that"),
    ({'change': lambda params: params.pop('edsr/out')}, "lacks 'edsr/out/"),
    ({'change': lambda params: [p.update(w=0 * p['w'], b=0 * p['b']) for p in params.values()]}, 'are zero.*; load'),
  ],
  ids=['name', 'none', 'blocks', 'scale', 'features', 'missing', 'zero'],
)
def test_weights_of_another_network_are_refused_before_the_run(tmp_path, harm, words):
  with pytest.raises(UserError, match=words) as error:
    builders.check_adversary(asking_for(tmp_path, **harm), (32, 32, 3))
  assert 'phi.safetensors' in str(error.value)
  assert '\n' not in str(error.value)


def test_files_are_checked_without_devices():
  code = (
    'from adversarial_augment import config; from adversarial_augment.training import builders; '
    'builders.check_adversary(config.base_config(), (32, 32, 3)); '
    'from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('nesterov', [True, False])
@pytest.mark.parametrize('decay_norms', [True, False])
def test_twenty_steps_are_those_of_torch_sgd(nesterov, decay_norms):
  """torch.optim.SGD by its documentation: decay joins the gradient, then momentum, then the rate of this step."""
  rng = np.random.default_rng(0)
  params = {'conv': {'w': rng.normal(size=(3, 4))}, 'norm_0': {'scale': rng.normal(size=4)}}
  gradients = [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(20)]
  rates = lambda count: 0.1 / (1 + count)
  optimizer = recipes.sgd(rates, momentum=0.9, nesterov=nesterov, weight_decay=0.01, decay_batch_norm=decay_norms)
  ours = jax.tree.map(jnp.asarray, params)
  state = optimizer.init(ours)
  velocity = jax.tree.map(np.zeros_like, params)
  for t, gradient in enumerate(gradients):
    updates, state = optimizer.update(gradient, state, ours)
    ours = jax.tree.map(jnp.add, ours, updates)
    for module, name in (('conv', 'w'), ('norm_0', 'scale')):
      decay = 0.01 if module == 'conv' or decay_norms else 0.0
      g = gradient[module][name] + decay * params[module][name]
      velocity[module][name] = 0.9 * velocity[module][name] + g
      direction = g + 0.9 * velocity[module][name] if nesterov else velocity[module][name]
      params[module][name] = params[module][name] - rates(t + 1) * direction
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, params)


def test_a_gradient_is_clipped_number_by_number_before_the_decay():
  """As torch.nn.utils.clip_grad_value_ does before a step of torch.optim.SGD."""
  params, gradient = ({'w': jnp.array(values)} for values in ([1.0, -2.0, 4.0], [0.5, -3.0, 7.0]))
  options = {'momentum': 0.0, 'nesterov': False, 'weight_decay': 0.5, 'decay_batch_norm': True}
  optimizer = recipes.sgd(lambda _: 0.1, **options, clip=1.0)
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(updates['w'], [-0.1 * (0.5 + 0.5), -0.1 * (-1 - 1), -0.1 * (1 + 2)], rtol=1e-6)


def decayed(params) -> set[str]:
  """The arrays that weight decay shrinks."""
  optimizer = recipes.sgd(lambda _: 1.0, momentum=0.0, nesterov=False, weight_decay=0.5, decay_batch_norm=False)
  ones = jax.tree.map(jnp.ones_like, params)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(ones), ones)
  return {jax.tree_util.keystr(path) for path, value in jax.tree.leaves_with_path(updates) if (value != 0).any()}


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_weight_decay_spares_the_modules_that_keep_running_statistics(name):
  network = CLASSIFIERS[name](10, depth=min(CLASSIFIER_DEPTHS[name]))
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  init = lambda images: network.init(jax.random.key(0), images, is_training=True)
  params, state = jax.eval_shape(init, images)
  params = jax.tree.map(lambda x: jnp.ones((1,)), params)
  expected = {f"['{module}']['{leaf}']" for module in params.keys() - state.keys() for leaf in params[module]}
  assert decayed(params) == expected
  assert len(expected) == len(jax.tree.leaves(params)) - 2 * len(state)  # a scale and an offset for each


def test_weight_decay_knows_norms_by_their_parameters_and_not_by_names():
  def network(images):
    x = hk.Linear(4, name='normal')(images)
    with hk.name_scope('block_norm1'):
      x = hk.Linear(4, name='conv')(x)
    x = hk.BatchNorm(True, True, 0.9, name='bn')(x, is_training=True)
    x = hk.LayerNorm(-1, True, True, name='layer')(x)
    return hk.RMSNorm(-1, name='last')(x) + hk.get_parameter('norm', (2, 4), init=jnp.ones)

  params, _ = hk.transform_with_state(network).init(jax.random.key(0), jnp.ones((2, 3)))
  assert decayed(params) == {
    "['normal']['w']", "['normal']['b']", "['block_norm1/conv']['w']", "['block_norm1/conv']['b']", "['~']['norm']"
  }  # fmt: skip


def test_the_first_update_of_a_warm_up_moves():
  recipe, _ = build(attack__name='none', optimizer__warmup_epochs='30')
  params = {'w': jnp.ones(3)}
  updates, _ = recipe.optimizer.update({'w': jnp.ones(3)}, recipe.optimizer.init(params), params)
  assert (np.asarray(updates['w']) < 0).all()
  # Nesterov's first step is (1 + momentum) times the gradient, at a tenth of the peak: 100 * 30 / 300 steps.
  np.testing.assert_allclose(updates['w'], -0.01 * 1.9 * (1 + 1e-4), rtol=1e-5)


@pytest.mark.parametrize('batch, expected', [(256, 0.1), (512, 0.2), (1024, 0.4), (64, 0.1), (8, 0.1)])
def test_linear_scaling_never_scales_down(batch, expected):
  assert recipes.effective_learning_rate(0.1, batch) == pytest.approx(expected)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('num_steps, warmup', [(100, 10), (100, 0), (58_593, 976), (3, 1), (2, 0)])
def test_warmup_and_cosine_are_the_closed_form(num_steps, warmup):
  schedule = recipes.warmup_cosine(0.4, num_steps, warmup)

  def expected(step):
    if step < warmup:
      return 0.4 * step / warmup
    return 0.2 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))

  steps = np.unique(np.linspace(0, num_steps, 50).astype(int))
  np.testing.assert_allclose([float(schedule(s)) for s in steps], [expected(s) for s in steps], atol=1e-12)
  assert float(schedule(warmup)) == pytest.approx(0.4)
  assert float(schedule(num_steps)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('num_steps, warmup', [(1, 0), (1, 1), (2, 1), (5, 2)])
def test_the_shortest_runs_learn_from_the_first_update_on(num_steps, warmup):
  schedule = recipes.warmup_cosine(0.1, num_steps, warmup)
  assert float(schedule(1)) > 0
  assert all(0 <= float(schedule(step)) <= 0.1 * (1 + 1e-6) for step in range(num_steps + 3))


def test_a_run_of_one_update_has_the_middle_of_the_cosine():
  assert float(recipes.warmup_cosine(0.1, 1, 0)(1)) == pytest.approx(0.05)


@pytest.mark.usefixtures('x64')
def test_steps_are_those_of_perceptual_adversarial_training():
  """100 epochs of 1,000 updates: a warm-up of 5, and a tenth of the rate from epochs 75 and 90 on."""

  def published(iteration):
    epoch, rate = iteration // 1000, 0.1
    for drop in (75, 90, 100):
      rate *= 0.1 if epoch >= drop else 1
    return (iteration + 1) / 5000 * 0.1 if epoch < 5 else rate

  fields = {'num_steps': '100000', 'num_epochs': '100', 'optimizer__schedule': 'steps', 'optimizer__drops': '.75,.9'}
  recipe, _ = build(attack__name='none', optimizer__warmup_epochs='5', **fields)
  iterations = [0, 1, 4998, 4999, 5000, 74_998, 74_999, 75_000, 89_999, 90_000, 99_999]
  ours = [float(recipe.schedule(iteration + 1)) for iteration in iterations]
  np.testing.assert_allclose(ours, list(map(published, iterations)), rtol=1e-12)


def test_drops_are_derived_and_keep_their_places_in_a_shorter_run():
  config = configs.override(configs.base_config(), {'optimizer.schedule': 'steps', 'optimizer.drops': '0.34,0.67'})
  assert recipes.drops_of(config, 1000) == [340, 670]
  config.num_steps, config.optimizer.warmup_epochs = 6000, 0.0
  assert 'learning_rate_drops = 2,040, 4,020  # updates, then it is a tenth' in recipes.derived(config, None)


@pytest.mark.parametrize('fields, words', [
  ({'drops': '0.5'}, 'config.optimizer.drops=0.5 cannot go with config.optimizer.schedule=cosine, which has none; set'),
  ({'drops': '0.5,0.4', 'schedule': 'steps'}, r'drops=\(0.5, 0.4\) must be numbers above 0 and below 1 .*, each above'),
  ({'drops': '0.5,1', 'schedule': 'steps'}, 'must be numbers above 0 and below 1 '),
  ({'schedule': 'step'}, "schedule='step' must be one of cosine, steps. Did you mean 'steps'"),
  ({'clip': '0'}, 'config.optimizer.clip=0.0 must be a number above 0 and at most 1e.06, or none'),
])  # fmt: skip
def test_wrong_recipes_are_one_line(fields, words):
  config = configs.override(configs.base_config(), {f'optimizer.{name}': value for name, value in fields.items()})
  with pytest.raises(UserError, match=words) as error:
    configs.validate(config)
  assert '\n' not in str(error.value)


def test_the_rate_of_a_step_does_not_depend_on_where_a_run_resumes():
  before, after = (recipes.warmup_cosine(0.1, 40, 20) for _ in range(2))
  assert float(before(np.int32(11))) == float(after(np.int32(11))) == pytest.approx(0.055)
