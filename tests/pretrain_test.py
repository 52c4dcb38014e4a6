"""Tests of the command line that trains a corruption network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from adversarial_augment import corruption_nets, datasets, pretrain
from adversarial_augment.corruption_nets import weights
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.pretraining import objectives, sources
from adversarial_augment.types import Batch, Dataset

SMOKE = '--config=configs/pretrain_edsr.py:smoke'
SCALE_1 = '--config.corruption_net.scale=1'


def _dataset(split: str, num_examples: int = 8, shape: tuple[int, int, int] = (32, 32, 3)) -> Dataset:
  images = np.random.default_rng(0).integers(0, 256, (num_examples, *shape), np.uint8)
  read = lambda index: Batch(images[index], np.zeros(len(index), np.int32))
  provenance = {'origin': 'own', 'archive_sha256': 'a' * 64, 'split': split, 'sha256': 'b' * 64}
  return Dataset('noise', num_examples, 2, shape, read, provenance)


@pytest.fixture
def without_jax_setup(monkeypatch) -> None:
  """Leaves the devices and the cache of this process alone."""
  monkeypatch.setattr(pretrain.devices, 'virtual_devices', lambda *_: None)
  monkeypatch.setattr(pretrain.devices, 'compilation_cache', lambda: None)


@pytest.fixture
def untrained(monkeypatch, without_jax_setup) -> None:
  monkeypatch.setattr('adversarial_augment.run.loop.run', lambda *_: pytest.fail('it trained'))


@pytest.mark.parametrize(
  'name, flags, said',
  [
    ('edsr', [SCALE_1, '--config.patch=15'], r'config.patch=15 must be even .* config.patch=16'),
    ('edsr', ['--config.patch=512'], 'config.patch=512 is too large'),
    ('edsr', ['--config.output={tmp}/folder.safetensors'], 'folder.safetensors is a folder'),
    ('edsr', ['--config.output={tmp}/file/w.safetensors'], "/file' is a file; name a folder"),
    ('edsr', ['--config.output=~nouser/w.safetensors'], 'config.output='),
    ('edsr', ['--config.output=' + 300 * 'a' + '.safetensors'], 'File name too long'),
    ('edsr', ['--config.output=/proc/q.safetensors'], 'Cannot write config.output=/proc/q.safetensors: '),
    ('cae', ['--config.patch=18'], 'config.patch=18 must be a multiple of 4 of at least 12, .* config.patch=20'),
    ('unet', ['--config.patch=8'], 'try config.patch=12'),
    ('vqvae', ['--config.corruption_net.scale=2'], 'config.corruption_net.scale=2: .*vqvae has no such field'),
  ],
)
def test_wrong_flags_are_refused_before_training(tmp_path, untrained, name, flags, said):
  (tmp_path / 'folder.safetensors').mkdir()
  (tmp_path / 'file').touch()
  command = [f'--config=configs/pretrain_{name}.py:smoke', '--config.batch_size=8', f'--workdir={tmp_path / "run"}']
  with pytest.raises(StorageError if '/proc' in flags[0] else UserError, match=said):
    pretrain.main([*command, *(flag.format(tmp=tmp_path) for flag in flags)])
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'name, changes, flags, said',
  [
    ('noise', {'shape': (28, 32, 3)}, [], '28x32.* must be square'),
    ('noise', {'shape': (30, 30, 3)}, ['--config.corruption_net.scale=4'], 'a multiple of 4'),
    ('noise', {'shape': (33, 33, 3)}, [SCALE_1], 'a multiple of 2'),
    ('noise', {'shape': (8, 8, 3)}, [], 'at least 11 pixels'),
    ('noise', {'num_examples': 7}, [], 'has 7 test images, but at least 8'),
    ('photographs+noise', {'shape': (64, 64, 3)}, [], 'several sizes .photographs 32x32, noise 64x64.'),
  ],
)
def test_data_that_cannot_be_judged_is_refused(tmp_path, untrained, monkeypatch, name, changes, flags, said):
  monkeypatch.setattr(datasets, 'load', lambda name, split, data_dir: _dataset(split, **changes))
  with pytest.raises(UserError, match=said):
    pretrain.main([SMOKE, f'--config.dataset={name}', f'--workdir={tmp_path / "run"}', *flags])
  assert not (tmp_path / 'run').exists()


def test_a_run_that_failed_the_gate_goes_on_as_its_message_says(tmp_path, without_jax_setup, monkeypatch):
  monkeypatch.setattr(datasets, 'load', lambda name, split, data_dir: _dataset(split))
  workdir, output = tmp_path / 'run', tmp_path / 'new' / 'w.safetensors'
  command = [
    SMOKE, SCALE_1, '--config.batch_size=8', '--config.dataset=photographs+noise', '--config.learning_rate=0',
    f'--workdir={workdir}',
  ]  # fmt: skip
  with pytest.raises(UserError, match=r'below config.accept_ssim=1.0; .* or run the same command with a lower'):
    pretrain.main([*command, '--config.accept_ssim=1'])
  with pytest.raises(UserError, match='holds a run with another config .patch'):
    pretrain.main([*command, '--config.patch=20'])
  pretrain.main([*command, f'--config.output={output}'])
  assert [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()] == [1, 2]

  header, result = weights.load(output)[1], json.loads((workdir / 'results' / 'pretrain.json').read_text())
  assert (header['steps'], header['data']) == (2, 'photographs+noise')
  assert result['step'] == 2
  for data in (header['data_provenance'], result['data']):
    assert data['noise']['train']['origin'] == 'own'
    assert data['noise']['test']['archive_sha256'] == 'a' * 64
    assert data['photographs']['train']['sha256'] != data['photographs']['test']['sha256']
  pretrain.main(command)  # a finished run writes to another place
  assert weights.load(workdir / 'weights.safetensors')[1]['steps'] == 2


def test_other_data_is_refused_on_a_resume(tmp_path, without_jax_setup, monkeypatch):
  command = [SMOKE, SCALE_1, '--config.batch_size=8', '--config.dataset=noise', f'--workdir={tmp_path / "run"}']
  monkeypatch.setattr(datasets, 'load', lambda name, split, data_dir: _dataset(split))
  pretrain.main(command)

  def changed(name, split, data_dir):
    dataset = _dataset(split)
    return dataset._replace(provenance=dataset.provenance | {'sha256': 'c' * 64})

  monkeypatch.setattr(datasets, 'load', changed)
  with pytest.raises(UserError, match='holds a run on other data'):
    pretrain.main(command)


@pytest.mark.parametrize('name', ['cae', 'unet', 'vqvae'])
def test_other_networks_are_trained_judged_and_written(tmp_path, without_jax_setup, name):
  workdir = tmp_path / 'run'
  command = [f'--config=configs/pretrain_{name}.py:smoke', '--config.batch_size=8', f'--workdir={workdir}']
  with pytest.raises(UserError, match='mean PSNR .* dB is below config.accept_psnr=99.0;'):
    pretrain.main([*command, '--config.accept_psnr=99'])
  pretrain.main(command)
  params, header = weights.load(workdir / 'weights.safetensors')
  sizes = {'features': 4} | ({'codes': 512} if name == 'vqvae' else {})
  assert header['network'] == {'name': name, **sizes}
  weights.check(params, corruption_nets.shapes(name, sizes), 'w')
  assert {'ssim_mean', 'psnr_mean', 'ssim_min', 'num_images'} <= header['on_unseen_images'].keys()
  assert ('psnr_filled_mean' in header['on_unseen_images']) == (name == 'unet')


def test_holes_are_boxes_of_zeros_of_bounded_size():
  images = np.full((200, 32, 24, 1), 0.5, np.float32)
  holes = np.asarray(jax.jit(objectives.with_holes)(jax.random.key(0), images))[..., 0]
  assert set(np.unique(holes)) == {0, np.float32(0.5)}
  missing = (holes == 0).sum((1, 2))
  assert missing.min() >= 1
  assert missing.max() <= 4 * 12 * 12
  assert (holes == 0).any(0).mean() > 0.99  # everywhere
  boxes = [ndimage.label(one == 0)[1] for one in holes]
  assert set(boxes) >= {1, 2, 3, 4}
  assert max(boxes) <= 4
  alone = [ndimage.find_objects(np.int32(one == 0))[0] for one, count in zip(holes, boxes, strict=True) if count == 1]
  assert max(part.stop - part.start for box in alone for part in box) <= 24  # two that touch


def test_codes_follow_their_latents_and_rare_ones_move_to_a_latent():
  rest = {'count': jnp.array([4.0, 0.4, 2.0]), 'sum': jnp.array([[4.0, 8.0], [9.0, 9.0], [0.0, 2.0]])}
  latents = jnp.array([[1.0, 1.0], [3.0, 5.0], [7.0, 7.0]])
  moved = objectives.move_codes(rest, jax.random.key(0), latents, jnp.array([0, 0, 2]))
  np.testing.assert_allclose(moved['count'], [0.99 * 4 + 0.01 * 2, 1.0, 0.99 * 2 + 0.01], rtol=1e-6)
  np.testing.assert_allclose(moved['sum'][0], [0.99 * 4 + 0.01 * 4, 0.99 * 8 + 0.01 * 6], rtol=1e-6)
  np.testing.assert_allclose(moved['sum'][2], [0.07, 0.99 * 2 + 0.07], rtol=1e-6)
  assert moved['sum'][1].tolist() in latents.tolist()


def test_photographs_of_other_networks_are_made_smaller_for_two_thirds_of_a_batch():
  wanted = sources.Wanted(batch_size=6, seed=0, patch=32, scale=None, data_dir='')
  (source,) = sources.open_all('photographs', wanted)
  crops, is_native = source.read(5)
  assert crops.shape == (6, 32, 32, 3)
  assert not is_native.any()
  np.testing.assert_array_equal(source.read(5)[0], crops)
  assert (source.read(6)[0] != crops).any()
  many = sources.open_all('photographs', wanted._replace(batch_size=300))[0].read(0)[0].astype(float)
  rough = lambda images: np.abs(np.diff(images, axis=2)).mean()
  assert rough(many[:100]) < rough(many[200:])  # a smaller picture has more edges a pixel
