"""`audit` of one classifier in PyTorch, Flax, Haiku and ONNX: equal results, one report, and kills in between."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import adversarial_augment
from adversarial_augment import audit, datasets, report, results
from adversarial_augment.errors import UserError
from tests.audit_test import write_weights

torch = pytest.importorskip('torch')

MODELS = '''
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

W = np.load(__file__.replace('models.py', 'weights.npy'))  # [3072, 10], of images [h, w, c] - 0.5
CHW = np.ascontiguousarray(W.reshape(32, 32, 3, 10).transpose(3, 2, 0, 1).reshape(10, -1))


class Net(nn.Module):
  mean, std = (0.5,), (1.0,)

  def __init__(self):
    super().__init__()
    self.head = nn.Linear(3072, 10, bias=False)
    self.head.weight.data = torch.tensor(CHW)
    self.dropout = nn.Dropout()

  def forward(self, x):
    return self.dropout(self.head(x.flatten(1)))


class Branches(Net):  # which cannot be traced

  def forward(self, x):
    return super().forward(x if float(x.detach().sum()) < 1e9 else 2 * x)


class Own(Net):  # it normalises by itself; its tensors are no wish
  def __init__(self):
    super().__init__()
    self.register_buffer('shift', torch.tensor(0.5))

  def forward(self, x):
    return super().forward(x - self.shift)


Own.mean = None


def flax():
  import flax.linen

  model = flax.linen.Dense(10, use_bias=False)
  return lambda images: model.apply({'params': {'kernel': jnp.asarray(W)}}, images.reshape(len(images), -1) - 0.5)


def haiku():
  import haiku as hk

  model = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(10, with_bias=False)(hk.Flatten()(x - 0.5))))
  return lambda images: model.apply({'linear': {'w': jnp.asarray(W)}}, images)


class Onnx(nn.Module):
  """Runs the nodes of an ONNX graph in PyTorch."""

  def __init__(self):
    super().__init__()
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(__file__.replace('models.py', 'net.onnx')).graph
    self.nodes = [(node.op_type, list(node.input), node.output[0]) for node in graph.node]
    for one in graph.initializer:
      self.register_buffer(one.name, torch.tensor(numpy_helper.to_array(one)))

  def forward(self, x):
    run = {'Sub': torch.sub, 'Flatten': lambda x: x.flatten(1), 'MatMul': torch.matmul}
    values = {'images': x, **dict(self.named_buffers())}
    for kind, inputs, output in self.nodes:
      values[output] = run[kind](*(values[name] for name in inputs))
    return values['logits']
'''
SMALL = (
  '--dataset=embedded', '--config.eval_images=16', '--batch_size=8', '--config.corrupted_images=2',
  '--config.attack.num_steps=1', '--config.corruption_net.blocks=4', '--config.corruption_net.features=16',
  '--config.corruption_net.scale=1',
)  # fmt: skip
ATTACK = ('--attack=pgd', '--norm=linf', '--epsilon=1/255', '--num_examples=16', '--allow_suspect')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
  path = tmp_path_factory.mktemp('models')
  write_weights(path)
  (path / 'models.py').write_text(MODELS)
  return path


def write_onnx(folder: Path) -> None:
  onnx = pytest.importorskip('onnx')
  weights = np.load(folder / 'weights.npy').reshape(32, 32, 3, 10).transpose(2, 0, 1, 3).reshape(3072, 10)
  node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
  nodes = [
    node('Sub', ['images', 'offset'], ['shifted']),
    node('Flatten', ['shifted'], ['flat']),
    node('MatMul', ['flat', 'weights'], ['logits']),
  ]
  arrays = {'offset': np.float32(0.5), 'weights': np.ascontiguousarray(weights)}
  initial = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
  inputs = [info('images', onnx.TensorProto.FLOAT, ['n', 3, 32, 32])]
  graph = onnx.helper.make_graph(nodes, 'net', inputs, [info('logits', onnx.TensorProto.FLOAT, ['n', 10])], initial)
  onnx.save(onnx.helper.make_model(graph), folder / 'net.onnx')


def command(folder: Path, model: str, workdir: Path, *flags: str) -> int:
  return audit.main([f'--model={folder / "models.py"}:{model}', f'--workdir={workdir}', *SMALL, *flags])


@pytest.mark.slow
def test_one_classifier_in_four_frameworks_has_one_result_and_one_report(folder, tmp_path):
  pytest.importorskip('flax')
  write_onnx(folder)
  names = ('Net', 'flax', 'haiku', 'Onnx')
  for name in names:
    assert command(folder, name, tmp_path / name, '--evals=clean,cifar10_c,cifar10_c_extra,ada', *ATTACK) == 0
  for result in ('clean', 'cifar10_c', 'cifar10_c_extra', 'ada', 'robustness_pgd_linf_1-255'):
    found = [results.load(tmp_path / name, result) for name in names]
    assert found[0]['provenance']['model']['kind'].startswith('PyTorch')
    for other in found[1:]:
      if result in ('clean', 'cifar10_c', 'cifar10_c_extra'):
        assert other['correct'] == found[0]['correct']
      else:  # an ascent may round its way to another side
        assert abs(other['num_correct'] - found[0]['num_correct']) <= 1
  page = report.report([tmp_path / name for name in names], tmp_path / 'page.html').read_text()
  assert all(f'models.py:{name} (' in page for name in names)


@pytest.mark.slow
def test_a_module_that_only_torch_can_run_is_attacked_too(folder, tmp_path):
  flags = ('--evals=clean,ada', *ATTACK)
  for name in ('Net', 'Branches'):
    assert command(folder, name, tmp_path / name, *flags) == 0
  for result in ('clean', 'ada', 'robustness_pgd_linf_1-255'):
    assert results.load(tmp_path / 'Net', result)['correct'] == results.load(tmp_path / 'Branches', result)['correct']


def test_attributes_of_a_module_and_its_own_tensors(folder):
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(200))
  namespace = {'__file__': str(folder / 'models.py')}
  exec(MODELS, namespace)
  net, own = namespace['Net']().train(), namespace['Own']()
  found = [adversarial_augment.audit(module, images, labels)['clean'].num_correct for module in (net, own)]
  logits = (images.reshape(200, -1) / 255 - 0.5) @ np.load(folder / 'weights.npy')
  assert found == [int((logits.argmax(-1) == labels).sum())] * 2
  with pytest.raises(UserError, match='it runs with --size=32'):
    adversarial_augment.audit(net, images[:, :24, :24], labels)
  assert not any(parameter.grad is not None for parameter in net.parameters())


def start(folder: Path, workdir: Path, cache: Path) -> subprocess.Popen:
  words = [f'--model={folder / "models.py"}:Net', f'--workdir={workdir}', '--dataset=embedded', '--evals=cifar10_c']
  flags = ['--batch_size=8', '--config.eval_images=64']
  environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)}
  return subprocess.Popen(
    [sys.executable, '-m', 'adversarial_augment.audit', *words, *flags],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_kills_change_nothing(folder, tmp_path):
  """SIGKILL and SIGTERM once some cells are known; the same command goes on."""
  workdir, partial = tmp_path / 'w', tmp_path / 'w' / 'results' / 'cifar10_c.partial'
  cells = lambda: sum(map(len, json.loads(partial.read_text())['correct'].values())) if partial.exists() else 0
  for number in (signal.SIGKILL, signal.SIGTERM):
    before, process = cells(), start(folder, workdir, tmp_path / 'xla')
    while cells() <= before:
      assert process.poll() is None, process.stderr.read()
      time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate()
    if number == signal.SIGTERM:
      assert process.returncode == 75
      assert 'run the same command again to resume' in said
    assert 0 < cells() < 75
  known = cells()
  done = start(folder, workdir, tmp_path / 'xla')
  done.communicate()
  assert done.returncode == 0
  assert known > 0
  assert not partial.exists()
  whole = start(folder, tmp_path / 'whole', tmp_path / 'xla')
  whole.communicate()
  assert results.load(workdir, 'cifar10_c')['correct'] == results.load(tmp_path / 'whole', 'cifar10_c')['correct']
