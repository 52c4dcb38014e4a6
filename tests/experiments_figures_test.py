"""The figures of the paper: what is measured for them, what is kept, and that the pictures are drawn."""

import base64
import functools
import json
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from adversarial_augment import config as configs
from adversarial_augment import corruption_nets, corruptions, inference, metrics, per_example_conv, ssim
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.errors import NumericalError, UserError
from adversarial_augment.evaluation.accuracy import accuracy, batches
from adversarial_augment.training import builders
from adversarial_augment.training import recipe as recipes
from experiments import (
  figure1_drawing,
  figure1_ssim,
  figure2_training,
  figure3_drawing,
  figure3_reconstruction,
  figure_files,
)
from tests import tiny

SHA = 'abcdef0123456789' * 4


def assert_is_picture(path: Path):
  with Image.open(path) as picture:
    assert picture.format == 'PNG'
    pixels = np.asarray(picture.convert('RGB')).reshape(-1, 3)
  assert len(np.unique(pixels, axis=0)) > 100


def refused(call, *arguments, **options) -> str:
  with pytest.raises(UserError) as error:
    call(*arguments, **options)
  assert '\n' not in str(error.value)
  return str(error.value)


# What all share.


def test_examples_keep_every_pixel():
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), np.uint8)
  np.testing.assert_array_equal(figure_files.decoded(figure_files.encoded(images)), images)
  np.testing.assert_array_equal(figure_files.decoded(figure_files.encoded(images / 255)), images)


@pytest.mark.parametrize('content', [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'GIF89a', b''])
def test_pictures_other_than_png_are_not_opened(content):
  picture = [base64.b64encode(content).decode()]
  assert 'damaged picture; compute them again with --overwrite' in refused(figure_files.decoded, picture)


def test_a_mosaic_has_white_gaps():
  found = figure_files.mosaic([np.zeros((2, 4, 4, 3), np.uint8)] * 3, gap=1)
  assert found.shape == (15, 10, 3)
  assert (found == 0).all(-1).sum() == 6 * 16
  assert (found == 255).all(-1).sum() == 15 * 10 - 6 * 16


def test_numbers_of_other_conditions_are_kept(tmp_path):
  path = tmp_path / 'figure.json'
  assert figure_files.known(path, 'a', overwrite=False) == {}
  figure_files.write(path, {'conditions_sha256': 'a', 'x': 1})
  assert figure_files.known(path, 'a', overwrite=False)['x'] == 1
  assert '--overwrite' in refused(figure_files.known, path, 'b', overwrite=False)
  assert figure_files.known(path, 'b', overwrite=True) == {}
  path.write_text('[1')
  assert 'damaged' in refused(figure_files.known, path, 'a', overwrite=False)


# Figure 1.


@pytest.fixture(scope='module')
def run():
  """A nominal run of one device, whose adversary is that of figure 1."""
  config, recipe, _, state = tiny.make(attack__name='none', batch_size='4', attack__num_steps='1')
  return config, recipe.mesh, state


@pytest.fixture
def workdir(run, tmp_path, monkeypatch):
  """Stands for the folder of that run, with a checkpoint."""
  config, mesh, state = run
  (tmp_path / 'config.json').write_text(configs.to_json(config))
  monkeypatch.setattr(inference, 'restore', lambda *_: inference.Restored(3, SHA, SHA, state))
  monkeypatch.setattr('adversarial_augment.parallel.sharding.data_mesh', lambda: mesh)
  return tmp_path


