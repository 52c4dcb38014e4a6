"""The published PyTorch classes of our classifiers, key by key, in both directions.

- `preact_resnet`: `PreActResNet(..., bn_before_fc=True)` of RobustBench (model_zoo/architectures/resnet.py). Its blocks
  `PreActBlockV2` and `PreActBottleneck` have the shortcut 'preact', `PreActBlock` has 'input'; the keys do not tell.
- `wide_resnet`: `WideResNet` of RobustBench (wide_resnet.py, after TRADES) and of AugMix (WideResNet-pytorch), which
  spell the projection `convShortcut` and `conv_shortcut`. TRADES' `sub_block1` takes no part in the function.
- `resnext`: `CifarResNeXt` of AugMix (ResNeXt-DenseNet) and RobustBench (resnext.py), with four groups.
- `resnet`: `ResNet` of pytorch-cifar, MadryLab's robustness and RobustBench (resnet.py).
- `alexnet`: `CifarAlexNet` of perceptual adversarial training (perceptual-advex, models.py).

All pad one pixel on each side and normalise with epsilon 1e-5, as ours do. Where models normalise their images
themselves, the buffers `mu` and `sigma` have the means and standard deviations.
"""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.classifiers.alexnet import DEPTH, alexnet
from adversarial_augment.classifiers.preact_resnet import DEPTHS, preact_resnet, wide_resnet
from adversarial_augment.classifiers.resnet import resnet
from adversarial_augment.classifiers.resnext import resnext
from adversarial_augment.config.tables import CLASSIFIER_DEPTHS
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import tensor_files
from adversarial_augment.types import PyTree

State = Mapping[str, np.ndarray]

# The module of each of ours, the first convolution at first; {} are the stage, counted from 1, and the block, from 0.
_BASIC = {'conv_0': 'conv1', 'conv_1': 'conv2', 'conv_2': 'conv3', 'norm_0': 'bn1', 'norm_1': 'bn2', 'norm_2': 'bn3'}
_MODULES: dict[str, dict[str, str]] = {
  'preact_resnet': {
    'stem': 'conv1', 'norm': 'bn', 'head': 'linear',
    **{part: f'layer{{}}.{{}}.{name}' for part, name in {**_BASIC, 'shortcut': 'shortcut.0'}.items()},
  },
  'wide_resnet': {
    'stem': 'conv1', 'norm': 'bn1', 'head': 'fc',
    **{part: f'block{{}}.layer.{{}}.{name}' for part, name in {**_BASIC, 'shortcut': 'convShortcut'}.items()},
  },
  'resnext': {
    'stem': 'conv_1_3x3', 'norm': 'bn_1', 'head': 'classifier',
    'conv_0': 'stage_{}.{}.conv_reduce', 'norm_0': 'stage_{}.{}.bn_reduce',
    'conv_1': 'stage_{}.{}.conv_conv', 'norm_1': 'stage_{}.{}.bn',
    'conv_2': 'stage_{}.{}.conv_expand', 'norm_2': 'stage_{}.{}.bn_expand',
    'shortcut': 'stage_{}.{}.downsample.0', 'shortcut_norm': 'stage_{}.{}.downsample.1',
  },
  'resnet': {
    'stem': 'conv1', 'norm': 'bn1', 'head': 'linear', **{
      part: f'layer{{}}.{{}}.{name}'
      for part, name in {**_BASIC, 'shortcut': 'shortcut.0', 'shortcut_norm': 'shortcut.1'}.items()
    },
  },
  'alexnet': {
    'conv1': 'features.0', 'conv2': 'features.3', 'conv3': 'features.6', 'conv4': 'features.8', 'conv5': 'features.10',
    'fc1': 'classifier.1', 'fc2': 'classifier.4', 'head': 'classifier.6',
  },
}  # fmt: skip
_LEAVES = {
  'w': 'weight', 'b': 'bias', 'scale': 'weight', 'offset': 'bias', 'mean': 'running_mean', 'var': 'running_var',
  'count': 'num_batches_tracked',
}  # fmt: skip
# The axes of one array in the order of the other, by their number.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,), 0: ()}
_FACTORIES = {
  'preact_resnet': preact_resnet, 'wide_resnet': wide_resnet, 'resnext': resnext, 'resnet': resnet, 'alexnet': alexnet,
}  # fmt: skip
_STEMS = {next(iter(modules.values())) for modules in _MODULES.values()}
_SETTLED = 2**30  # updates of statistics whose number a file does not say: they are no first guess
_NORMALISATION = {'mu': 'mean', 'mean': 'mean', 'sigma': 'std', 'std': 'std'}  # by the last part of a key
_KNOWN = (
  "RobustBench's PreActResNet (with its last norm), ResNet and WideResNet, AugMix's WideResNet and CifarResNeXt, and "
  "PAT's CifarAlexNet"
)


