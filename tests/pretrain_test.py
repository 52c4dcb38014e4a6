"""Tests of the command line that trains a corruption network."""

import json

import numpy as np
import pytest

from adversarial_augment import datasets, pretrain
from adversarial_augment.corruption_nets import weights
from adversarial_augment.errors import UserError
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
  monkeypatch.setattr(pretrain.cli, 'virtual_devices', lambda *_: None)
  monkeypatch.setattr(pretrain.cli, 'compilation_cache', lambda: None)


@pytest.fixture
def untrained(monkeypatch, without_jax_setup) -> None:
  monkeypatch.setattr('adversarial_augment.loop.run', lambda *_: pytest.fail('it trained'))


@pytest.mark.parametrize(
  'flags, said',
  [
    ([SCALE_1, '--config.patch=15'], r'config.patch=15 must be even .* --config.patch=16'),
    (['--config.patch=512'], 'config.patch=512 is too large'),
    (['--config.output={tmp}/folder.safetensors'], 'folder.safetensors is a folder'),
    (['--config.output={tmp}/file/w.safetensors'], "cannot be made in '.*/file', no writable folder"),
    (['--config.output=~nouser/w.safetensors'], 'config.output='),
    (['--config.output=' + 300 * 'a' + '.safetensors'], 'File name too long'),
  ],
)
def test_wrong_flags_are_refused_before_training(tmp_path, untrained, flags, said):
  (tmp_path / 'folder.safetensors').mkdir()
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match=said):
    pretrain.main(
      [SMOKE, '--config.batch_size=8', f'--workdir={tmp_path / "run"}', *(flag.format(tmp=tmp_path) for flag in flags)]
    )
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
def test_data_that_cannot_be_judged_is_refused_before_training(
  tmp_path, untrained, monkeypatch, name, changes, flags, said
):
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