def test_means_are_those_of_the_evaluation(run, workdir):
  config, mesh, state = run
  test = tiny.dataset()._replace(num_examples=7)  # the last batch is filled up
  path = workdir / 'figure.json'
  measure = functools.partial(
    figure1_ssim.measure, figure1_ssim.adversary(config, {}), workdir, test, seed=0, path=path
  )
  found = measure(nus=[0.03], overwrite=False)
  values = found['nus']['0.03']

  adversary = configs.override(config, {'attack.nu': '0.03', 'attack.name': 'ada'})
  attack, phi = builders.evaluation_adversary(adversary, mesh)
  evaluate = accuracy(recipes.attacked_classifier(config, 10), mesh, 4, attack=attack, phi=phi)
  expected = evaluate(state, test, lambda: None)
  assert [values['mean'], np.mean(values['ssim'])] == pytest.approx([expected['ssim']] * 2, abs=1e-6)
  assert len(values['ssim']) == 7
  assert values['below'] == expected['ssim_corrected'] == 0
  assert np.trapezoid(values['density'], values['grid']) == pytest.approx(1, abs=0.01)
  clean, made = figure_files.decoded(found['clean']), figure_files.decoded(values['adversarial'])
  np.testing.assert_array_equal(clean, test.read(np.arange(6)).images)
  shown = ssim.ssim(*(jnp.asarray(images, jnp.float32) / 255 for images in (clean, made)))
  np.testing.assert_allclose(shown, values['ssim'][:6], atol=0.01)  # images are rounded to grey levels

  assert (found['checkpoint_sha256'], found['trained_with']['name']) == (SHA, 'none')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figure1_ssim, 'corruptor', None)  # nothing is measured again
    assert measure(nus=[0.03], overwrite=False) == found == json.loads(path.read_text())
    measure.keywords['seed'] = 1
    assert '--overwrite' in refused(measure, nus=[0.03], overwrite=False)
  figure1_drawing.draw(found, [0.03], workdir / 'figure.png')
  assert_is_picture(workdir / 'figure.png')
  said = ' '.join(figure1_drawing.about(found))
  assert all(
    part in said for part in ('tiny (embedded), test', SHA[:12], 'n = 7', 'seed 0', 'edsr', 'trained nominally')
  )


@pytest.mark.slow
def test_what_the_adversary_adds_is_told_from_what_the_network_does(run):
  """The CAE changes images by itself, so that its own output is closer to what the adversary makes of it."""
  test = tiny.dataset()._replace(num_examples=4)
  changes = {
    'attack.nu': '0.01',
    'corruption_net.name': 'cae',
    'corruption_net.blocks': 'none',
    'corruption_net.scale': 'none',
  }
  config = configs.override(figure1_ssim.adversary(run[0], {}), changes)
  corrupt, phi = figure1_ssim.corruptor(config, run[1], test, 0)
  (batch,) = batches(test, run[1], 4)
  made, with_image, with_network = corrupt(run[2].params, run[2].model_state, phi, batch)
  network, weights = builders.load_network(config)
  images = batch.images.astype(jnp.float32) / 255
  keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), 2) for i in range(4)]
  start = jnp.concatenate([network.apply(weights, images[i : i + 1], keys[i]) for i in range(4)])
  np.testing.assert_allclose(with_network, ssim.ssim(start, made), atol=1e-4)
  assert np.mean(with_network) > np.mean(with_image) + 0.05


def test_images_that_a_run_has_held_out(run):
  config = configs.override(run[0], {'dataset': 'embedded', 'holdout': '7'})
  assert figure1_ssim.images_of(config, 'validation').num_examples == 7
  assert figure1_ssim.images_of(config, 'test').num_examples == 2000
  assert 'config.holdout=0' in refused(figure1_ssim.images_of, run[0], 'validation')
  assert "'validaton'" in refused(figure1_ssim.images_of, run[0], 'validaton')


@pytest.mark.parametrize('centre, spread', [(0.99, 0.01), (0.5, 0.1), (0.2, 0.2)])
def test_a_density_integrates_to_one(centre, spread):
  values = np.minimum(np.random.default_rng(0).normal(centre, spread, 500), 1.0)
  grid = np.linspace(-2, 1, 20_001)
  found = figure1_ssim.density(values, grid)
  assert np.trapezoid(found, grid) == pytest.approx(1, abs=2e-3)
  assert np.trapezoid(found * grid, grid) == pytest.approx(values.mean(), abs=0.02)
  assert 'All 3 images have the same SSIM' in refused(figure1_ssim.density, np.full(3, centre), grid)


@pytest.mark.parametrize('text', ['', '0', '-1', 'a', '.1,,.2', 'nan', '1e9'])
def test_wrong_radii_are_refused(text):
  assert f"--nus='{text}'" in refused(figure1_ssim.parse_nus, text)


def test_radii_are_sorted_and_counted_once():
  assert figure1_ssim.parse_nus('.03,0.015,.015') == [0.015, 0.03]


@pytest.mark.parametrize('field', ['classifier.depth', 'seed', 'attack.nu', 'attack.min_ssim', 'nonsense'])
def test_fields_of_the_training_stay(run, field):
  assert f'config.{field}' in refused(figure1_ssim.adversary, run[0], {field: '1'})


