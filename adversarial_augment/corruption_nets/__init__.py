"""The corruption networks: factories of Haiku's (init, apply), and the weights that ship with the package.

A network is a pair of pure functions of images [n, h, w, 3] in [0, 1]; phi has a {'w': [kh, kw, c, k], 'b': [k]} for
each layer. All factories take `conv`, the convolution (see per_example_conv), and `dtype`, of the layers (None: of the
images).
"""

from collections.abc import Callable, Mapping
import math
from pathlib import Path
from typing import Any

from adversarial_augment import errors

errors.require_assertions()  # before Haiku is imported

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import checks, per_example_conv, threefry
from adversarial_augment.config.fields import show
from adversarial_augment.corruption_nets import layers
from adversarial_augment.corruption_nets import weights as weight_files
from adversarial_augment.corruption_nets.cae import cae, cae_table
from adversarial_augment.corruption_nets.edsr import edsr, edsr_table
from adversarial_augment.corruption_nets.unet import unet, unet_table
from adversarial_augment.corruption_nets.vqvae import CODEBOOK, vqvae, vqvae_table
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files
from adversarial_augment.types import PyTree

ENDS = ('last_third', 'tail')  # of a network: a third of its layers, or EDSR's after its body, and the last of others
CORRUPTION_NETS: dict[str, Callable[..., hk.Transformed]] = {'edsr': edsr, 'cae': cae, 'unet': unet, 'vqvae': vqvae}

_SHIPPED = Path(__file__).parent / 'shipped'
_DEFAULTS = {'edsr': 'edsr_16x64_x4', 'cae': 'cae_16', 'unet': 'unet_16', 'vqvae': 'vqvae_16x512'}
_SIZES_IN_NAMES = {
  'edsr': '{blocks}x{features}_x{scale}', 'cae': '{features}', 'unet': '{features}', 'vqvae': '{features}x{codes}',
}  # fmt: skip
_TABLES: dict[str, Callable[..., layers.Table]] = {
  'edsr': edsr_table, 'cae': cae_table, 'unet': unet_table, 'vqvae': vqvae_table,
}  # fmt: skip


def load(
  name: str,
  weights: str | Path | None = None,
  *,
  perturb_mean_shift: bool = False,
  deterministic: bool = False,
  conv: per_example_conv.Conv = per_example_conv.example_conv,
  dtype: jnp.dtype | None = None,
) -> tuple[hk.Transformed, PyTree]:
  """Loads a pretrained corruption network.

  Args:
    name: architecture, a key of `CORRUPTION_NETS`.
    weights: a `.safetensors` file, or the name of shipped weights, such as 'edsr_4x16_x1'; by default the
      largest of them.
    perturb_mean_shift: of EDSR alone: phi includes its fixed colour-mean layers.
    deterministic: of the CAE alone: its bits are rounded instead of drawn.
    conv, dtype: see the package.

  Returns:
    The network and phi: `network.apply(phi, images, key)` maps images [n, h, w, 3] in [0, 1] to images of that shape.
    Only the CAE, unless it is `deterministic`, needs the key.

  Raises:
    UserError: an unknown name, or a file that is missing, damaged, or for another network.
    TypeError: an option that the network does not have.
  """
  factory = checks.lookup(CORRUPTION_NETS, name, 'corruption_net')
  params, sizes = read(name, weights or _DEFAULTS[name])
  options = {'perturb_mean_shift': perturb_mean_shift, 'deterministic': deterministic}
  network = factory(**sizes, **{name: True for name, is_set in options.items() if is_set}, conv=conv, dtype=dtype)
  initial: Any = jax.eval_shape(network.init, threefry.key(0), jnp.zeros((1, 32, 32, 3)))
  if perturb_mean_shift:  # constants, which weight files do not contain
    fixed: Any = network.init(threefry.key(0), jnp.zeros((1, 8, 8, 3)))
    params |= {key: value for key, value in fixed.items() if key.endswith('_mean')}
  return network, {module: {key: jnp.asarray(params[module][key]) for key in initial[module]} for module in initial}


def read(name: str, weights: str | Path) -> tuple[weight_files.Params, dict[str, int]]:
  """Returns the parameters in a weight file, and the network's sizes; as `load`, but with NumPy only, on no device."""
  path = find(weights)
  params, metadata = weight_files.load(path)
  found, sizes = weight_files.network_of(metadata, path)
  if found != name:
    raise UserError(
      f"'{path}' holds the weights of {show(found)}, not of a corruption_net '{name}'; {weight_files.WAY_OUT} "
      f"for '{name}'."
    )
  weight_files.check(params, shapes(name, sizes), path)
  return params, sizes


def shapes(name: str, sizes: Mapping[str, int]) -> layers.Shapes:
  """Returns the names and shapes of a network's parameters in a weight file; uses no device."""
  sizes = dict(sizes)
  constants: layers.Shapes = (
    {CODEBOOK: {'codebook': (sizes.pop('codes'), sizes['features'])}} if name == 'vqvae' else {}
  )
  return layers.shapes(name, _TABLES[name](**sizes)) | constants


def last_layers(name: str, sizes: Mapping[str, int], end: str) -> tuple[str, ...]:
  """Returns the modules of a network's last layers: those of `ENDS`, in the order of the network."""
  table = [*_TABLES[name](**{size: value for size, value in sizes.items() if size != 'codes'})]
  body = table.index('body_out') + 1 if name == 'edsr' else len(table) - 1
  first = checks.lookup({'last_third': len(table) - math.ceil(len(table) / 3), 'tail': body}, end, 'end')
  return tuple(f'{name}/{layer}' for layer in table[first:])


def label(name: str, sizes: Mapping[str, int]) -> str:
  """Returns the name of shipped weights, such as 'edsr_4x16_x1' or 'cae_16'."""
  return f'{name}_{_SIZES_IN_NAMES[name].format(**sizes)}'


def find(weights: str | Path) -> Path:
  """Returns the file of shipped weights, or the given path; raises UserError if it neither ships nor is a path."""
  if str(weights).endswith('.safetensors'):
    return files.user_path(str(weights), 'weights')
  known = {path.stem: path for path in files.named(_SHIPPED, '*.safetensors')}
  return checks.lookup(known, str(weights), 'shipped weights')


def shipped_name(name: str, sizes: Mapping[str, int]) -> str:
  """Returns the name of the shipped weights of an architecture; raises UserError if none ship for it."""
  stem = label(name, sizes)
  known = [path.stem for path in files.named(_SHIPPED, '*.safetensors')]
  if stem not in known:
    raise UserError(
      f'No weights ship for {name} with {", ".join(f"{k}={v}" for k, v in sizes.items())}; shipped: '
      f'{", ".join(known)}. Make them with python -m adversarial_augment.pretrain or convert, and name their file.'
    )
  return stem
