"""The published PyTorch networks, key by key: from a state dict to the parameters of ours.

Weights of convolutions are [out, in, kh, kw] there and [kh, kw, in, out] here, those of transposed convolutions
[in, out, kh, kw] and [kh, kw, in, out]. No axis is reversed: `layers.doubling` writes as PyTorch does, unlike
`jax.lax.conv_transpose`.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import re

import numpy as np

from adversarial_augment.corruption_nets import layers, weights
from adversarial_augment.corruption_nets.cae import cae_table
from adversarial_augment.corruption_nets.edsr import MEAN, edsr_table
from adversarial_augment.errors import UserError
from adversarial_augment.storage import tensor_files

State = Mapping[str, np.ndarray]

_WAY_OUT = 'take another checkpoint, or name the network that this one is of'
_ROUNDING = 2**-8  # of bfloat16, the coarsest that numbers are stored in

# PyTorch's prefixes in the order of `cae_table`.
_CAE_KEYS = (
  'e_conv_1.1', 'e_conv_2.1', *(f'e_block_{i}.{j}' for i in (1, 2, 3) for j in (1, 4)), 'e_conv_3.0',
  'd_up_conv_1.0', 'd_up_conv_1.3', *(f'd_block_{i}.{j}' for i in (1, 2, 3) for j in (1, 4)),
  'd_up_conv_2.0', 'd_up_conv_2.3', 'd_up_conv_3.0', 'd_up_conv_3.3',
)  # fmt: skip


def edsr_from_torch(state: State) -> tuple[weights.Params, dict[str, int]]:
  """Returns the parameters, float32, and the sizes of `corruption_nets.edsr` in a state dict of EDSR-PyTorch.

  Blocks, features and scale (1, 2 or 4) follow from the keys and shapes of the state dict (baseline family). The fixed
  layers that remove and add the mean colour are checked and dropped. Prefixes 'module.' and 'model.' are ignored.

  Raises:
    UserError: a key is missing, unknown, or has another shape than EDSR gives it; the mean colour is another one; or
      the sizes are not those of a weight file.
  """
  state = _without_prefixes(state)
  features = _width(state, 'head.0.weight', 'EDSR')
  indices = [int(match[1]) for key in state if (match := re.fullmatch(r'body\.(\d{1,4})\.body\.0\.weight', key))]
  blocks = max(indices, default=-1) + 1
  # Entries 1 and 3 of the upsampler are pixel shuffles, without parameters.
  stages = max((n for n in (1, 2, 3) if any(key.startswith(f'tail.0.{2 * n - 2}.') for key in state)), default=0)
  scale = 2**stages  # each doubles the size, but a factor of 3 is one
  if stages == 1 and (first := state.get('tail.0.0.weight')) is not None and first.ndim:
    scale = math.isqrt(first.shape[0] // max(features, 1))
  sizes = {'blocks': blocks, 'features': features, 'scale': scale}
  _check_sizes(sizes, 'EDSR')
  keys = {'head': 'head.0', 'body_out': f'body.{blocks}', 'out': 'tail.1'}
  keys |= {f'block_{i}/conv_{j}': f'body.{i}.body.{2 * j}' for i in range(blocks) for j in (0, 1)}
  keys |= {f'up_{i}': f'tail.0.{2 * i}' for i in range(stages)}
  params = _converted('edsr', edsr_table(**sizes), keys, state, mean_shifts=('sub_mean', 'add_mean'))
  _check_mean(state)
  return params, sizes


def cae_from_torch(state: State) -> tuple[weights.Params, dict[str, int]]:
  """Returns the parameters, float32, and the sizes of `corruption_nets.cae` in a state dict of DeepAugment's CAE.

  Raises:
    UserError: a key is missing, unknown, or has another shape than the CAE gives it.
  """
  state = _without_prefixes(state)
  sizes = {'features': _width(state, f'{_CAE_KEYS[0]}.weight', 'CAE')}
  _check_sizes(sizes, 'CAE')
  table = cae_table(**sizes)
  return _converted('cae', table, dict(zip(table, _CAE_KEYS, strict=True)), state), sizes


FROM_TORCH: dict[str, Callable[[State], tuple[weights.Params, dict[str, int]]]] = {
  'edsr': edsr_from_torch,
  'cae': cae_from_torch,
}


def is_transposed(name: str) -> bool:
  """Whether a layer of a table is a transposed convolution."""
  return name.endswith('/up')  # of the CAE


def order(name: str) -> tuple[int, int, int, int]:
  """Returns the axes of PyTorch's weight in the order of ours."""
  return (2, 3, 0, 1) if is_transposed(name) else (2, 3, 1, 0)


def _without_prefixes(state: State) -> State:
  for prefix in ('module.', 'model.'):
    if state and all(key.startswith(prefix) for key in state):
      return _without_prefixes({key.removeprefix(prefix): value for key, value in state.items()})
  return state


def _width(state: State, key: str, network: str) -> int:
  """The outputs of the first layer; refuses a state dict without it."""
  if key not in state or state[key].ndim != 4:
    raise UserError(f"the state dict is not {network}'s: it lacks a convolution '{key}'; {_WAY_OUT}.")
  return state[key].shape[0]


def _check_sizes(sizes: dict[str, int], network: str) -> None:
  if wrong := weights.wrong_size(sizes):
    raise UserError(f'the state dict is of {network} with {wrong}; convert another one.')


def _converted(
  network: str, table: layers.Table, keys: Mapping[str, str], state: State, mean_shifts: Sequence[str] = ()
) -> weights.Params:
  """Converts the layers of a table; `keys` are their prefixes in a state dict that may have nothing else."""
  wanted: dict[str, tuple[int, ...]] = {}
  for name in mean_shifts:
    wanted |= {f'{name}.weight': (3, 3, 1, 1), f'{name}.bias': (3,)}
  for name, (size, inputs, outputs) in table.items():
    channels = (inputs, outputs) if is_transposed(name) else (outputs, inputs)
    wanted |= {f'{keys[name]}.weight': (*channels, size, size), f'{keys[name]}.bias': (outputs,)}
  if wrong := tensor_files.wrong_shape({key: value.shape for key, value in state.items()}, wanted):
    raise UserError(f'the state dict is not that of such a network ({network}): it {wrong}; {_WAY_OUT}.')
  params = {}
  for name in table:
    with np.errstate(over='ignore'):  # weights.save refuses what is too large
      params[f'{network}/{name}'] = {
        'w': np.ascontiguousarray(state[f'{keys[name]}.weight'].transpose(order(name)), np.float32),
        'b': np.ascontiguousarray(state[f'{keys[name]}.bias'], np.float32),
      }
  return params


def _check_mean(state: State) -> None:
  for name, sign in (('sub_mean', -1.0), ('add_mean', 1.0)):
    colour = sign * 255.0 * MEAN
    if not np.allclose(state[f'{name}.weight'][:, :, 0, 0], np.eye(3), atol=1e-6):
      raise UserError(
        f"'{name}.weight' of the state dict must be the identity; other colour spaces are not supported: {_WAY_OUT}."
      )
    if not np.allclose(state[f'{name}.bias'], colour, rtol=_ROUNDING, atol=0):
      rounded = [round(float(value), 2) for value in colour]
      raise UserError(
        f"'{name}.bias' of the state dict must be {rounded}, grey levels 0 to 255 around DIV2K's mean: {_WAY_OUT}."
      )