@pytest.mark.parametrize(
  'flags, message',
  [
    ([], '--workdir'),
    (['--workdir={}', '--nus=0'], '--nus'),
    (['--workdir={}', '--seed=-1'], '--seed=-1'),
    (['--workdir={}', '--num_images=1'], '--num_images=1'),
    (['--workdir={}', '--num_images=99999'], '--num_images=99999'),
    (['--workdir={}/none'], "No run in '"),
    (['--workdir={}', '--config.corruption_net.name=esdr'], 'edsr'),
  ],
)
def test_figure_1_refuses_in_one_line(workdir, flags, message):
  assert message in refused(figure1_ssim.main, [flag.format(workdir) for flag in flags])


# Figure 2.


def test_normalisations():
  values = np.array([[0.2, 0.4, 0.6], [0.4, 0.4, 0.2]])
  np.testing.assert_allclose(figure2_training.normalised(values, 0), [[0, 0, 1], [1, 0, 0]])
  np.testing.assert_allclose(figure2_training.normalised(values, 1), [[0, 0.5, 1], [1, 1, 0]], atol=1e-12)
  assert (figure2_training.normalised(np.full((2, 2), 0.7), 0) == 0).all()


def write_evaluation(workdir, step, error, *, extra=True, split='test', name=None, num_images=40):
  """An evaluation whose k-th corruption has the error `error` + k / 100."""
  errors = {corruption: error + k / 100 for k, corruption in enumerate(metrics.ALL_NAMES)}
  common = {'corruption_error': {key: errors[key] for key in metrics.NAMES}, 'num_images': num_images, 'origin': 'own'}
  evals = {'clean': {'accuracy': 0.9}, 'cifar10_c': common}
  if extra:
    evals['cifar10_c_extra'] = common | {'corruption_error': {key: errors[key] for key in metrics.EXTRA_NAMES}}
  config = json.loads(configs.to_json(configs.base_config()))
  content = {
    'evals': evals, 'step': step, 'num_steps': 60, 'state_sha256': f'{step:02}' * 32, 'split': split, 'config': config,
    'data': {split: {'name': 'pets', 'origin': 'own', 'sha256': 's'}}, 'weights': None, 'seed': 5, 'config_sha256': 'c',
    'versions': {}, 'git': None, 'command': 'train',
  }  # fmt: skip
  (workdir / 'config.json').write_text(json.dumps(config))
  (workdir / 'results').mkdir(exist_ok=True)
  (workdir / 'results' / f'{name or f"eval_{step}"}.json').write_text(json.dumps(content))


def collect(workdir):
  return figure2_training.collect(workdir, inference.read_config(workdir))


def test_the_matrix_of_accuracies(tmp_path, capsys):
  for step, error in ((10, 0.6), (100, 0.3), (20, 0.5)):
    write_evaluation(tmp_path, step, error)
  write_evaluation(tmp_path, 120, 0.1, name='train')
  figure2_training.main([f'--workdir={tmp_path}'])
  assert '19 corruptions at 4 steps' in capsys.readouterr().out
  found = json.loads((tmp_path / 'figures' / 'figure2_training.json').read_text())
  assert found['steps'] == [10, 20, 100, 120]
  assert found['corruptions'] == list(metrics.ALL_NAMES)
  expected = 1 - np.array([0.6, 0.5, 0.3, 0.1]) - np.arange(19)[:, None] / 100
  np.testing.assert_allclose(found['accuracy'], expected)
  np.testing.assert_allclose(found['by_row'], np.tile([0, 0.2, 0.6, 1], (19, 1)), atol=1e-9)
  np.testing.assert_allclose(found['by_column'], np.tile(1 - np.arange(19)[:, None] / 18, (1, 4)), atol=1e-9)
  assert_is_picture(tmp_path / 'figures' / 'figure2_training.png')
  said = ' '.join(figure2_training.about(found))
  assert all(part in said for part in ('pets (own)', '12012012', 'n = 40', 'seed 5', 'ada through edsr, nu 0.015'))


def test_extra_corruptions_are_shown_where_every_step_has_them(tmp_path, capsys):
  write_evaluation(tmp_path, 10, 0.5)
  write_evaluation(tmp_path, 20, 0.5, extra=False)
  assert collect(tmp_path)['corruptions'] == list(metrics.NAMES)
  assert 'at step 20' in capsys.readouterr().out


def test_the_end_on_other_images_is_left_out(tmp_path):
  write_evaluation(tmp_path, 10, 0.5, split='validation')
  write_evaluation(tmp_path, 20, 0.4, split='validation')
  write_evaluation(tmp_path, 30, 0.3, name='train')
  assert collect(tmp_path)['steps'] == [10, 20]


