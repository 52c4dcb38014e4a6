"""Every block of commands in README and the guides runs as it stands, in its smoke form: two steps, a few images."""

import importlib.util
import io
import os
from pathlib import Path
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile

import jax
import numpy as np
from PIL import Image
import pytest

from adversarial_augment import datasets, metrics
from adversarial_augment.classifiers import torch_layouts
from tests import classifier_cases, corrupted_pets, datasets_cifar10_1_test, torch_state
from tests.readme_test import ROOT, blocks, example

GUIDES = [ROOT / 'README.md', *(ROOT / 'docs' / 'guides' / f'{name}.md' for name in ('reproduce', 'harden', 'audit'))]
GUIDES += [ROOT / 'docs' / 'guides' / f'{name}.md' for name in ('pods', 'more')]
HAS_GPU_COMPILER = importlib.util.find_spec('jax_cuda13_plugin') is not None

# What differs in the smoke form of a block: pattern -> replacement, one after the other.
SMOKE = {
  r'python3 -m venv .* && (python -m adversarial_augment)': r'\1',  # the installation, see .ci/run
  r'python3 -m venv .* && python -m pytest.*': 'true',
  r'(--config=configs/\w+\.py)(:\w+)?': r'\1:smoke',
  r'(train --config=\S+ --workdir=runs/(ada|nominal))\b': r'\1 --config.dataset=cifar10',
  r'(--evals=\S+)': r'\1 --config.corrupted_images=20',
  r'(audit --model=\S+)': r'\1 --allow_suspect --config.eval_images=8 --config.attack.num_steps=1',
  r'--num_examples=\d+': '',
  r'(--attack=\w+)': r'\1 --num_examples=2 --allow_suspect',
  r'prepare cifar10 *(#|$)': r'prepare cifar10 --from=cifar-10-python.tar.gz \1',
  r'prepare cifar100 *(#|$)': r'prepare cifar100 --from=cifar-100-python.tar.gz \1',
  r'prepare cifar10_c --from': 'prepare cifar10_c --dataset=cats --from',
  r'prepare cifar10_c +#': 'prepare cifar10_c --dataset=cats --overwrite --names=fog #',
  r'prepare cifar10_1 --from=FOLDER': 'prepare cifar10_1 --from=v4_and_v6',
  r'prepare deepaugment --net=edsr': r'\g<0> --weights=edsr_4x16_x1 --dataset=pets',
  r'prepare deepaugment --net=cae': r'\g<0> --dataset=pets',
  r'(table1_corruptions|table3_perceptual) --scale=\w+ --rows=\S+': r'\1 --scale=smoke --rows=nominal,augmix --output=.'
  ' --config.corrupted_images=20',
  r'unseen_attacks --scale=\w+ --rows=\S+': 'unseen_attacks --scale=smoke --rows=nominal --num_examples=4 --output=.',
  r'--seeds=0,1,2': '--seeds=0,1',
  r'table2_robustness ': r'\g<0>--num_examples=2 --output=. ',
  **({} if HAS_GPU_COMPILER else {r'python -m adversarial_augment\.plan .*': 'true'}),
}


def smoke(block: str) -> str:
  for pattern, replacement in SMOKE.items():
    block = re.sub(pattern, replacement, block, flags=re.MULTILINE)
  return block


def all_blocks() -> list[str]:
  return [block for page in GUIDES for block in blocks('(?:ba)?sh', page.read_text())]


def test_every_guide_is_run_and_every_substitution_is_needed():
  assert {*GUIDES[1:]} == {*(ROOT / 'docs' / 'guides').glob('*.md')}
  text = '\n'.join(all_blocks())
  for pattern, replacement in SMOKE.items():
    assert re.search(pattern, text, re.MULTILINE), pattern
    text = re.sub(pattern, replacement, text, flags=re.MULTILINE)


def write_tiny_imagenet(path: Path) -> None:
  """Writes 110,000 black images in the published layout."""
  file = io.BytesIO()
  Image.new('RGB', (64, 64)).save(file, 'JPEG')
  classes = [f'n{number:08d}' for number in range(200)]
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('tiny-imagenet-200/wnids.txt', '\n'.join(classes))
    rows = [f'val_{number}.JPEG\t{classes[number % 200]}\t0\t0\t62\t62\n' for number in range(10_000)]
    archive.writestr('tiny-imagenet-200/val/val_annotations.txt', ''.join(rows))
    for number in range(10_000):
      archive.writestr(f'tiny-imagenet-200/val/images/val_{number}.JPEG', file.getvalue())
    for name in classes:
      for number in range(500):
        archive.writestr(f'tiny-imagenet-200/train/{name}/images/{name}_{number}.JPEG', file.getvalue())


