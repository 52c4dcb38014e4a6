"""The whole AdA step, compared with nominal training, the naive formulation, one device, and PyTorch if installed.

  python -m benchmarks.train_step [--rounds=9]

EDSR at scale 1 (4 blocks x 16 features and 16 x 64) and as published (16 x 64, x4), pre-activation ResNet-18 of width
16, on 1 and 2 devices. Prints milliseconds and ratios, and exits with 1 if a bound is missed. Runs on two cores, with
huge pages (see timing.py).
"""

import argparse
import functools
import importlib.util
import inspect
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np

from adversarial_augment import attacks, augmentations, classifiers, per_example_conv, ssim
from adversarial_augment import config as configs
from adversarial_augment.attacks.adversary import adversary
from adversarial_augment.corruption_nets import CORRUPTION_NETS
from adversarial_augment.evaluation import distances
from adversarial_augment.parallel import sharding
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training import train_step
from benchmarks import timing


class Setting(NamedTuple):
  blocks: int
  features: int
  batch_size: int
  num_steps: int  # of the attack
  scale: int = 1


TOY, TOY_NAIVE = Setting(4, 16, 32, 10), Setting(4, 16, 8, 1)
COMPILED = 3  # compilations of each, where these are compared; the first ones of a process take longer
CALLS = 3  # the trainer dispatches a step before the previous one is done
WIDE, WIDE_NAIVE = Setting(16, 64, 4, 2), Setting(16, 64, 4, 1)
PUBLISHED = Setting(16, 64, 4, 2, scale=4)
NO_NETWORK = ('nominal', 'rlat', 'pat', 'pat_alexnet')  # which have no corruption network
RLAT = configs.override(configs.base_config(), {'attack.name': 'rlat', 'attack.epsilon': '0.08'})


def network(setting: Setting, conv=per_example_conv.example_conv, tail: str = 'composed'):
  sizes = {'blocks': setting.blocks, 'features': setting.features, 'scale': setting.scale}
  return CORRUPTION_NETS['edsr'](**sizes, conv=conv, tail=tail)


def classifier(**options):
  return classifiers.CLASSIFIERS['preact_resnet'](10, depth=18, width=16, **options)


def make_attack(net, setting: Setting, kind: str):
  if kind == 'naive':
    ball = attacks.weight_ball(net.apply, nu=0.015, impl='vmap')
    return inspect.unwrap(adversary(ball, num_steps=setting.num_steps))  # without rewriting its convolutions
  if kind in ('pat', 'pat_alexnet'):
    alexnet = distances.load(None, '', 'float32')
    distance = 'self' if kind == 'pat' else alexnet.distance(alexnet.variables)
    return attacks.perceptual(distance=distance, epsilon=0.5, num_steps=setting.num_steps, only_correct=True)
  return None if kind in NO_NETWORK else attacks.ada(net.apply, num_steps=setting.num_steps)


def make_step(setting: Setting, num_devices: int, kind: str):
  """Returns a compiled step as a function without arguments, and the seconds it took to compile.

  Args:
    setting: sizes.
    num_devices: 1 or 2.
    kind: 'ada', 'nominal', 'rlat', 'pat' (by the distance of the classifier), 'pat_alexnet' (by that of the small
      AlexNet), 'layers' (AdA with the tail of EDSR layer by layer), or 'naive' (vmap of lax.conv, and an attack whose
      convolutions are not rewritten).
  """
  devices = jax.devices()[:num_devices]
  mesh = jax.make_mesh((num_devices,), (sharding.AXIS,), axis_types=(AxisType.Auto,), devices=devices)
  conv = per_example_conv.conv if kind == 'naive' else per_example_conv.example_conv
  net = network(setting, conv, 'layers' if kind == 'layers' else 'composed')
  schedule = recipes.warmup_cosine(0.1, 1000, 10)
  recipe = recipes.Recipe(
    classifier=classifier(),
    attacked_classifier=classifier(axis_name=sharding.AXIS),
    attack_batch_norm='running' if kind.startswith('pat') else 'batch',
    attack=make_attack(net, setting, kind),
    warmup_steps=0,
    before=augmentations.chain(('pad_crop', 'flip')),
    after=augmentations.chain(()),
    jsd=0.0,
    trades=0.0,
    optimizer=recipes.sgd(schedule, momentum=0.9, nesterov=True, weight_decay=1e-4, decay_batch_norm=False),
    schedule=schedule,
    num_steps=1000,
    batch_size=setting.batch_size,
    seed=0,
    mesh=mesh,
    layers=recipes.moved_layers(RLAT, classifier(), (32, 32, 3)) if kind == 'rlat' else {},
  )
  state = sharding.replicate(mesh, train_step.init_state(recipe, (32, 32, 3)))
  phi = {} if kind in NO_NETWORK else net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (setting.batch_size, 32, 32, 3), dtype=np.uint8)
  labels = rng.integers(10, size=setting.batch_size).astype(np.int32)
  batch = sharding.shard_batch(mesh, (images, labels))
  phi = sharding.replicate(mesh, phi)
  start = time.perf_counter()
  compiled = train_step.jitted(recipe).lower(state, np.int32(0), *batch, phi).compile()
  seconds = time.perf_counter() - start
  made = 0

  def run():
    nonlocal state, made
    state, metrics = compiled(state, np.int32(made), *batch, phi)
    made += 1
    return metrics

  return run, seconds


