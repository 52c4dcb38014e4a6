"""The corruption networks: factories of Haiku's (init, apply), and the weights that ship with the package."""

from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from adversarial_augment import registry
from adversarial_augment.corruption_nets import weights as weight_files
from adversarial_augment.corruption_nets.edsr import edsr
from adversarial_augment.errors import UserError
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
  factory = registry.lookup(CORRUPTION_NETS, name, 'corruption_net')
  path = find(weights or _DEFAULTS[name])
  params, metadata = weight_files.load(path)
  sizes = dict(metadata.get('network') or {})
  if sizes.pop('name', None) != name or not all(isinstance(size, int) and size > 0 for size in sizes.values()):
    raise UserError(f"'{path}' holds the weights of {metadata.get('network')}, not of a corruption_net '{name}'.")
  try:
    network = factory(**sizes, **options)
  except TypeError as error:
    raise UserError(f"'{path}' gives {sizes} as the sizes of '{name}': {error}; make the file again.") from error
  initial: Any = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  if options.get('perturb_mean_shift'):  # constants, which no weight file holds
    fixed: Any = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    params |= {key: value for key, value in fixed.items() if key.endswith('_mean')}
  weight_files.check(params, initial, path)
  return network, {module: {key: jnp.asarray(params[module][key]) for key in initial[module]} for module in initial}


def find(weights: str | Path) -> Path:
  """Returns the file of shipped weights, or a path as it is.

  Raises:
    UserError: neither ships nor looks like a path.
  """
  if str(weights).endswith('.safetensors'):
    return Path(weights).expanduser()
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
