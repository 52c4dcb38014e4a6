"""Files of an older version are read, resumed and reported; tests/older_files/README.md says how they were made.

What was measured depends on the processor, so that steps, counts, times of files and hashes are compared. Versions of
packages are part of what decides results and sets: here they are those of then.
"""

from collections.abc import Iterator
import hashlib
import importlib.metadata
import json
from pathlib import Path
import re
import shutil
import sys

import jax
import numpy as np
import pytest

from adversarial_augment import (
  corruption_nets,
  deepaugment,
  evaluate,
  inference,
  prepare,
  pretrain,
  report,
  train,
)
from adversarial_augment.datasets import load, mixture
from adversarial_augment.evaluation import robustness

OLDER = Path(__file__).parent / 'older_files'
SMALL_EDSR = ('--dataset=tiny', '--net=edsr', '--weights=pretrained/weights.safetensors', '--data_dir=data')
TRAIN = (
  '--config=configs/ada_edsr.py:smoke',
  '--config.dataset=tiny',
  '--config.data_dir=data',
  '--config.classifier.width=1',
  '--config.attack.name=none',
  '--config.deepaugment.sets=edsr',
  '--config.num_steps=6',
  '--config.checkpoint_every=2',
  '--config.evals=clean,cifar10_c',
  '--workdir=stopped',
)
PRETRAIN = (
  '--config=configs/pretrain_edsr.py:smoke',
  '--config.data_dir=data',
  '--config.batch_size=8',
  '--config.corruption_net.features=2',
  '--config.corruption_net.scale=1',
  '--config.num_steps=4',
  '--config.checkpoint_every=2',
  '--workdir=pretraining',
)
IN_MEMORY = ('--workdir=finished', '--evals=cifar10_c_extra', '--config.data_dir=alone')


@pytest.fixture
def older(tmp_path, monkeypatch) -> Iterator[Path]:
  """A copy of the files, in the current folder, under the versions of then."""
  shutil.copytree(OLDER, tmp_path, dirs_exist_ok=True)
  for data_dir in ('begun', 'alone'):  # prepared data beside which a set is unfinished, or missing
    shutil.copytree(OLDER / 'data' / 'tiny', tmp_path / data_dir / 'tiny')
  monkeypatch.chdir(tmp_path)
  then = read('data/tiny_c/MANIFEST.json')['made_with'] | read('finished/results/clean.json')['provenance']['versions']
  version = importlib.metadata.version
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: then.get(name) or version(name))
  for name, module in list(sys.modules.items()):
    if name.partition('.')[0] == 'adversarial_augment' and hasattr(module, '__version__'):
      monkeypatch.setattr(module, '__version__', then['adversarial_augment'])
  deepaugment.made_with.cache_clear()  # the versions of now may be known
  switched_on = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)  # commands would put one into the user's folder
  yield tmp_path
  deepaugment.made_with.cache_clear()
  jax.config.update('jax_enable_compilation_cache', switched_on)


def read(path: str | Path) -> dict:
  return json.loads(Path(path).read_text())


def log(workdir: str) -> list[str]:
  return Path(workdir, 'metrics.jsonl').read_text().splitlines()


def steps(lines: list[str]) -> list[int]:
  return [json.loads(line)['step'] for line in lines]


def hashes(folder: str) -> dict[str, str]:
  """The SHA-256 of each file below a folder, but of the locks."""
  paths = [path for path in Path(folder).rglob('*') if path.is_file() and not path.name.endswith('.lock')]
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def times(folder: str) -> dict[str, int]:
  """When each array below a folder was written."""
  return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in Path(folder).rglob('*.npy')}


def test_no_file_names_the_machine_that_made_it():
  texts = [path for path in OLDER.rglob('*') if path.suffix in ('.json', '.jsonl', '.csv', '.partial')]
  assert len(texts) > 20
  for path in texts:
    assert not re.search('["= ]/', path.read_text()), path


def test_a_training_on_both_sets_goes_on(older):
  before, data = log('stopped'), read('stopped/data.json')
  train.main([*TRAIN])
  assert log('stopped')[:4] == before[:4]
  assert steps(log('stopped')) == [1, 2, 3, 4, 5, 6]
  assert read('stopped/data.json') == data
  found = read('stopped/results/train.json')
  assert found['step'] == 6
  assert found['data']['train']['deepaugment']['copies'] == {'edsr': 1}
  corrupted = read('stopped/results/cifar10_c.json')
  assert corrupted['num_images'] == 1
  assert corrupted['provenance']['corruptions']['origin'] == 'generated'  # not in memory
  assert (older / 'stopped' / 'report.html').exists()


def test_a_pretraining_goes_on(older):
  before = log('pretraining')
  pretrain.main([*PRETRAIN])
  assert log('pretraining')[:2] == before
  assert steps(log('pretraining')) == [1, 2, 3, 4]
  assert (older / 'pretraining' / 'weights.safetensors').exists()


