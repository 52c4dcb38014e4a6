"""Estimates memory and time on TPUs or GPUs that you do not have: python -m adversarial_augment.plan --topology=v5e:2x4

The train step of a config is compiled ahead of time by the compiler of these devices, which runs on any CPU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
import functools
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from adversarial_augment import cli, datasets
from adversarial_augment import config as configs
from adversarial_augment.cli import progress, streams
from adversarial_augment.config import adversaries, command_line, published
from adversarial_augment.datasets import sampling
from adversarial_augment.errors import UserError
from adversarial_augment.planning import targets
from adversarial_augment.planning.targets import Target
from adversarial_augment.storage import artifact, files
from adversarial_augment.types import Dataset

_DESCRIPTION = """Estimates whether a config fits on TPUs or GPUs that you do not have, and how long a step takes, by
compiling the train step on any CPU. Nothing is trained, and no device is used.

Times on a TPU are the cycles that its compiler expects. Times on a GPU are the least that the bytes and operations of
each kernel take, so a real card is slower. Evaluations are not included."""

_EPILOG = f"""examples:
  python -m adversarial_augment.plan --config=configs/ada_edsr.py --topology=v5e:2x4
  python -m adversarial_augment.plan --config=configs/ada_edsr.py:laptop --topology=h100 --output=plan.json
  python -m adversarial_augment.plan --config=configs/ada_edsr.py --topology=h100:8 --config.precision=bfloat16

topologies: {targets.EXAMPLES}; for TPUs the sides of the slice, for GPUs their number.