class Converted(NamedTuple):
  """A classifier in a state dict."""

  architecture: dict[str, Any]  # name, depth, width
  num_classes: int
  normalisation: dict[str, tuple[float, ...]]  # 'mean' and 'std' of each channel; {} where the file does not say
  params: dict[str, dict[str, np.ndarray]]
  model_state: dict[str, dict[str, np.ndarray]]


def key(path: str) -> str:
  """Returns the key of a state dict for one of our leaves: 'preact_resnet/stage_1_block_0/norm_1/scale' ->
  'layer2.0.bn2.weight'.
  """
  network, *modules, leaf = path.split('/')
  names = _MODULES[network]
  if block := re.fullmatch(r'stage_(\d+)_block_(\d+)', modules[0]):
    return f'{names[modules[1]].format(int(block[1]) + 1, block[2])}.{_LEAVES[leaf]}'
  return f'{names[modules[0]]}.{_LEAVES[leaf]}'


def to_torch(params: PyTree, model_state: PyTree) -> dict[str, np.ndarray]:
  """Returns the state dict of a classifier's trees: float32, batch counts int64, OIHW, the head [classes, c]."""
  tensors = {}
  for path, value in _leaves(params, model_state).items():
    array = np.asarray(value)
    array = array.transpose(_TO_TORCH[array.ndim])
    dtype = np.int64 if path.endswith('/count') else np.float32
    tensors[key(path)] = np.ascontiguousarray(array, dtype).reshape(array.shape)
  return tensors


def from_torch(state: State) -> Converted:
  """Returns the classifier in a state dict, whose architecture, sizes and number of classes follow from its keys.

  A prefix of all keys, such as 'module.', is ignored. Statistics whose number of updates is 0 or missing count as
  settled, so that training does not begin them anew.

  Raises:
    UserError: the keys or shapes are of no classifier of ours.
  """
  state, around = _split(state)
  architecture = _architecture(state)
  name = architecture['name']
  state = {key: value for key, value in state.items() if not (name == 'wide_resnet' and key.startswith('sub_block1.'))}
  state = {key.replace('.conv_shortcut.', '.convShortcut.'): value for key, value in state.items()}
  normalisation = _normalisation({**state, **around})
  state = {key: value for key, value in state.items() if not _is_normalisation(key, value)}
  head = f'{_MODULES[name]["head"]}.weight'
  if head not in state or state[head].ndim != 2:
    raise UserError(f"it is {_spelled(architecture)}, but lacks a linear layer '{head}'.")
  num_classes = state[head].shape[0]
  state = {head.replace('weight', 'bias'): np.zeros(num_classes, np.float32)} | state  # some have none

  if architecture['depth'] not in CLASSIFIER_DEPTHS[name]:
    known = ', '.join(map(str, CLASSIFIER_DEPTHS[name]))
    raise UserError(f'it looks like {_spelled(architecture)}, whose depth must be one of {known}.')
  network = _FACTORIES[name](num_classes, depth=architecture['depth'], width=architecture['width'])
  init = lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), is_training=True)
  trees = jax.eval_shape(init)
  leaves = _leaves(*trees)
  counts = {key(path): np.zeros((), np.int64) for path in leaves if path.endswith('/count')}
  state = counts | state  # PyTorch before 0.4.1 had none
  wanted = {key(path): tuple(leaf.shape[axis] for axis in _TO_TORCH[leaf.ndim]) for path, leaf in leaves.items()}
  if wrong := tensor_files.wrong_shape({key: value.shape for key, value in state.items()}, wanted):
    raise UserError(f'it looks like {_spelled(architecture)}, but {wrong}.')

  def convert(path: str) -> np.ndarray:
    value = state[key(path)]
    if path.endswith('/count'):
      return np.asarray(min(int(value) or _SETTLED, _SETTLED), np.int32)
    with np.errstate(over='ignore'):
      array = np.ascontiguousarray(value.transpose(_FROM_TORCH[value.ndim]), np.float32)
    if not np.isfinite(array).all():
      raise UserError(f"'{key(path)}' holds values that are not finite in float32.")
    return array

  params, model_state = (
    {module: {leaf: convert(f'{module}/{leaf}') for leaf in inner} for module, inner in tree.items()} for tree in trees
  )
  return Converted(architecture, num_classes, normalisation, params, model_state)


