"""Figure 3 of arXiv 2104.01086: how well corruption networks reproduce each corruption if their weights are perturbed.

  python -m experiments.figure3_reconstruction --num_images=20                     # the small networks that ship
  python -m experiments.figure3_reconstruction --nets=edsr --weights=edsr_16x64_x4 --dataset=cifar10

For every image x and corruption, Adam starts at delta = 0 and maximises SSIM(c_{phi + delta}(x), corrupted x) -
1e-5 ||delta||^2. There is no projection and no classifier; c clips to [0, 1] as usual. All corruptions and networks use
the same images, with severities 1 to 5 in turn. Results that are already in the JSON file are not computed again.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np
import optax

from adversarial_augment import (
  __version__,
  checks,
  cli,
  corruptions,
  datasets,
  metrics,
  per_example_conv,
  results,
  ssim,
  threefry,
)
from adversarial_augment.cli import progress, signals
from adversarial_augment.datasets import sampling
from adversarial_augment.errors import NumericalError, UserError
from adversarial_augment.parallel import devices, sharding
from adversarial_augment.types import Array, Dataset, PyTree
from experiments import figure3_drawing, figure_files

NAME = 'figure3_reconstruction'
PENALTY, LEARNING_RATE = 1e-5, 1e-3
WEIGHTS = {'edsr': 'edsr_4x16_x1', 'cae': 'cae_16', 'unet': 'unet_16', 'vqvae': 'vqvae_16x512'}
_MICROBATCH = 16  # images at a time on each device


def main(argv: Sequence[str]) -> None:
  arguments = _parser().parse_args(argv)
  nets = _nets(arguments.nets, arguments.weights)
  if not 1 <= arguments.num_steps <= 10**6:
    raise UserError(f'--num_steps={arguments.num_steps} must be between 1 and 1,000,000.')
  figure_files.check_seed(arguments.seed)
  figure_files.check_drawable()
  test = datasets.load(arguments.dataset, 'test', arguments.data_dir)
  figure_files.check_num_images(arguments.num_images, len(metrics.SEVERITIES), test)
  if min(test.image_shape[:2]) < metrics.MIN_SIZE:
    raise UserError(
      f'--dataset={test.name} has images of {test.image_shape[0]}x{test.image_shape[1]}, but the corruptions need '
      f'at least {metrics.MIN_SIZE} pixels per side; prepare it with --size={metrics.MIN_SIZE} or more.'
    )
  path = figure_files.place(arguments.output, Path('runs') / NAME, NAME)
  devices.virtual_devices(devices.usable_cores())
  devices.compilation_cache()
  with signals.listen(several_processes=False, kept=f"finished corruptions are kept in '{path}'"):
    setting = {name: getattr(arguments, name) for name in ('num_images', 'num_steps', 'seed')}
    found = measure(test, nets, path, overwrite=arguments.overwrite, **setting)
    figure3_drawing.draw(found, path.with_suffix('.png'))
  for net, values in figure3_drawing.complete(found).items():
    print(f'  {net}: mean SSIM {values["mean"]:.3f} ± {values["std"]:.3f}, {values["start_mean"]:.3f} before')
  print(f'wrote {path} and {path.with_suffix(".png").name}')


def _nets(names: str, weights: str | None) -> dict[str, str]:
  """Returns the weights of each network, after checking the files."""
  from adversarial_augment import corruption_nets

  nets = names.split(',')
  for net in nets:
    checks.lookup(corruption_nets.CORRUPTION_NETS, net, 'network in --nets')
  if len(nets) != len(set(nets)):
    raise UserError(f'--nets={names} names a network twice; name each of them once.')
  given = [WEIGHTS[net] for net in nets] if weights is None else weights.split(',')
  if len(given) != len(nets):
    raise UserError(f'--weights={weights} must name one file for each of --nets={names}, in the same order.')
  for net, file in zip(nets, given, strict=True):
    corruption_nets.read(net, file)
  return dict(zip(nets, given, strict=True))


def measure(
  test: Dataset, nets: Mapping[str, str], path: Path, *, num_images: int, num_steps: int, seed: int, overwrite: bool
) -> dict[str, Any]:
  """Returns the numbers of the figure, and saves those of each network and corruption as soon as they are known.

  Args:
    test: the images.
    nets: network -> its weights.
    path: of the JSON; other networks in it are kept.
    num_images: for each corruption.
    num_steps: of Adam.
    seed: of the choice of images, the corruptions, and a network's noise.
    overwrite: whether to replace the contents of `path`.

  Raises:
    UserError: `path` has other contents.
    NumericalError: an SSIM is NaN or infinite.
    StorageError: `path` cannot be written.
  """
  from adversarial_augment import corruption_nets

  versions = {'adversarial_augment': __version__, 'jax': importlib.metadata.version('jax')}
  images_of = {'seed': seed, 'frost': corruptions.describe_frost(), 'made_with': corruptions.made_with()}
  data = {'name': test.name, **test.provenance}
  conditions = results.digest([data, images_of, num_images, num_steps, versions])
  found = figure_files.known(path, conditions, overwrite) or {
    'figure': NAME,
    'conditions_sha256': conditions,
    'num_images': num_images,
    'num_steps': num_steps,
    'seed': seed,
    'learning_rate': LEARNING_RATE,
    'penalty': PENALTY,
    'provenance': {
      'data': {'test': data},
      'corruptions': images_of,
      'versions': versions,
      'command': figure_files.command(NAME),
      'devices': {'kind': jax.devices()[0].device_kind, 'count': jax.device_count()},
    },
    'examples': {},
    'nets': {},
  }
  mesh = sharding.data_mesh()
  index = np.sort(sampling.indices(seed, 0, test.num_examples, num_images))
  clean = test.read(index).images
  weights = {net: _origin(net, file) for net, file in nets.items()}
  for net, origin in weights.items():
    held = found['nets'].setdefault(net, {'weights': origin, 'corruptions': {}})
    if held['weights']['sha256'] != origin['sha256']:
      raise UserError(
        f"'{path}' holds {net} with other weights; replace it with --overwrite, or name another --output."
      )
  missing = {net: [name for name in metrics.ALL_NAMES if name not in found['nets'][net]['corruptions']] for net in nets}
  with progress.images(num_images * sum(map(len, missing.values()))) as advance:
    for net, names in missing.items():
      network, phi = corruption_nets.load(net, nets[net])
      run = functools.partial(
        reconstructor(network.apply, mesh, num_steps=num_steps, seed=seed), sharding.replicate(mesh, phi)
      )
      held = found['nets'][net]
      for name in names:
        corrupted = corrupt(clean, index, name, seed)
        said = functools.partial(advance, f'{net}, {name}')
        made, after, before = _in_parts(run, mesh, (index, clean, corrupted), said)
        # Severity 3, and another image for each corruption if there are enough.
        shown = 5 * (metrics.ALL_NAMES.index(name) % (num_images // 5)) + 2
        found['examples'][name] = figure_files.encoded(np.stack([clean[shown], corrupted[shown]]))
        held['corruptions'][name] = _said(after, before, f'{net}, {name}')
        held['corruptions'][name]['example'] = figure_files.encoded(made[shown, None])
        held |= _overall(held['corruptions'])
        figure_files.write(path, found)
  return found


def reconstructor(apply: Callable, mesh: Mesh, *, num_steps: int, seed: int) -> Callable:
  """Returns (phi, indices [n], images, targets: uint8 [n, h, w, 3]) -> reconstructions, SSIM [n] after, and before.

  Args:
    apply: the corruption network, (phi, images, key) -> images.
    mesh: the devices, over which the images are sharded.
    num_steps: of Adam.
    seed: of the network's noise, which depends on it and the index, and is the same in every step.
  """
  optimizer = optax.adam(LEARNING_RATE)

  def local(phi: PyTree, indices: Array, images: Array, targets: Array) -> tuple[Array, Array, Array]:
    images, targets = (x.astype(jax.tree.leaves(phi)[0].dtype) / 255 for x in (images, targets))

    def one(target: Array, both: tuple[Array, Array]) -> tuple[Array, Array, Array]:
      index, image = both
      key = jax.random.fold_in(threefry.key(seed), index)

      def reconstruct(delta):
        made = apply(jax.tree.map(jnp.add, phi, delta), image[None], key)
        return made[0], ssim.ssim(made, target[None])[0]

      def loss(delta):
        return PENALTY * optax.tree.norm(delta, squared=True) - reconstruct(delta)[1]

      def step(_, carry):
        delta, state = carry
        updates, state = optimizer.update(jax.grad(loss)(delta), state)
        return optax.apply_updates(delta, updates), state

      zeros = jax.tree.map(jnp.zeros_like, phi)
      delta, _ = jax.lax.fori_loop(0, num_steps, step, (zeros, optimizer.init(zeros)))
      return (*reconstruct(delta), reconstruct(zeros)[1])

    return per_example_conv.over_examples(one)(targets, (indices, images))

  data, whole = PartitionSpec(sharding.AXIS), PartitionSpec()
  return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(whole, data, data, data), out_specs=data, check_vma=False))


def corrupt(images: np.ndarray, index: np.ndarray, name: str, seed: int) -> np.ndarray:
  """Returns images, uint8 [n, h, w, 3], corrupted at severities 1 to 5 in turn.

  Args:
    images: clean.
    index: [n], of the images in their data set.
    name: of the corruption.
    seed: of its draws.
  """
  made = np.empty_like(images)
  for turn, severity in enumerate(metrics.SEVERITIES):
    rows = slice(turn, None, len(metrics.SEVERITIES))
    made[rows] = corruptions.corrupt(images[rows], name, severity, seed, index[rows])
  return made


def _in_parts(
  run: Callable, mesh: Mesh, arrays: Sequence[np.ndarray], advance: Callable[[int], None]
) -> list[np.ndarray]:
  """Applies `run` to arrays [n, ...] in chunks of one size, the last one padded, and returns all outputs."""
  n = len(arrays[0])
  size = min(_MICROBATCH, -(-n // mesh.size)) * mesh.size
  parts = []
  for start in range(0, n, size):
    rows = np.minimum(np.arange(start, start + size), n - 1)
    count = min(size, n - start)
    parts.append([out[:count] for out in jax.device_get(run(*sharding.shard_batch(mesh, [a[rows] for a in arrays])))])
    advance(count)
  return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _said(after: np.ndarray, before: np.ndarray, what: str) -> dict[str, Any]:
  """Returns mean, standard deviation and values of SSIM [n], at the end and at the start."""
  if not (np.isfinite(after).all() and np.isfinite(before).all()):
    raise NumericalError(f'The SSIM of {what} is NaN or infinite; use other weights, or lower --num_steps.')
  parts = {'ssim': after, 'start': before}
  return {name: [float(f'{value:.7g}') for value in values] for name, values in parts.items()} | _spread(after, before)


def _overall(by_corruption: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Returns mean and standard deviation over all images of all corruptions so far."""
  return _spread(*(np.concatenate([values[name] for values in by_corruption.values()]) for name in ('ssim', 'start')))