def flops(setting: Setting) -> tuple[float, float]:
  """Returns the operations per image of one forward pass of the corruption network and of the classifier."""
  image = jnp.zeros((1, 32, 32, 3))
  net, model = network(setting, per_example_conv.conv), classifier()
  phi = net.init(jax.random.key(0), image)
  params, state = model.init(jax.random.key(0), image, is_training=True)
  predict = classifiers.logits_fn(model, params, state)
  return timing.flop(functools.partial(net.apply, phi), image), timing.flop(predict, image)


def report(setting: Setting, times, work: float) -> None:
  print(f'\nEDSR {setting.blocks} x {setting.features}, {setting.batch_size} images, {setting.num_steps} steps:')
  for name, (wall, cpu) in times.items():
    if name != 'yard':
      rate = f'{work / wall / 1e9:7.1f} GFLOP/s' if name.startswith('ada') else ''
      print(f'  {name:<18} {1e3 * wall:9.1f} ms {1e3 * cpu:9.1f} ms cpu {rate}')


def compare(setting: Setting, share_of_yard: float, torch_bound: float, rounds: int) -> bool:
  """AdA on one and two devices, nominal training, PyTorch, and the matrix product, interleaved."""
  made = {
    'ada, 2 devices': make_step(setting, 2, 'ada'),
    'ada, 1 device': make_step(setting, 1, 'ada'),
    'nominal': make_step(setting, 2, 'nominal'),
  }
  variants = {name: run for name, (run, _) in made.items()}
  variants['yard'], yard_flops = timing.yardstick()
  if importlib.util.find_spec('torch') is not None:
    from benchmarks import torch_step

    variants['torch grouped'] = torch_step.make(setting)
  times = timing.interleave(variants, rounds=rounds, calls=CALLS)
  e, c = flops(setting)
  steps = setting.num_steps
  work = setting.batch_size * (steps * (3 * e + 2 * c) + e + 3 * c)
  report(setting, times, work)
  own = times['ada, 2 devices'].wall
  ratio = (steps * (3 * e + 2 * c) + e + 3 * c) / (3 * c)
  met = [
    timing.gate('ada / nominal over the ratio of operations', own / times['nominal'].wall / ratio, 1.4, least=False),
    timing.gate('1 device / 2 devices', times['ada, 1 device'].wall / own, 1.4, least=True),
    timing.gate('share of matmul', work / own / (yard_flops / times['yard'].wall), share_of_yard, least=True),
    timing.gate('seconds to compile', made['ada, 2 devices'][1], 20, least=False),
  ]
  if 'torch grouped' in times:
    met.append(timing.gate('ada / torch grouped', own / times['torch grouped'].wall, torch_bound, least=False))
  return all(met)


def against_naive(setting: Setting, bound: float, rounds: int) -> bool:
  variants = {kind: make_step(setting, 1, kind)[0] for kind in ('ada', 'naive')}
  times = timing.interleave(variants, rounds=rounds, slow=('naive',))
  report(setting, times, 0.0)
  return timing.gate('naive / ada', times['naive'].wall / times['ada'].wall, bound, least=True)


def against_layers(setting: Setting, rounds: int) -> bool:
  """The composed tail of EDSR, compared with its layers one after the other."""
  made = [(kind, *make_step(setting, 2, kind)) for kind in ('ada', 'layers') * COMPILED]
  compiled = {kind: min(seconds for other, _, seconds in made if other == kind) for kind in ('ada', 'layers')}
  times = timing.interleave({kind: run for kind, run, _ in made}, rounds=rounds)
  report(setting, times, 0.0)
  met = [
    timing.gate('composed tail / layers', times['ada'].wall / times['layers'].wall, 0.75, least=False),
    timing.gate('the same, to compile', compiled['ada'] / compiled['layers'], 1.1, least=False),
  ]
  return all(met)


def line_search(rounds: int) -> bool:
  """The line search of a batch, compared with a step of three inner steps."""
  setting = TOY._replace(num_steps=3)
  rng = np.random.default_rng(0)
  images, other = (jnp.asarray(rng.uniform(size=(setting.batch_size, 32, 32, 3)), jnp.float32) for _ in range(2))
  search = jax.jit(functools.partial(ssim.line_search, min_ssim=0.3, root='strict'))
  times = timing.interleave(
    {'ada step': make_step(setting, 1, 'ada')[0], 'line search': lambda: search(images, other)}, rounds=rounds
  )
  report(setting, times, 0.0)
  return timing.gate('line search / step', times['line search'].wall / times['ada step'].wall, 0.02, least=False)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=9)
  rounds = parser.parse_args().rounds
  timing.settle('benchmarks.train_step', cores=2)
  jax.config.update('jax_num_cpu_devices', 2)
  met = [
    compare(TOY, 0.40, 1.2, rounds),
    compare(WIDE, 0.65, 1.0, rounds),
    against_naive(TOY_NAIVE, 5, rounds),
    against_naive(WIDE_NAIVE, 8, rounds),
    against_layers(PUBLISHED, rounds),
    line_search(rounds),
  ]
  sys.exit(0 if all(met) else 1)


if __name__ == '__main__':
  main()