@pytest.fixture(scope='module')
def workspace(tmp_path_factory) -> Path:
  """A folder with the files that the guides name, of the published layouts and mostly empty, and a home folder."""
  root = tmp_path_factory.mktemp('work space')
  rng = np.random.default_rng(0)
  # 60,000 black images with a line of noise.
  with tarfile.open(root / 'cifar-10-python.tar.gz', 'w:gz', compresslevel=1) as archive:
    for name in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']:
      images = np.zeros((10_000, 3072), np.uint8)
      images[:, :32] = rng.integers(0, 256, (10_000, 32), np.uint8)
      path = root / name
      path.write_bytes(pickle.dumps({b'data': images, b'labels': (np.arange(10_000) % 10).tolist()}, protocol=2))
      archive.add(path, f'cifar-10-batches-py/{name}')
      path.unlink()
  with tarfile.open(root / 'cifar-100-python.tar.gz', 'w:gz', compresslevel=1) as archive:
    for name, number in (('train', 50_000), ('test', 10_000)):
      content = {b'data': np.zeros((number, 3072), np.uint8), b'fine_labels': (np.arange(number) % 100).tolist()}
      (root / name).write_bytes(pickle.dumps(content, protocol=2))
      archive.add(root / name, f'cifar-100-python/{name}')
      (root / name).unlink()
  write_tiny_imagenet(root / 'tiny-imagenet-200.zip')
  for index in range(40):
    path = root / 'FOLDER' / ('cat', 'dog')[index % 2] / f'{index}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(path)
  (root / 'v4_and_v6').mkdir()
  for version in datasets_cifar10_1_test.COUNTS:
    for part, array in zip(('data', 'labels'), datasets_cifar10_1_test.arrays(version), strict=True):
      np.save(root / 'v4_and_v6' / f'cifar10.1_{version}_{part}.npy', array)
  data_dir = corrupted_pets.write_pets(root / 'home' / 'tensorflow_datasets', 'cats')
  labels = datasets.load('cats', 'test', str(data_dir)).read(np.arange(corrupted_pets.N)).labels
  corrupted = {name: np.zeros((5 * corrupted_pets.N, 32, 32, 3), np.uint8) for name in metrics.ALL_NAMES}
  with tarfile.open(root / 'CIFAR-10-C.tar', 'w') as archive:
    for name, array in {**corrupted, 'labels': np.tile(labels, 5)}.items():
      np.save(root / 'array.npy', array)
      archive.add(root / 'array.npy', f'CIFAR-10-C/{name}.npy')
  torch_state.write_state(root / 'edsr_baseline_x4.pt', torch_state.edsr_state())
  torch_state.write_state(root / 'CAE.pt', torch_state.cae_state())
  classifier = classifier_cases.random_classifier(10, num_classes=3, width=4, shortcut='input')
  torch_state.write_state(
    root / 'model_best.pth.tar', torch_layouts.to_torch(*jax.device_get((classifier.params, classifier.model_state)))
  )
  (root / 'net.py').write_text(
    'import jax\nweights = jax.random.normal(jax.random.key(0), (3072, 10))\n'
    'def net(images):\n  return images.reshape(len(images), -1) @ weights\n'
  )
  python = root / 'bin' / 'python'
  python.parent.mkdir()
  python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  return root


@pytest.mark.slow
def test_every_block_of_commands_runs(workspace):
  """In one folder and in the order of the pages, because later commands use what earlier ones have made."""
  environment = os.environ | {
    'HOME': str(workspace / 'home'),
    'PATH': f'{workspace / "bin"}{os.pathsep}{os.environ["PATH"]}',
    'PYTHONPATH': str(ROOT),
    'XDG_CACHE_HOME': str(workspace / 'cache'),
  }
  done_before: set[str] = set()
  for block in all_blocks():
    lines = [re.sub(' +#.*| +$', '', line) for line in smoke(block).splitlines()]
    text = '\n'.join(line for line in lines if line not in done_before)
    done_before |= set(lines)
    command = ['bash', '-euo', 'pipefail', '-c', text]
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f'{text}\n{done.stdout}\n{done.stderr}'
  made = ('results/ada.json', 'results/cifar10_1.json', 'report.html', 'results/train.json')
  folders = ('audits/mine', 'runs/ada', 'runs/quickstart', 'runs/two')
  for path in (*map('/'.join, zip(folders, made, strict=True)), 'table2.md', 'cae.safetensors'):
    assert (workspace / path).exists(), path


@pytest.mark.slow
def test_the_pytorch_example_trains():
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(10))
  images, labels = torch.rand(2, 4, 3, 32, 32), torch.arange(8).reshape(2, 4)
  model(images[0])
  names = {'torch': torch, 'model': model, 'loader': list(zip(images, labels, strict=True))}
  exec(compile(example('TorchAdA'), 'README.md', 'exec'), names)
  assert names['loss'] > torch.nn.functional.cross_entropy(model(images[1]), labels[1])
  names['loss'].backward()
  assert bool((model[0].weight.grad != 0).any())


@pytest.mark.slow
def test_the_audit_example_measures():
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(40))
  fitted = np.float32(np.linalg.pinv(images.reshape(40, -1) / 255) @ np.eye(10)[labels])
  logits_fn = lambda images: images.reshape(len(images), -1) @ fitted
  names = {'logits_fn': logits_fn, 'images': images, 'labels': labels}
  exec(compile(example('adversarial_augment.audit'), 'docs/guides/audit.md', 'exec'), names)
  assert names['records']['clean'].accuracy == 1
  assert 0 < names['records']['cifar10_c'].mce < 1
