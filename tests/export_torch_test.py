"""The PyTorch module, ONNX model and JAX program of an export: they need nothing else, and are the same function."""

import ast
import json
import subprocess
import sys
import types

import jax
import jax.export
import numpy as np
import pytest
from safetensors.numpy import load_file

from adversarial_augment import export
from adversarial_augment.classifiers.preact_resnet import DEPTHS
from adversarial_augment.exporting import torch_layout
from tests.classifier_cases import card_of, images, random_classifier


@pytest.mark.parametrize('depth, count', [(18, 11_172_170), (50, 23_513_162)])
def test_torch_layout_has_the_published_number_of_parameters(depth, count):
  classifier = random_classifier(depth)
  tensors = torch_layout.state_dict(classifier.params, classifier.model_state)
  assert sum(value.size for name, value in tensors.items() if name.endswith(('.weight', '.bias'))) == count


def test_torch_layout_has_the_names_and_shapes_of_the_class():
  classifier = random_classifier(10, num_classes=7)
  tensors = torch_layout.state_dict(classifier.params, classifier.model_state)
  norm = {'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'}
  names = {'mu', 'sigma', 'conv1.weight', 'linear.weight', 'linear.bias'} | {f'bn.{leaf}' for leaf in norm}
  for layer in ('layer1', 'layer2', 'layer3', 'layer4'):
    names |= {f'{layer}.0.{conv}.weight' for conv in ('conv1', 'conv2')}
    names |= {f'{layer}.0.{bn}.{leaf}' for bn in ('bn1', 'bn2') for leaf in norm}
    names |= {f'{layer}.0.shortcut.0.weight'} if layer != 'layer1' else set()
  assert tensors.keys() == names
  shapes = {
    'mu': (1, 3, 1, 1),
    'conv1.weight': (64, 3, 3, 3),
    'layer2.0.conv1.weight': (128, 64, 3, 3),
    'layer2.0.shortcut.0.weight': (128, 64, 1, 1),
    'layer2.0.bn1.running_var': (64,),
    'bn.num_batches_tracked': (),
    'linear.weight': (7, 512),
  }
  assert {name: tensors[name].shape for name in shapes} == shapes
  kinds = {name: value.dtype for name, value in tensors.items()}
  assert {kinds.pop(name) for name in list(kinds) if name.endswith('num_batches_tracked')} == {np.dtype(np.int64)}
  assert set(kinds.values()) == {np.dtype(np.float32)}
  assert all(value.flags.c_contiguous for value in tensors.values())
  kernel = classifier.params['preact_resnet/stage_1_block_0/conv_0']['w']
  np.testing.assert_array_equal(tensors['layer2.0.conv1.weight'][5, 3], kernel[:, :, 3, 5])


FAMILIES = [
  ('preact_resnet', 10, 3, {}),
  ('preact_resnet', 50, 2, {'shortcut': 'input', 'padding': 'same'}),
  ('wide_resnet', 10, 1, {'shortcut': 'input'}),
  ('resnext', 11, 1, {'padding': 'same'}),
  ('resnet', 10, 2, {}),
  ('alexnet', 8, 2, {'padding': 'same'}),
]
NAMES = ('a\'s "x"', 'two\\n\nlines', 'µ{z}')


def exported(folder, name, depth, width, to, precision='float32', **fields):
  """Exports a random classifier of three classes; returns it."""
  classifier = random_classifier(depth, num_classes=3, name=name, width=width, **fields)
  classifier.class_names, classifier.config.precision = NAMES, precision
  export.export(classifier, folder, folder / 'out', to)
  return classifier


@pytest.mark.parametrize('name, depth, width, fields', FAMILIES)
def test_source_is_python_that_says_what_the_classifier_is(tmp_path, name, depth, width, fields):
  exported(tmp_path, name, depth, width, ['torch'], 'bfloat16', **fields)
  tree = ast.parse((tmp_path / 'out' / 'classifier_torch.py').read_text())
  constants = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in tree.body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
  }
  assert constants['CLASS_NAMES'] == NAMES
  assert constants['TITLE'] == card_of(tmp_path / 'out')['title']
  assert constants['CHECKPOINT_SHA256'] == 'f' * 64
  assert 'in float32, whereas the run did in bfloat16' in ast.get_docstring(tree)
  imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
  imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
  assert imported == {'json', 'pathlib', 'torch', 'torch.nn.functional'}
  assert {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} >= {'Classifier', 'load'}