exit codes: 0 planned, whether it fits or not; 2 wrong input, or no such compiler."""

if TYPE_CHECKING:
  from adversarial_augment.planning.compiling import Estimate


class Plan(NamedTuple):
  """The estimate of a config on given devices."""

  config: ConfigDict
  target: Target
  devices: int
  num_steps: int
  spared_steps: int  # of these, those without the adversary
  flop: int  # per step, over all devices
  estimate: 'Estimate'  # for one step with the adversary

  @property
  def seconds(self) -> float | None:
    """Of a step; None if the compiler rejected it, as for what follows from it."""
    return self.estimate.step and self.estimate.step.seconds

  @property
  def hours(self) -> float | None:
    return self.seconds and self.num_steps * self.seconds / 3600

  @property
  def share_of_peak(self) -> float | None:
    peak = self.devices * self.target.chip.peak_of(self.config.precision)
    return self.seconds and self.flop / (peak * self.seconds)

  @property
  def memory(self) -> str:
    found = self.estimate
    verdict = 'fits' if found.fits else 'does not fit'
    return f'{verdict}: {found.bytes_needed / 1e9:.2f} of {found.bytes_available / 1e9:.2f} GB on each device'


def main(argv: Sequence[str]) -> None:
  """Runs the command line; see `--help`."""
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  config = configs.override(configs.load(arguments.config), overrides)
  configs.validate(config)
  config = configs.follow(config)
  for name, sets in (('JAX_NUM_CPU_DEVICES', ''), ('XLA_FLAGS', 'xla_force_host_platform_device_count')):
    if (value := os.environ.get(name)) and sets in value:
      raise UserError(f'{name}={value} sets the number of CPU devices, but --topology names those of a plan; unset it.')
  with _about(f'--topology={arguments.topology}'):
    target = targets.target(arguments.topology)
  output = None if arguments.output is None else files.output_file(arguments.output, '--output')
  dataset, assumed = _images(config)
  targets.prepare_environment()
  with progress.stage('loading JAX'):
    from adversarial_augment.planning import compiling
    from adversarial_augment.training import builders
  builders.check_adversary(config, dataset.image_shape)
  with _about(f'--topology={arguments.topology}'):
    mesh = compiling.mesh_of(target)
  builders.check_parts(config, mesh.size)
  planned = functools.partial(_planned, dataset=dataset, target=target, mesh=mesh)
  plan = planned(config)
  for line in _lines(plan, assumed):
    print(line, flush=True)
  if output is not None:
    artifact.write_json(output, _facts(plan))
    print(f'Wrote {output}', flush=True)
  if not plan.estimate.fits:
    for flags, found in _smaller(plan, planned):
      fitting = f'{found.memory}, {found.seconds:.4g} s per step' if found else 'does not fit either'
      print(_line('try', f'{flags}: {fitting}'), flush=True)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog='python -m adversarial_augment.plan', description=_DESCRIPTION, epilog=_EPILOG)
  parser.add_argument('--config', required=True, metavar='PATH.py[:VARIANT]', help='config file of `train`')
  parser.add_argument('--config.FIELD', dest='_', metavar='VALUE', help='override a field of the config')
  parser.add_argument('--topology', required=True, metavar='CHIP[:SIZE]', help='devices, such as v5e:2x4 or h100:8')
  parser.add_argument('--output', metavar='FILE', help='also write the plan as JSON')
  return parser


@contextmanager
def _about(flag: str) -> Iterator[None]:
  try:
    yield
  except UserError as error:
    raise UserError(f'{flag}: {error}') from error


def _images(config: ConfigDict) -> tuple[Dataset, str]:
  """Returns number and size of the training images, which need not be there if published, and what was assumed."""
  if known := published.find(config.dataset):
    count, classes, side = known.num_train, known.num_classes, known.side
    note = f'assuming {known.title}: {count:,} images of {side} x {side}, {classes} classes'
    if config.deepaugment.sets:
      note += '; nor need DeepAugment sets, whose images take the place of some'
    read: Any = None  # nothing is read
    dataset = Dataset(config.dataset, count, classes, (side, side, 3), read, {})
  else:
    dataset, note = datasets.load(config.dataset, 'train', config.data_dir), ''
  if config.holdout:
    dataset = sampling.holdout(dataset, config.holdout)[0]
  return dataset, note


def _planned(config: ConfigDict, dataset: Dataset, target: Target, mesh: Any) -> Plan:
  """Compiles the step of a checked config; of `dataset`, only number and size of the images are used."""
  from adversarial_augment import per_example_conv
  from adversarial_augment.attacks import ascent
  from adversarial_augment.planning import compiling, operations
  from adversarial_augment.training import recipe as recipes
  from adversarial_augment.training import train_step

  size, microbatch = config.batch_size, config.attack.microbatch
  parts = f', {microbatch} per device attacked at a time' if microbatch else ''
  streams.say(f'compiling the train step of {size:,} images{parts} for {mesh.size} x {target.chip.title}...')
  recipe, phi = recipes.build(config, dataset, mesh)
  traced = train_step.traced(recipe, phi, dataset.image_shape)
  plain = train_step.traced(*recipes.build(config, dataset, mesh, conv=per_example_conv.conv), dataset.image_shape)
  found = compiling.estimate(traced, target, precision=config.precision, inner_loop=ascent.SCOPE)
  attacked = recipes.attacked_steps(recipe.num_steps, recipe.warmup_steps, recipe.every)
  spared = recipe.num_steps - attacked if recipe.attack else 0
  flop = operations.flop(plain.jaxpr.jaxpr)
  return Plan(config, target, mesh.size, recipe.num_steps, spared, flop, found)


def _smaller(plan: Plan, planned: Callable[[ConfigDict], Plan]) -> Iterator[tuple[str, Plan | None]]:
  """Yields the nearest settings that fit if a plan does not, after compiling them: fewer images, or smaller parts.

  Each is the flags and their plan; None if even the smallest does not fit.
  """
  from adversarial_augment import attacks

  attack, each = plan.config.attack, plan.config.batch_size // plan.devices
  yield from _largest(plan, each, planned, lambda images: {'batch_size': images * plan.devices})
  if attack.name in adversaries.ADVERSARIES and attack.beta_mode != 'batch':
    whole = attack.microbatch or attacks.attacked_images(attack.fraction, each)
    in_parts = lambda part: {'attack.batch_norm': 'running', 'attack.microbatch': part}
    yield from _largest(plan, whole, planned, in_parts)


def _largest(
  plan: Plan, whole: int, planned: Callable[[ConfigDict], Plan], fields: Callable[[int], Mapping[str, Any]]
) -> Iterator[tuple[str, Plan | None]]:
  """Yields the flags and the plan of the largest number below `whole` whose `fields` fit."""
  from adversarial_augment.planning import compiling
  from adversarial_augment.training import builders

  def changed(number: int) -> ConfigDict:
    config = configs.override(plan.config, {name: str(value) for name, value in fields(number).items()})
    configs.validate(config)
    builders.check_parts(config, plan.devices)
    return config

  def allowed(number: int) -> bool:
    try:
      config = changed(number)
    except UserError:
      return False
    microbatch = config.attack.microbatch
    return not microbatch or builders.training_split(config, plan.devices).at_a_time == microbatch

  plans: dict[int, Plan] = {}

  def tried(number: int) -> 'Estimate':
    plans[number] = planned(changed(number))
    return plans[number].estimate

  found = compiling.largest(whole, plan.estimate, tried, allowed)
  if plans:
    number = found[0] if found else min(plans)
    flags = ' '.join(f'--config.{name}={value}' for name, value in fields(number).items())
    yield flags, plans[number] if found else None


def _lines(plan: Plan, assumed: str) -> Iterator[str]:
  size, found, target = plan.config.batch_size, plan.estimate, plan.target
  yield f'{plan.devices} x {target.chip.title}, {size:,} images per step, {size // plan.devices:,} on each; estimated:'
  yield _line('memory', plan.memory)
  if found.step is not None:
    hours = plan.hours or 0.0
    duration = f'{hours:.3g} hours' if hours >= 0.1 else f'{3600 * hours:.3g} seconds'
    spared = f'; {plan.spared_steps:,} of them, without the adversary, take less' if plan.spared_steps else ''
    peak = {'float32': 'TF32' if target.is_gpu else 'bfloat16'}.get(plan.config.precision, plan.config.precision)
    of = [f'{count:,.0f} {name} ({size / 1e6:,.1f} MB)' for name, count, size in found.step.collectives]
    yield _line('step', f'{found.step.seconds:.4g} s' + _inner(plan))
    yield _line('the run', f'{plan.num_steps:,} steps, {duration} without evaluations{spared}')
    yield _line('work', f'{plan.flop / 1e12:.4g} TFLOP per step, {plan.share_of_peak or 0:.2%} of the {peak} peak')
    yield _line('collectives', (', '.join(of) or 'none') + (' per step' if of else ''))
  yield _line('compiled in', f'{found.compile_seconds:.0f} s')
  yield _line('source', _source(target))
  if assumed:
    yield _line('data', assumed)


def _line(name: str, text: str) -> str:
  return f'  {name:<12} {text}'


def _inner(plan: Plan) -> str:
  inner = plan.estimate.inner_step
  if inner is None:
    return ''
  kernels = f'{inner.kernels:,.0f} kernels, {inner.bytes / 1e9:.4g} GB'
  return f', {plan.config.attack.num_steps} inner steps of {inner.seconds:.4g} s ({kernels})'


def _source(target: Target) -> str:
  if target.is_gpu:
    single = f'{target.chip.single / 1e12:.0f} in float32 (TF32)'
    return (
      f"kernels of XLA's GPU compiler at {target.chip.bandwidth / 1e12:.2f} TB/s and {target.chip.peak / 1e12:.0f} "
      f'TFLOP/s, {single}: a lower bound'
    )
  cores = '; of a v4, each core is a device: where one device is a chip, there are half as many, twice as large'
  source = f'the cycles that the TPU compiler expects, at {target.chip.clock / 1e9:.2f} GHz; nothing overlaps'
  return source + (cores if target.name.startswith('v4') else '')


def _facts(plan: Plan) -> dict[str, Any]:
  """Returns the plan for JSON; null where the compiler rejected it, or without a loop of inner steps."""
  found = plan.estimate
  step, inner = found.step, found.inner_step
  return {
    'topology': plan.target.name,
    'devices': plan.devices,
    'batch_size': plan.config.batch_size,
    'fits': found.fits,
    'bytes_needed': found.bytes_needed,
    'bytes_available': found.bytes_available,
    'seconds_per_step': plan.seconds,
    'seconds_per_inner_step': inner and inner.seconds,
    'hours': plan.hours,
    'flop_per_step': plan.flop,
    'share_of_peak': plan.share_of_peak,
    'collectives': step and {name: {'count': count, 'bytes': size} for name, count, size in step.collectives},
    'kernels_per_inner_step': inner and inner.kernels,
    'bytes_per_inner_step': inner and inner.bytes,
    'compile_seconds': found.compile_seconds,
    'source': _source(plan.target),
  }


if __name__ == '__main__':
  cli.run(main, kept='nothing was written; run the same command again')