def _spread(after: np.ndarray, before: np.ndarray) -> dict[str, float]:
  found = {'mean': np.mean(after, dtype=np.float64), 'std': np.std(after, dtype=np.float64)}
  found |= {'start_mean': np.mean(before, dtype=np.float64), 'start_std': np.std(before, dtype=np.float64)}
  return {name: float(value) for name, value in found.items()}


def _origin(net: str, file: str) -> dict[str, Any]:
  """Returns the origin of the weights."""
  from adversarial_augment import corruption_nets

  path = corruption_nets.find(file)
  _, sizes = corruption_nets.read(net, file)
  return {'file': path.name, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest(), 'network': {'name': net, **sizes}}


def _parser() -> argparse.ArgumentParser:
  parser = figure_files.parser(
    NAME,
    'Draws Figure 3: every corruption, reconstructed by perturbing the weights of corruption networks.',
    'examples:\n' + '\n'.join(__doc__.splitlines()[2:4]),
  )
  parser.add_argument('--nets', default='edsr,cae', metavar='NAMES', help='networks; default: %(default)s')
  parser.add_argument(
    '--weights', metavar='NAMES', help='one file, or name of shipped weights, per network; default: the small ones'
  )
  parser.add_argument('--dataset', default='embedded', help='data set whose test split is used; default: %(default)s')
  parser.add_argument(
    '--data_dir',
    default='~/tensorflow_datasets',
    metavar='DIR',
    help='folder of prepared data sets; default: %(default)s',
  )
  parser.add_argument(
    '--num_images', type=int, default=640, metavar='N', help='images per corruption; default: %(default)s'
  )
  parser.add_argument('--num_steps', type=int, default=50, metavar='N', help='steps of Adam; default: %(default)s')
  parser.add_argument('--seed', type=int, default=0, help='seed of images, corruptions and noise; default: 0')
  parser.add_argument('--overwrite', action='store_true', help='compute known results again')
  return parser


if __name__ == '__main__':
  cli.run(main)
