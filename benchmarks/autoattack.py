"""The standard AutoAttack within an l_inf ball, compared with PyTorch's on the same weights, images and cores.

  python -m adversarial_augment.train --config=configs/linf_adversarial.py:quickstart --workdir=runs/linf
  python -m benchmarks.autoattack --workdir=runs/linf [--epsilon=E] [--images=256] [--rounds=1]

The classifier of a run, a pre-activation ResNet of basic blocks, is attacked by `evaluate --attack=autoattack` and by
pyautoattack. The two take turns stage by stage, each on its own survivors, after compilation. Prints seconds, ratios
and survivors, and exits with 1 if a bound is missed. Needs `pip install 'adversarial-augment[autoattack]'`; runs on all
usable cores, with huge pages (see timing.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
import statistics
import sys
import time
from typing import NamedTuple

import jax
import numpy as np

from adversarial_augment import classifiers, cli, datasets, inference
from adversarial_augment.attacks import suite_runner, suites
from adversarial_augment.attacks.suite_runner import Problem, Programs, Stage
from adversarial_augment.config import fields
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import robustness
from adversarial_augment.exporting import torch_layout
from adversarial_augment.parallel import devices, sharding
from benchmarks import timing
from benchmarks.timing import Timing

TRAIN = 'python -m adversarial_augment.train --config=configs/linf_adversarial.py:quickstart --workdir='
SUITE, NORM, EPSILON = 'autoattack', 'linf', 14 / 255  # 8 / 255 in training
LEAST_ROBUST = 0.25  # of the images; with fewer survivors, the later stages would cost nothing


class Ours:
  """The suite of `evaluate --attack=autoattack`."""

  def __init__(self, problem: Problem, programs: Programs, stages: tuple[Stage, ...]):
    self._problem, self._programs, self._stages = problem, programs, stages
    self.reset()

  def reset(self) -> None:
    self._found = suite_runner.start(self._problem, self._programs, len(self._stages))
    self._progress: Iterator = suite_runner.run(self._problem, self._programs, self._stages, self._found)

  def compile(self, index: int) -> float:
    """Compiles a stage; returns the seconds that it took."""
    start = time.perf_counter()
    for size in suite_runner.batch_sizes(self._programs):
      self._programs.compile(index, size)
    return time.perf_counter() - start

  def run(self, index: int) -> None:
    """Runs the next stage."""
    last = index, self._stages[index].attack.number - 1, 0
    while next(self._progress) != last:
      pass

  @property
  def robust(self) -> np.ndarray:
    return self._found.broken_in == suite_runner.ALIVE


class Pair(NamedTuple):
  """Of a stage."""

  ours: Timing
  theirs: Timing
  survivors: tuple[int, int]


def restore(workdir: Path, num_images: int, epsilon: float) -> tuple[robustness.Classifier, Problem, int]:
  """Returns the classifier of a run, the images to attack, and the depth of the network.

  Raises:
    UserError: there is no such run, or there are fewer images.
  """
  try:
    config = inference.read_config(workdir)
  except UserError as error:
    raise UserError(f'{error} Train one with: {TRAIN}{workdir}') from None
  test = datasets.load(config.dataset, 'test', config.data_dir)
  if num_images > test.num_examples:
    raise UserError(f'--images={num_images} must be at most {test.num_examples}, the test images of {test.name}.')
  devices.virtual_devices(devices.usable_cores())
  mesh = sharding.data_mesh()
  classifier, _ = robustness.restore(config, workdir, test, mesh)
  attacked = test._replace(num_examples=num_images)
  return classifier, robustness.problem(attacked, NORM, epsilon), config.classifier.depth


def main(argv: Sequence[str]) -> int:
  parser = cli.Parser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=Path, required=True, help='working directory of a run')
  parser.add_argument('--epsilon', type=fields.parse_fraction, default=EPSILON)
  parser.add_argument('--images', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=1, help='repetitions; medians are printed')
  arguments = parser.parse_args(argv)
  for flag in ('images', 'rounds'):
    if getattr(arguments, flag) < 1:
      raise UserError(f'--{flag}={getattr(arguments, flag)} must be at least 1.')
  timing.settle('benchmarks.autoattack', cores=devices.usable_cores())
  import torch

  from benchmarks import torch_autoattack

  torch.set_num_threads(devices.usable_cores())
  classifier, problem, depth = restore(arguments.workdir, arguments.images, arguments.epsilon)
  variables = jax.device_get((classifier.state.params, classifier.state.model_state))
  theirs = torch_autoattack.Reference(torch_layout.state_dict(*variables), depth, problem)
  logits = classifiers.logits_fn(classifier.reference, *variables)(problem.images)
  np.testing.assert_allclose(theirs.logits(), logits, rtol=1e-3, atol=1e-3, err_msg='not the same classifier')
  num_classes = robustness.num_classes_of(classifier, problem.images)
  stages = suites.stages(SUITE, norm=NORM, epsilon=problem.epsilon, num_classes=num_classes)
  ours = Ours(problem, robustness.programs(classifier, stages, problem), stages)
  cores, version = torch.get_num_threads(), f'jax {jax.__version__}, torch {torch.__version__}'
  print(f'{arguments.images} images, epsilon {problem.epsilon:g}, {cores} cores, {version}')
  print(f'correct without an attack: {ours.robust.sum()} / {theirs.robust.sum()}, ours / theirs')

  compiled = [ours.compile(index) for index in range(len(stages))]
  for stage in stages:
    theirs.warm_up(stage.name)
  pairs: list[list[Pair]] = [[] for _ in stages]
  for number in range(arguments.rounds):
    ours.reset()
    theirs.reset()
    for index, stage in enumerate(stages):
      runs = {'ours': lambda index=index: ours.run(index), 'theirs': lambda name=stage.name: theirs.run(name)}
      order = list(runs) if (number + index) % 2 == 0 else list(runs)[::-1]
      times = {name: timing.timed(runs[name]) for name in order}
      pairs[index].append(Pair(**times, survivors=(int(ours.robust.sum()), int(theirs.robust.sum()))))
      print(f'  {stage.name}: {times["ours"].wall:.1f} s and {times["theirs"].wall:.1f} s', file=sys.stderr, flush=True)
  return 0 if report(stages, compiled, pairs, arguments.images) else 1


def report(stages: tuple[Stage, ...], compiled: list[float], pairs: list[list[Pair]], num_images: int) -> bool:
  """Prints the stages, medians over rounds; returns whether the bounds are met."""
  print(f'\n{"":<10}{"ours":>10}{"cpu":>8}{"theirs":>10}{"cpu":>8}{"left":>12}{"compiled":>12}')
  seconds = np.array([np.median([[*p.ours, *p.theirs] for p in stage_pairs], axis=0) for stage_pairs in pairs])
  left = [' / '.join(map(str, stage_pairs[-1].survivors)) for stage_pairs in pairs]
  names = [stage.name for stage in stages]
  for name, row, images, compile_seconds in zip(
    [*names, 'total'], [*seconds, seconds.sum(0)], [*left, ''], [*compiled, sum(compiled)], strict=True
  ):
    own, own_cpu, other, other_cpu = row
    print(
      f'{name:<10}{own:8.1f} s{own_cpu:8.1f}{other:8.1f} s{other_cpu:8.1f}{images:>12}{compile_seconds:10.1f} s',
      flush=True,
    )
  print()
  robust = min(min(pair.survivors) for pair in pairs[-1]) / num_images
  met = [timing.gate('share of images that survive', robust, LEAST_ROBUST, least=True)]
  for name, stage_pairs in zip(names, pairs, strict=True):
    ratio = statistics.median(pair.ours.wall / pair.theirs.wall for pair in stage_pairs)
    met.append(timing.gate(f'{name}, ours / theirs', ratio, 1.3, least=False))
  total = seconds[:, 0].sum() / seconds[:, 2].sum()
  met.append(timing.gate('total, ours / theirs', total, 1, least=False))
  print(f'theirs / ours: {1 / total:.2f} (the goal is 1.5)')
  return all(met)


if __name__ == '__main__':
  cli.run(main)