def _leaves(params: PyTree, model_state: PyTree) -> dict[str, Any]:
  trees = (params, model_state)
  return {f'{module}/{leaf}': value for tree in trees for module in tree for leaf, value in tree[module].items()}


def _split(state: State) -> tuple[State, State]:
  """Returns the entries of the network, without the prefix that they share, and those around it."""
  found = [match for key in state for stem in _STEMS if (match := re.fullmatch(rf'(.*\.)?{stem}\.weight', key))]
  first = min(found, key=lambda match: match[0].count('.'), default=None)
  if first is None or state[first[0]].ndim != 4 or not state[first[0]].size:
    raise UserError(f'its keys, such as {show(next(iter(state), ""))}, are not those of {_KNOWN}.')
  prefix = first[1] or ''
  inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
  around = {key: value for key, value in state.items() if not key.startswith(prefix)}
  if others := [key for key, value in around.items() if not _is_normalisation(key, value)]:
    raise UserError(f'beside the network {show(prefix.rstrip("."))} it holds {show(others[0])}, another part.')
  return inside, around


def _architecture(state: State) -> dict[str, Any]:
  """Returns the name, depth and width of the network that keys and first shapes tell of."""

  def blocks(pattern: str) -> int:
    """The number of blocks of a stage, counted by a leaf that each of them has."""
    return sum(re.fullmatch(pattern, key) is not None for key in state)

  number = r'\d{1,4}'
  stem = next(state[key] for key in state if key.removesuffix('.weight') in _STEMS).shape[0]
  if 'features.0.weight' in state:
    return {'name': 'alexnet', 'depth': DEPTH, 'width': stem}
  if 'conv_1_3x3.weight' in state:
    return {'name': 'resnext', 'depth': 9 * blocks(rf'stage_1\.{number}\.bn\.weight') + 2, 'width': stem // 2}
  if (first := state.get('block1.layer.0.conv2.weight')) is not None:
    depth = 6 * blocks(rf'block1\.layer\.{number}\.bn1\.weight') + 4
    return {'name': 'wide_resnet', 'depth': depth, 'width': first.shape[0] // stem}
  counts = tuple(blocks(rf'layer{stage}\.{number}\.bn1\.weight') for stage in (1, 2, 3, 4))
  bottleneck = 'layer1.0.conv3.weight' in state
  known = next((depth for depth, sizes in DEPTHS.items() if sizes == (counts, bottleneck)), None)
  if known is None:
    kind = 'bottlenecks' if bottleneck else 'blocks'
    raise UserError(f'its stages have {", ".join(map(str, counts))} {kind}, as none of {_KNOWN} has.')
  return {'name': 'resnet' if 'bn1.weight' in state else 'preact_resnet', 'depth': known, 'width': stem}


def _spelled(architecture: Mapping[str, Any]) -> str:
  return '{name}-{depth} of width {width}'.format_map(architecture)


def _is_normalisation(key: str, value: np.ndarray) -> bool:
  return key.rpartition('.')[2] in _NORMALISATION and value.size == 3


def _normalisation(state: State) -> dict[str, tuple[float, ...]]:
  found = {
    _NORMALISATION[key.rpartition('.')[2]]: tuple(float(str(channel)) for channel in value.ravel().astype(np.float32))
    for key, value in state.items()
    if _is_normalisation(key, value)
  }
  if len(found) == 1:
    raise UserError(f'it holds the {next(iter(found))} of images and not the other half of their normalisation.')
  if any(value <= 0 for value in found.get('std', ())):
    raise UserError(f'its standard deviations of images, {found["std"]}, must be above 0.')
  return found
