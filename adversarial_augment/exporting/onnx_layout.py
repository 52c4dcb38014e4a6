"""A classifier as an ONNX model, written from its arrays: no PyTorch, and no tracing."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment.classifiers import torch_layouts
from adversarial_augment.classifiers.alexnet import POOLED, STEM_STRIDE
from adversarial_augment.classifiers.layers import EPSILON
from adversarial_augment.classifiers.resnext import GROUPS
from adversarial_augment.errors import UserError
from adversarial_augment.exporting import torch_layout

_OPSET, _IR = 17, 8  # of ONNX 1.12, which onnxruntime reads from version 1.13 on
_MAX_BYTES = 2**31 - 1  # of a protocol buffer


def encode(config: ConfigDict, tensors: Mapping[str, np.ndarray], title: str, card: str) -> bytes:
  """Returns a model of float32 `images` [n, 3, h, w] in [0, 1] -> `logits` [n, classes], of any n, h and w.

  Args:
    config: of the classifier.
    tensors: as of `torch_layout.state_dict`; the initialisers have their names.
    title: of the card.
    card: as JSON.

  Raises:
    UserError: the model is too large for one file.
  """
  from onnx import TensorProto, helper, numpy_helper

  tensors = {name: value for name, value in tensors.items() if value.dtype == np.float32}
  if (size := sum(value.nbytes for value in tensors.values())) > _MAX_BYTES - 2**24:
    raise UserError(f'the weights have {size / 1e9:.1f} GB, but a file of ONNX holds 2 GB at most.')
  graph = _Graph(config, tensors, helper.make_node)
  graph.network()
  value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
  classes = len(tensors[graph.leaf('head', 'b')])
  made = helper.make_graph(
    graph.nodes,
    config.classifier.name,
    [value('images', ['n', 3, 'height', 'width'])],
    [value('logits', ['n', classes])],
    [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
  )
  opsets = [helper.make_opsetid('', _OPSET)]
  model = helper.make_model(made, opset_imports=opsets, ir_version=_IR, producer_name='adversarial_augment')
  model.doc_string = f'{title}. images: float32 in [0, 1], RGB, not normalised.'
  helper.set_model_props(model, {'card': card})
  return model.SerializeToString()


class _Graph:
  """Writes the nodes of a network, which is stated as in `classifiers`; values are known by their names."""

  def __init__(self, config: ConfigDict, tensors: Mapping[str, np.ndarray], make_node: Callable[..., Any]):
    self.nodes: list[Any] = []
    self._config, self._tensors, self._make = config.classifier, tensors, make_node

  def leaf(self, module: str, leaf: str) -> str:
    """Returns the name of an array."""
    return torch_layouts.key(f'{self._config.name}/{module}/{leaf}')

  def network(self) -> None:
    """Writes all nodes, from 'images' to 'logits'."""
    x = self._node('Div', self._node('Sub', 'images', 'mu'), 'sigma')
    x = self._alexnet(x) if self._config.name == 'alexnet' else self._residual(x)
    self._linear(x, 'head', 'logits')

  def _residual(self, x: str) -> str:
    is_post = self._config.name in ('resnext', 'resnet')
    x = self._conv(x, 'stem', self._config.stem_stride or 1)
    x = self._norm(x, 'norm') if is_post else x
    for stage, (_, count) in enumerate(torch_layout.stages(self._config)):
      for index in range(count):
        block = self._postactivated if is_post else self._preactivated
        x = block(x, f'stage_{stage}_block_{index}/', 2 if stage > 0 and index == 0 else 1)
    x = x if is_post else self._norm(x, 'norm')
    return self._node('Flatten', self._node('GlobalAveragePool', x))

  def _alexnet(self, x: str) -> str:
    for index in range(1, 6):
      x = self._conv(x, f'conv{index}', (self._config.stem_stride or STEM_STRIDE) if index == 1 else 1)
      x = self._node('Relu', x)
      if index in POOLED:
        x = self._node('MaxPool', x, kernel_shape=[2, 2], strides=[2, 2])
    x = self._node('Flatten', self._quarters(x))
    for module in ('fc1', 'fc2'):
      x = self._node('Relu', self._linear(x, module))
    return x

  def _quarters(self, x: str) -> str:
    constant = lambda value: self._node('Constant', value_ints=[value])
    for axis in (2, 3):
      side = self._node('Shape', x, start=axis, end=axis + 1)
      low = self._node('Div', side, constant(2))
      ends = ((constant(0), self._node('Sub', side, low)), (low, side))
      halves = [self._node('Slice', x, start, end, constant(axis)) for start, end in ends]
      x = self._node('Concat', *(self._node('ReduceMean', half, axes=[axis]) for half in halves), axis=axis)
    return x

  def _preactivated(self, x: str, place: str, stride: int) -> str:
    y = self._norm(x, f'{place}norm_0')
    skip = y if self._config.shortcut == 'preact' else x
    skip = self._conv(skip, f'{place}shortcut', stride) if self._has(f'{place}shortcut') else x
    is_bottleneck = self._has(f'{place}conv_2')
    y = self._conv(y, f'{place}conv_0', 1 if is_bottleneck else stride)
    y = self._conv(self._norm(y, f'{place}norm_1'), f'{place}conv_1', stride if is_bottleneck else 1)
    if is_bottleneck:
      y = self._conv(self._norm(y, f'{place}norm_2'), f'{place}conv_2')
    return self._node('Add', y, skip)

  def _postactivated(self, x: str, place: str, stride: int) -> str:
    if self._has(f'{place}conv_2'):
      groups = GROUPS if self._config.name == 'resnext' else 1
      y = self._norm(self._conv(x, f'{place}conv_0'), f'{place}norm_0')
      y = self._norm(self._conv(y, f'{place}conv_1', stride, groups), f'{place}norm_1')
      y = self._norm(self._conv(y, f'{place}conv_2'), f'{place}norm_2', relu=False)
    else:
      y = self._norm(self._conv(x, f'{place}conv_0', stride), f'{place}norm_0')
      y = self._norm(self._conv(y, f'{place}conv_1'), f'{place}norm_1', relu=False)
    if self._has(f'{place}shortcut'):
      x = self._norm(self._conv(x, f'{place}shortcut', stride), f'{place}shortcut_norm', relu=False)
    return self._node('Relu', self._node('Add', x, y))

  def _has(self, module: str) -> bool:
    return self.leaf(module, 'w') in self._tensors

  def _conv(self, x: str, module: str, stride: int = 1, groups: int = 1) -> str:
    weight = self.leaf(module, 'w')
    side = self._tensors[weight].shape[-1]
    is_same = self._config.padding == 'same' and side == 3 and stride == 2
    padding: dict[str, Any] = {'auto_pad': 'SAME_UPPER'} if is_same else {'pads': [side // 2] * 4}
    options: dict[str, Any] = {'kernel_shape': [side, side], 'strides': [stride, stride], 'group': groups}
    bias = [self.leaf(module, 'b')] if self._config.name == 'alexnet' else []
    return self._node('Conv', x, weight, *bias, **options, **padding)

  def _linear(self, x: str, module: str, output: str | None = None) -> str:
    return self._node('Gemm', x, self.leaf(module, 'w'), self.leaf(module, 'b'), output=output, transB=1)

  def _norm(self, x: str, module: str, *, relu: bool = True) -> str:
    leaves = (self.leaf(module, leaf) for leaf in ('scale', 'offset', 'mean', 'var'))
    x = self._node('BatchNormalization', x, *leaves, epsilon=EPSILON)
    return self._node('Relu', x) if relu else x

  def _node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
    output = output or f'{kind.lower()}_{len(self.nodes)}'
    self.nodes.append(self._make(kind, inputs, [output], **attributes))
    return output