def test_a_run_without_evaluations_is_told_the_flags(tmp_path):
  write_evaluation(tmp_path, 60, 0.3, name='train')
  said = refused(collect, tmp_path)
  assert '--config.eval_every=3 --config.evals=clean,cifar10_c,cifar10_c_extra' in said


def test_evaluations_of_other_images_and_damaged_ones_are_named(tmp_path):
  write_evaluation(tmp_path, 10, 0.5, num_images=20)
  write_evaluation(tmp_path, 20, 0.4)
  assert 'eval_10.json' in refused(collect, tmp_path)
  (tmp_path / 'results' / 'eval_10.json').write_text('{"evals"')
  assert 'eval_10.json' in refused(collect, tmp_path)


# Figure 3.


def affine(phi, images, key):
  """A network that can brighten, and no more."""
  del key
  return jnp.clip(images * (1 + phi['scale']) + phi['shift'], 0, 1)


AFFINE = {name: np.zeros((1, 1, 1, 3), np.float32) for name in ('scale', 'shift')}


@pytest.mark.parametrize('num_devices', [1, 4])
def test_a_mild_corruption_is_reconstructed(num_devices):
  images = tiny.dataset().read(np.arange(4)).images
  target = np.clip(images.astype(int) + 40, 0, 255).astype(np.uint8)
  run = figure3_reconstruction.reconstructor(affine, tiny.make_mesh(num_devices), num_steps=100, seed=0)
  made, after, before = jax.device_get(run(AFFINE, np.arange(4), images, target))
  pair = lambda a, b: ssim.ssim(*(jnp.asarray(x, jnp.float32) for x in (a, b)))
  np.testing.assert_allclose(before, pair(images / 255, target / 255), atol=1e-5)
  np.testing.assert_allclose(after, pair(made, target / 255), atol=1e-5)
  assert (after > before).all()
  assert np.abs(made - target / 255).mean() < 0.5 * np.abs(images - target.astype(float)).mean() / 255


def test_what_is_there_already_stays_as_it_is():
  images = tiny.dataset().read(np.arange(2)).images
  run = figure3_reconstruction.reconstructor(affine, tiny.make_mesh(1), num_steps=3, seed=0)
  _, after, before = run(AFFINE, np.arange(2), images, images)
  np.testing.assert_allclose(before, 1, atol=1e-6)
  np.testing.assert_allclose(after, 1, atol=1e-4)


def test_three_steps_are_those_of_a_plain_loop(x64, monkeypatch):
  assert (figure3_reconstruction.PENALTY, figure3_reconstruction.LEARNING_RATE) == (1e-5, 1e-3)
  monkeypatch.setattr(figure3_reconstruction, 'PENALTY', 10.0)  # so that it matters within three steps
  sizes = {'blocks': 1, 'features': 4, 'scale': 1}
  image, other = tiny.dataset().read(np.array([0, 1])).images
  network = edsr(**sizes)
  phi = tiny.to_default_float(network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
  run = figure3_reconstruction.reconstructor(network.apply, tiny.make_mesh(1), num_steps=3, seed=0)
  made, after, _ = run(phi, np.array([0]), image[None], other[None])

  plain = edsr(**sizes, conv=per_example_conv.conv).apply
  x, target = (jnp.asarray(a[None], jnp.float64) / 255 for a in (image, other))

  def objective(delta):
    moved = {name: {key: phi[name][key] + delta[name][key] for key in phi[name]} for name in phi}
    squares = sum((block**2).sum() for block in jax.tree.leaves(delta))
    return ssim.ssim(plain(moved, x), target)[0] - 10 * squares

  flat, unflatten = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, phi))
  gradient_of = jax.jit(lambda flat: jax.flatten_util.ravel_pytree(jax.grad(objective)(unflatten(flat)))[0])
  delta, first, second = (np.zeros(flat.size) for _ in range(3))
  for step in (1, 2, 3):  # Adam (Kingma and Ba 2015), upwards
    gradient = np.asarray(gradient_of(delta))
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    delta = delta + 1e-3 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
  expected = jax.jit(plain)(jax.tree.map(jnp.add, phi, unflatten(jnp.asarray(delta))), x)
  np.testing.assert_allclose(made, expected, atol=1e-9)
  np.testing.assert_allclose(after, ssim.ssim(expected, target), atol=1e-9)