def robustbench(torch) -> types.ModuleType:
  """The classes of robustbench/model_zoo/architectures/resnet.py that the layout is for, written anew."""
  nn, functional = torch.nn, torch.nn.functional

  def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

  class Block(nn.Module):
    """Pre-activation; subclasses say how many convolutions, and what the projection sees."""

    sizes, expansion, activated = (3, 3), 1, True

    def __init__(self, inputs, planes, stride):
      super().__init__()
      widths = [inputs, *[planes] * (len(self.sizes) - 1), planes * self.expansion]
      strided = len(self.sizes) - 2  # the first of two convolutions, the second of three
      for i, size in enumerate(self.sizes):
        setattr(self, f'bn{i + 1}', nn.BatchNorm2d(widths[i]))
        setattr(self, f'conv{i + 1}', conv(widths[i], widths[i + 1], size, stride if i == strided else 1))
      if stride != 1 or inputs != widths[-1]:
        self.shortcut = nn.Sequential(conv(inputs, widths[-1], 1, stride))

    def forward(self, x):
      first = y = functional.relu(self.bn1(x))
      skip = self.shortcut(first if self.activated else x) if hasattr(self, 'shortcut') else x
      for i in range(1, len(self.sizes)):
        y = getattr(self, f'conv{i}')(y)
        y = functional.relu(getattr(self, f'bn{i + 1}')(y))
      return getattr(self, f'conv{len(self.sizes)}')(y) + skip

  class PreActResNet(nn.Module):
    def __init__(self, block, num_blocks, num_classes=10, bn_before_fc=False):
      super().__init__()
      assert bn_before_fc
      self.conv1 = conv(3, 64, 3)
      channels = 64
      for i, count in enumerate(num_blocks):
        blocks = []
        for j in range(count):
          blocks.append(block(channels, 64 * 2**i, 2 if i and not j else 1))
          channels = 64 * 2**i * block.expansion
        setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
      self.bn, self.linear = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def forward(self, x):
      x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
      x = functional.avg_pool2d(functional.relu(self.bn(x)), 4)
      return self.linear(x.view(x.size(0), -1))

  module = types.ModuleType('robustbench.model_zoo.architectures.resnet')
  module.PreActResNet, module.PreActBlockV2 = PreActResNet, type('PreActBlockV2', (Block,), {})
  module.PreActBlock = type('PreActBlock', (Block,), {'activated': False})
  module.PreActBottleneck = type('PreActBottleneck', (Block,), {'sizes': (1, 3, 1), 'expansion': 4})
  return module


BLOCKED = ('adversarial_augment', 'haiku', 'jax', 'jaxlib', 'onnx', 'robustbench', 'safetensors', 'scipy')
FRESH = """
import json, sys, warnings
warnings.simplefilter('ignore')

class Blocker:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {blocked}:
      raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, {folder!r})
shape = (2, 3, 29, 32)
data = open({images!r}, 'rb').read()
{code}
print(json.dumps(logits.tolist()))
"""
TORCH = """
import torch
from classifier_torch import load
with torch.no_grad():
  images = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
  logits = load()(images)
  whole = (images * 255).round().to(torch.uint8)
  torch.testing.assert_close(load()(whole), load()(whole.float() / 255))
"""
ONNX = """
import numpy as np
import onnxruntime
images = np.frombuffer(data, np.float32).reshape(shape)
(logits,) = onnxruntime.InferenceSession({file!r}).run(None, {{'images': images}})
"""


