"""AugMix: throughput compared with Pillow in two processes, and its share of a training step.

  python -m benchmarks.augmix [--rounds=9]

Measures on two cores, in one run: a batch of AugMix over a nominal step of ResNet-18 (width 64) on as many images of
32x32; and images per second on two devices over those of the same mixture made with Pillow and NumPy in two worker
processes, as data loaders do it. Exits with 1 if a bound is missed.
"""

import argparse
import functools
import multiprocessing
import sys

import jax
from jax.sharding import AxisType
import numpy as np
from PIL import Image, ImageOps

from adversarial_augment import augmentations, classifiers, datasets
from adversarial_augment.parallel import sharding
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training import train_step as training
from benchmarks import timing

IMAGES = 32  # of a step
MANY = 512  # of the throughput comparison
SHARE, TIMES_PILLOW = 0.15, 3
SIDE = 32

RNG = np.random.default_rng(0)


def level(limit: float) -> float:
  return RNG.uniform(0.1, 3) * limit / 10


def signed(value: float) -> float:
  return value if RNG.uniform() < 0.5 else -value


def resampled(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
  return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


PILLOW = (
  ImageOps.autocontrast,
  ImageOps.equalize,
  lambda image: ImageOps.posterize(image, 4 - int(level(4))),
  lambda image: image.rotate(signed(int(level(30))), resample=Image.Resampling.BILINEAR),
  lambda image: ImageOps.solarize(image, 256 - int(level(256))),
  lambda image: resampled(image, (1, signed(level(0.3)), 0, 0, 1, 0)),
  lambda image: resampled(image, (1, 0, 0, signed(level(0.3)), 1, 0)),
  lambda image: resampled(image, (1, 0, signed(int(level(SIDE / 3))), 0, 1, 0)),
  lambda image: resampled(image, (1, 0, 0, 0, 1, signed(int(level(SIDE / 3))))),
)


def pillow(image: np.ndarray) -> np.ndarray:
  """AugMix of a uint8 image, in [0, 1]."""
  weights, share = RNG.dirichlet((1, 1, 1)).astype(np.float32), np.float32(RNG.beta(1, 1))
  mixed = np.zeros(image.shape, np.float32)
  for weight in weights:
    chain = Image.fromarray(image)
    for _ in range(RNG.integers(1, 4)):
      chain = PILLOW[RNG.integers(len(PILLOW))](chain)
    mixed += weight * np.asarray(chain, np.float32) / 255
  return (1 - share) * (image.astype(np.float32) / 255) + share * mixed


def work(connection) -> None:
  """A worker process: receives images, returns their AugMix."""
  while (images := connection.recv()) is not None:
    connection.send(np.stack([pillow(image) for image in images]))


class Workers:
  """Two worker processes that share a batch."""

  def __init__(self):
    context = multiprocessing.get_context('spawn')
    pairs = [context.Pipe() for _ in range(2)]
    self._ends = [end for end, _ in pairs]
    self._processes = [context.Process(target=work, args=(other,), daemon=True) for _, other in pairs]
    for process in self._processes:
      process.start()

  def __call__(self, images: np.ndarray) -> np.ndarray:
    for end, part in zip(self._ends, np.array_split(images, 2), strict=True):
      end.send(part)
    return np.concatenate([end.recv() for end in self._ends])

  def close(self) -> None:
    for end in self._ends:
      end.send(None)
    for process in self._processes:
      process.join()


def nominal_step(mesh, images: np.ndarray):
  """Returns a function that performs one update of a ResNet-18 without adversary and augmentation."""
  make = functools.partial(classifiers.CLASSIFIERS['preact_resnet'], 10, depth=18, width=64)
  schedule = recipes.warmup_cosine(0.1, 1000, 10)
  nothing = augmentations.chain(())
  recipe = recipes.Recipe(
    classifier=make(),
    attacked_classifier=make(axis_name=sharding.AXIS),
    attack_batch_norm='batch',
    attack=None,
    warmup_steps=0,
    before=nothing,
    after=nothing,
    jsd=0.0,
    trades=0.0,
    optimizer=recipes.sgd(schedule, momentum=0.9, nesterov=True, weight_decay=1e-4, decay_batch_norm=False),
    schedule=schedule,
    num_steps=1000,
    batch_size=len(images),
    seed=0,
    mesh=mesh,
  )
  state = sharding.replicate(mesh, training.init_state(recipe, (SIDE, SIDE, 3)))
  batch = sharding.shard_batch(mesh, (images, np.arange(len(images), dtype=np.int32) % 10))
  step, index = training.jitted(recipe), 0

  def run():
    nonlocal state, index
    state, metrics = step(state, np.int32(index), *batch, {})
    index += 1
    return metrics

  return run


def ours(mesh, images: np.ndarray):
  """Returns a function that applies AugMix to all images, on both devices."""
  data = jax.sharding.PartitionSpec(sharding.AXIS)
  augment = jax.vmap(augmentations.AUGMENTATIONS['augmix'])
  sharded = jax.jit(jax.shard_map(augment, mesh=mesh, in_specs=data, out_specs=data, check_vma=False))
  (batch,) = sharding.shard_batch(mesh, (images.astype(np.float32) / 255,))
  keys = jax.device_put(jax.random.split(jax.random.key(0), len(images)), jax.NamedSharding(mesh, data))
  return lambda: sharded(keys, batch)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=9)
  rounds = parser.parse_args().rounds
  timing.settle('benchmarks.augmix', cores=2)
  jax.config.update('jax_num_cpu_devices', 2)
  mesh = jax.make_mesh((2,), (sharding.AXIS,), axis_types=(AxisType.Auto,))
  images = datasets.load('embedded', 'train', '').read(np.arange(MANY)).images
  workers = Workers()
  times = timing.interleave(
    {
      'ResNet-18 step': nominal_step(mesh, images[:IMAGES]),
      'AugMix of a step': ours(mesh, images[:IMAGES]),
      'AugMix': ours(mesh, images),
      'Pillow': lambda: workers(images),
    },
    rounds=rounds,
  )
  workers.close()
  for name, count in (('ResNet-18 step', IMAGES), ('AugMix of a step', IMAGES), ('AugMix', MANY), ('Pillow', MANY)):
    wall = times[name].wall
    print(f'{name:<18} {1e3 * wall:9.2f} ms for {count:4} images, {count / wall:9.0f} images/s')
  share = times['AugMix of a step'].wall / times['ResNet-18 step'].wall
  met = [
    timing.gate('AugMix / nominal step of ResNet-18', share, SHARE, least=False),
    timing.gate(
      'speed over Pillow in two processes', times['Pillow'].wall / times['AugMix'].wall, TIMES_PILLOW, least=True
    ),
  ]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