def test_severities_come_in_turn():
  images = tiny.dataset().read(np.arange(7)).images
  index = np.array([3, 5, 8, 9, 11, 20, 21])
  found = figure3_reconstruction.corrupt(images, index, 'contrast', 4)
  for i in range(7):
    expected = corruptions.corrupt(images[i : i + 1], 'contrast', i % 5 + 1, 4, index[i : i + 1])[0]
    np.testing.assert_array_equal(found[i], expected)


@pytest.fixture
def one_network(monkeypatch):
  """The network is `affine`, and there are two corruptions."""
  from haiku import Transformed

  monkeypatch.setattr(corruption_nets, 'load', lambda *_: (Transformed(lambda: None, affine), AFFINE))
  monkeypatch.setattr(metrics, 'ALL_NAMES', ('brightness', 'contrast'))


def test_what_is_known_is_not_computed_again(tmp_path, one_network):
  path = tmp_path / 'figure.json'
  setting = {'num_images': 11, 'num_steps': 5, 'seed': 0, 'overwrite': False}
  measure = lambda **changed: figure3_reconstruction.measure(
    tiny.dataset(), {'edsr': 'edsr_4x16_x1'}, path, **setting | changed
  )
  found = measure()
  cells = found['nets']['edsr']['corruptions']
  assert list(cells) == ['brightness', 'contrast']
  both = cells['brightness']['ssim'] + cells['contrast']['ssim']
  assert len(both) == 22
  assert cells['contrast']['mean'] == pytest.approx(np.mean(cells['contrast']['ssim']), abs=1e-6)
  assert cells['contrast']['std'] == pytest.approx(np.std(cells['contrast']['ssim']), abs=1e-6)
  assert found['nets']['edsr']['mean'] == pytest.approx(np.mean(both), abs=1e-6)
  assert cells['brightness']['mean'] > cells['brightness']['start_mean']

  held = json.loads(path.read_text())
  assert held == found
  del held['nets']['edsr']['corruptions']['contrast']  # as if it had been stopped there
  held['nets']['edsr']['corruptions']['brightness']['mean'] = 0.125
  path.write_text(json.dumps(held))
  assert figure3_drawing.complete(held) == {}
  more = {'nets': dict.fromkeys(('unet', 'cae', 'edsr'), found['nets']['edsr'])}
  assert list(figure3_drawing.complete(more)) == ['edsr', 'cae', 'unet']  # in the same order, however it was read
  again = measure()['nets']['edsr']
  assert again['corruptions']['brightness']['mean'] == 0.125  # what was known stayed
  assert again['corruptions']['contrast'] == cells['contrast']
  assert again['mean'] == found['nets']['edsr']['mean']

  assert '--overwrite' in refused(measure, num_steps=6)
  held['nets']['edsr']['weights']['sha256'] = 'other'
  path.write_text(json.dumps(held))
  assert 'other weights' in refused(measure)
  figure3_drawing.draw(found, tmp_path / 'figure.png')
  assert_is_picture(tmp_path / 'figure.png')
  said = ' '.join(figure3_drawing.about(found))
  weights = found['nets']['edsr']['weights']['sha256'][:12]
  assert all(part in said for part in ('tiny (embedded)', weights, 'n = 11', 'seed 0', 'edsr_4x16_x1'))


def test_nan_is_no_result(tmp_path, one_network, monkeypatch):
  monkeypatch.setitem(AFFINE, 'shift', np.full((1, 1, 1, 3), np.nan, np.float32))
  with pytest.raises(NumericalError, match='brightness'):
    figure3_reconstruction.measure(
      tiny.dataset(), {'edsr': 'edsr_4x16_x1'}, tmp_path / 'f.json', num_images=5, num_steps=1, seed=0, overwrite=False
    )


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--nets=esdr'], "Unknown network in --nets 'esdr'"),
    (['--nets=edsr', '--weights=a,b'], '--weights=a,b'),
    (['--nets=edsr,edsr'], '--nets=edsr,edsr names a network twice'),
    (['--nets=edsr', '--weights=none.safetensors'], 'none.safetensors'),
    (['--nets=edsr', '--num_images=4'], '--num_images=4'),
    (['--nets=edsr', '--num_steps=0'], '--num_steps=0'),
    (['--nets=edsr', f'--seed={2**31}'], '--seed='),
    (['--nets=edsr', '--dataset=cifar11', '--data_dir=none'], 'cifar11'),
  ],
)
def test_figure_3_refuses_in_one_line(flags, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert message in refused(figure3_reconstruction.main, flags)
  assert list(tmp_path.iterdir()) == []