def test_results_are_shown_again_and_not_measured(older, capsys):
  before = hashes('finished')
  evaluate.main(['--workdir=finished', '--evals=clean,ada,cifar10_c'])
  assert evaluate.main(['--workdir=finished', '--attack=pgd', '--norm=linf', '--epsilon=8/255']) == 3  # suspect
  assert hashes('finished') == before
  said = capsys.readouterr().out
  assert 'mCE 0.00 %, 95 % interval 0.00 to 79.35' in said
  assert 'zero_gradients' in said


def test_a_run_is_reported(older):
  page = report.report(['finished']).read_text()
  for text in ('79.35', 'Glass', 'Speckle noise', 'zero_gradients', '8/255', 'data:image/png'):
    assert text in page


def test_a_classifier_and_weights_are_loaded(older):
  images = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
  logits = inference.load_classifier('finished')(images)
  assert logits.shape == (1, 2)
  assert np.isfinite(logits).all()
  network, phi = corruption_nets.load('edsr', 'pretrained/weights.safetensors')
  corrupted = network.apply(phi, images, jax.random.key(0))
  assert corrupted.shape == images.shape
  assert ((corrupted >= 0) & (corrupted <= 1)).all()


def test_results_on_images_made_in_memory_are_shown_again(older):
  before = hashes('finished')
  evaluate.main(IN_MEMORY)
  assert hashes('finished') == before


def test_sets_are_not_made_again_and_their_results_stay(older):
  sets, results = times('data'), hashes('finished')
  names = sorted(Path(name).stem for name in times('data/tiny_c'))
  chosen = [name for name in names if name not in ('frost', 'labels')]  # not every machine has photographs of frost
  prepare.main(['cifar10_c', '--dataset=tiny', '--data_dir=data', f'--names={",".join(chosen)}'])
  prepare.main(['deepaugment', *SMALL_EDSR])
  assert times('data') == sets
  evaluate.main(['--workdir=finished', '--evals=cifar10_c'])
  assert hashes('finished') == results


def test_a_set_made_again_is_that_of_the_training(older):
  path = older / 'data' / 'tiny_deepaugment' / 'edsr' / 'MANIFEST.json'
  made_with = deepaugment.made_with()
  path.write_text(json.dumps(read(path) | {'made_with': made_with}))  # where its files have the same bytes
  images = load('tiny', 'train', 'data')
  mixed = mixture.mix(images, mixture.load(images, 'data', ['edsr']), 'concat')
  assert 'code_sha256' not in made_with
  assert mixed.provenance['sha256'] == read('stopped/data.json')['train']


def test_an_unfinished_deepaugment_set_goes_on(older):
  first = np.load(older / 'data' / 'tiny_deepaugment' / 'two' / 'images.npy')[:8]
  prepare.main(['deepaugment', *SMALL_EDSR, '--name=two', '--copies=2'])
  copies = mixture.load(load('tiny', 'train', 'data'), 'data', ['two'])
  assert len(copies) == 2
  np.testing.assert_array_equal(copies[0].read(np.arange(8)).images, first)
  assert copies[1].read(np.arange(8)).images.any()


def test_an_unfinished_corrupted_set_goes_on(older):
  before = times('begun')
  prepare.main(['cifar10_c', '--dataset=tiny', '--data_dir=begun', '--names=brightness,contrast,fog'])
  made = {name for name, time in times('begun').items() if before.get(name) != time}
  assert made == {'tiny_c/contrast.npy', 'tiny_c/fog.npy'}  # contrast was there, and not listed yet
  listed = {name: entry['sha256'] for name, entry in read('begun/tiny_c/MANIFEST.json')['files'].items()}
  assert {'MANIFEST.json', *listed} == hashes('begun/tiny_c').keys()
  assert listed.items() < hashes('begun/tiny_c').items()


def test_an_unfinished_evaluation_goes_on(older):
  path = older / 'finished' / 'results' / 'cifar10_c_extra.partial'
  known = read(path)
  known['correct']['speckle_noise'] = ['AA=='] * 5  # the image is wrong now, so that measuring it again would show
  path.write_text(json.dumps(known))
  evaluate.main([*IN_MEMORY, '--overwrite'])
  found = read('finished/results/cifar10_c_extra.json')
  assert found['error']['speckle_noise'] == [1] * 5
  assert found['error'].keys() == known['correct'].keys()
  assert not path.exists()


def test_an_unfinished_attack_goes_on(older, monkeypatch):
  for number in ('_LONGER', '_FAR'):  # of images that its checks attack further, which takes long to compile
    monkeypatch.setattr(robustness, number, 0)
  name = 'robustness_pgd_l2_0.5'
  path = older / 'finished' / 'results' / f'{name}.sweep'
  with np.load(path) as sweep:
    compiling = float(sweep['compile_seconds'][0])
  evaluate.main(['--workdir=finished', '--attack=pgd', '--norm=l2', '--epsilon=0.5', '--allow_suspect'])
  found = read(f'finished/results/{name}.json')
  assert found['num_images'] == 1
  assert found['compile_seconds']['pgd'] > compiling  # of both starts
  assert not path.exists()
