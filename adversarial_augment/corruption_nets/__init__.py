"""The corruption networks: factories of Haiku's (init, apply), and the weights that ship with the package."""

from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import files, registry
from adversarial_augment.corruption_nets import weights as weight_files
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.errors import UserError
from adversarial_augment.fields import show
from adversarial_augment.types import PyTree

CORRUPTION_NETS = {'edsr': edsr}

_SHIPPED = Path(__file__).parent / 'shipped'
_DEFAULTS = {'edsr': 'edsr_16x64_x4'}


def load(name: str, weights: str | Path | None = None, **options: Any) -> tuple[hk.Transformed, PyTree]:
  """Loads a pretrained corruption network.

  Args:
    name: architecture, a key of `CORRUPTION_NETS`.
    weights: a `.safetensors` file, or the name of shipped weights, such as 'edsr_4x16_x1'; by default those of the
      paper's size.
    **options: of the architecture's factory, beside those that the weight file sets.

  Returns:
    The network and phi: `network.apply(phi, images)` maps images [n, h, w, 3] in [0, 1] to images of that shape.

  Raises:
    UserError: unknown name, or a file that is missing, damaged, or of another network.
  """
  factory: Any = registry.lookup(CORRUPTION_NETS, name, 'corruption_net')
  params, sizes = read(name, weights or _DEFAULTS[name])
  network = factory(**sizes, **options)
  initial: Any = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  if options.get('perturb_mean_shift'):  # constants, which no weight file holds
    fixed: Any = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    params |= {key: value for key, value in fixed.items() if key.endswith('_mean')}
  return network, {module: {key: jnp.asarray(params[module][key]) for key in initial[module]} for module in initial}


def read(name: str, weights: str | Path) -> tuple[weight_files.Params, dict[str, int]]:
  """Reads and checks a weight file with NumPy alone: no device is touched.

  Args:
    name: architecture, a key of `CORRUPTION_NETS`.
    weights: a `.safetensors` file, or the name of shipped weights.

  Returns:
    Parameters with the names and shapes of the architecture, and its sizes: blocks, features, scale.

  Raises:
    UserError: a file that is missing, damaged, or of another network.
  """
  path = find(weights)
  params, metadata = weight_files.load(path)
  found, sizes = weight_files.network_of(metadata, path)
  if found != name:
    raise UserError(
      f"'{path}' holds the weights of {show(found)}, not of a corruption_net '{name}'; {weight_files.WAY_OUT} "
      f"for '{name}'."
    )
  weight_files.check(params, _SHAPES[name](**sizes), path)
  return params, sizes


def edsr_shapes(*, blocks: int, features: int, scale: int) -> dict[str, dict[str, tuple[int, ...]]]:
  """Returns the names and shapes of EDSR's parameters, as a weight file holds them."""
  channels = {'head': (3, features), 'body_out': (features, features), 'out': (features, 3)}
  channels |= {f'block_{i}/conv_{j}': (features, features) for i in range(blocks) for j in range(2)}
  channels |= {f'up_{i}': (features, 4 * features) for i in range(scale.bit_length() - 1)}
  return {f'edsr/{layer}': {'w': (3, 3, n, k), 'b': (k,)} for layer, (n, k) in channels.items()}


_SHAPES = {'edsr': edsr_shapes}


def find(weights: str | Path) -> Path:
  """Returns the file of shipped weights, or a path as it is.

  Raises:
    UserError: neither ships nor looks like a path, or a path that no file can have.
  """
  if str(weights).endswith('.safetensors'):
    return files.user_path(str(weights), 'config.corruption_net.weights')
  known = {path.stem: path for path in _SHIPPED.glob('*.safetensors')}
  return registry.lookup(known, str(weights), 'shipped weights')


def shipped_name(name: str, *, blocks: int, features: int, scale: int) -> str:
  """Returns the name that weights of this architecture have among those that ship.

  Raises:
    UserError: none ship for it.
  """
  stem = f'{name}_{blocks}x{features}_x{scale}'
  known = sorted(path.stem for path in _SHIPPED.glob('*.safetensors'))
  if stem not in known:
    raise UserError(
      f'No weights ship for config.corruption_net {name} with blocks={blocks}, features={features}, scale={scale}; '
      f'shipped: {", ".join(known)}. Make them with python -m adversarial_augment.pretrain and set '
      'config.corruption_net.weights.'
    )
  return stem