def in_fresh_environment(folder, code, *blocked):
  """Returns the logits of two images of 29x32 pixels, computed where only some packages can be imported."""
  x = images(2, 29, 32)
  (folder / 'images').write_bytes(np.ascontiguousarray(x.transpose(0, 3, 1, 2)).tobytes())
  names = {*BLOCKED, *blocked}
  program = FRESH.format(blocked=names, folder=str(folder), images=str(folder / 'images'), code=code)
  done = subprocess.run([sys.executable, '-I', '-c', program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return x, np.array(json.loads(done.stdout))


SIZES = [
  ('preact_resnet', 10, 64, {}),
  ('preact_resnet', 18, 16, {'padding': 'same', 'shortcut': 'input'}),
  ('preact_resnet', 50, 5, {}),
  ('wide_resnet', 10, 16, {}),
  ('wide_resnet', 16, 3, {'padding': 'same', 'shortcut': 'input'}),
  ('resnext', 11, 64, {}),
  ('resnext', 20, 16, {'padding': 'same'}),
  ('preact_resnet', 10, 8, {'padding': 'same', 'stem_stride': 2}),
  ('wide_resnet', 10, 2, {'stem_stride': 2}),
  ('resnext', 11, 8, {'stem_stride': 2}),
  ('resnet', 10, 8, {'stem_stride': 2}),
  ('resnet', 50, 8, {'padding': 'same'}),
  ('alexnet', 8, 8, {}),
  ('alexnet', 8, 4, {'padding': 'same', 'stem_stride': 1}),
]


@pytest.mark.slow
@pytest.mark.parametrize('name, depth, width, fields', SIZES)
def test_module_needs_only_torch(tmp_path, name, depth, width, fields):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  classifier = exported(tmp_path, name, depth, width, ['torch'], **fields)
  x, logits = in_fresh_environment(tmp_path / 'out', TORCH, 'numpy', 'onnxruntime')
  np.testing.assert_allclose(logits, classifier(x), rtol=1e-5, atol=1e-5)
  assert classifier(x).std(axis=0).max() > 1e-3  # images are told apart

  names: dict = {'__file__': str(tmp_path / 'out' / 'classifier_torch.py'), '__name__': 'classifier_torch'}
  exec((tmp_path / 'out' / 'classifier_torch.py').read_text(), names)
  tensor = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
  (gradient,) = torch.autograd.grad(names['load']()(tensor)[:, 1].sum(), tensor)
  expected = jax.grad(lambda x: classifier.logits_fn(x)[:, 1].sum())(x)
  np.testing.assert_allclose(gradient.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name, depth, width, fields', SIZES)
def test_onnx_needs_only_a_runtime(tmp_path, name, depth, width, fields):
  pytest.importorskip('onnx', reason='onnx is not installed')
  pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
  classifier = exported(tmp_path, name, depth, width, ['onnx'], **fields)
  code = ONNX.format(file=str(tmp_path / 'out' / 'classifier.onnx'))
  x, logits = in_fresh_environment(tmp_path / 'out', code, 'torch')
  np.testing.assert_allclose(logits, classifier(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name, depth, width, fields', SIZES)
def test_jax_export_of_every_family_has_the_same_gradients(tmp_path, name, depth, width, fields):
  classifier = exported(tmp_path, name, depth, width, ['jax_export'], **fields)
  call = jax.export.deserialize(bytearray((tmp_path / 'out' / 'classifier.jax_export').read_bytes())).call
  sides = ((32, 16),) if 'padding' in fields else ((29, 32), (18, 15))
  gradient = lambda function, x: jax.jit(jax.grad(lambda x: function(x)[:, 1].sum()))(x)
  for side in sides:
    x = images(2, *side)
    np.testing.assert_allclose(call(x), classifier(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient(call, x), gradient(classifier.logits_fn, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  'depth, shortcut', [(10, 'preact'), (18, 'preact'), (18, 'input'), (34, 'preact'), (50, 'preact'), (101, 'preact')]
)
def test_robustbench_class_takes_the_state_dict(tmp_path, depth, shortcut):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  module = robustbench(torch)
  counts, bottleneck = DEPTHS[depth]
  basic = module.PreActBlockV2 if shortcut == 'preact' else module.PreActBlock
  theirs = module.PreActResNet(module.PreActBottleneck if bottleneck else basic, counts, 7, bn_before_fc=True)
  theirs.register_buffer('mu', torch.zeros(1, 3, 1, 1))
  theirs.register_buffer('sigma', torch.ones(1, 3, 1, 1))
  classifier = random_classifier(depth, num_classes=7, shortcut=shortcut)
  export.export(classifier, tmp_path, tmp_path / 'out', ['torch'])
  tensors = load_file(tmp_path / 'out' / 'torch_state_dict.safetensors')
  theirs.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})  # strictly
  theirs.eval()
  for shape in ((4, 32, 32), (2, 25, 30)):
    x = images(*shape)
    with torch.no_grad():
      found = theirs((torch.from_numpy(x).permute(0, 3, 1, 2) - theirs.mu) / theirs.sigma).numpy()
    expected = classifier(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.std(axis=0).max() > 1e-3  # images are told apart
