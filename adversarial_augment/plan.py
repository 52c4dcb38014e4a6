"""Estimates memory and time on TPUs or GPUs that you do not have: python -m adversarial_augment.plan --topology=v5e:2x4

The train step of a config is compiled ahead of time by the compiler of these devices, which runs on any CPU.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from adversarial_augment import cli, datasets
from adversarial_augment import config as configs
from adversarial_augment.cli import progress, streams
from adversarial_augment.config import adversaries, command_line
from adversarial_augment.datasets import cifar10, sampling
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

_OF_CPUS = ('JAX_NUM_CPU_DEVICES', 'xla_force_host_platform_device_count')


class Plan(NamedTuple):
  """The estimate of a config on given devices."""

  config: ConfigDict
  devices: int
  num_steps: int
  warmup_steps: int  # of these, those without the adversary
  flop: int  # per step, over all devices
  estimate: 'Estimate'  # for one step with the adversary


def main(argv: Sequence[str]) -> None:
  """Runs the command line; see `--help`."""
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  for flag in ('config', 'topology'):
    if not getattr(arguments, flag):
      raise UserError(f'--{flag} is missing; see python -m adversarial_augment.plan --help.')
  config = configs.override(configs.load(arguments.config), overrides)
  configs.validate(config)
  _check_environment()
  target = targets.target(arguments.topology)
  output = None if arguments.output is None else files.output_file(arguments.output, '--output')
  dataset, assumed = _images(config)
  targets.prepare_environment()
  with progress.stage('loading JAX'):
    from adversarial_augment.planning import compiling
    from adversarial_augment.training import builders
  builders.check_adversary(config, dataset.image_shape)
  mesh = compiling.mesh_of(target)
  builders.check_parts(config, mesh.size)
  planned = functools.partial(_planned, dataset=dataset, target=target, mesh=mesh)
  plan = planned(config)
  for line in _lines(plan, target, assumed):
    print(line, flush=True)
  if output is not None:
    artifact.write_json(output, _facts(plan, target))
    print(f'Wrote {output}', flush=True)
  if not plan.estimate.fits:
    for flags, found in _smaller(plan, planned):
      print(_line('try', f'{flags}: {_fitting(found)}'), flush=True)


def _parser() -> cli.Parser:
  parser = cli.Parser(prog='python -m adversarial_augment.plan', description=_DESCRIPTION, epilog=_EPILOG)
  parser.add_argument('--config', metavar='PATH.py[:VARIANT]', help='config file of `train`; required')
  parser.add_argument('--config.FIELD', dest='_', metavar='VALUE', help='override a field of the config')
  parser.add_argument('--topology', metavar='CHIP[:SIZE]', help='devices, such as v5e:2x4 or h100:8; required')
  parser.add_argument('--output', metavar='FILE', help='also write the plan as JSON')
  parser.add_argument('--debug', action='store_true', help='show tracebacks')
  return parser


def _check_environment() -> None:
  """Refuses settings for the number of CPU devices, which would have no effect on a plan."""
  if os.environ.get(_OF_CPUS[0]) or _OF_CPUS[1] in os.environ.get('XLA_FLAGS', ''):
    name = _OF_CPUS[0] if os.environ.get(_OF_CPUS[0]) else 'XLA_FLAGS'
    raise UserError(
      f'{name}={os.environ[name]} sets the number of CPU devices, but --topology names the devices of a plan; unset it.'
    )


def _images(config: ConfigDict) -> tuple[Dataset, str]:
  """Returns number and size of the training images, and a note of assumptions; CIFAR-10 need not be prepared."""
  if config.dataset.partition(':')[0] == 'cifar10':
    count, note = cifar10.COUNTS['train'], 'assuming CIFAR-10: 50,000 images of 32 x 32, 10 classes'
    if config.deepaugment.sets:
      note += '; nor need DeepAugment sets, whose images take the place of some'
    read: Any = None  # nothing is read
    dataset = Dataset('cifar10', count, len(cifar10.CLASS_NAMES), (32, 32, 3), read, {})
  else:
    dataset, note = datasets.load(config.dataset, 'train', config.data_dir), ''
  if config.holdout:
    dataset = sampling.holdout(dataset, config.holdout)[0]
  return dataset, note


def _planned(config: ConfigDict, dataset: Dataset, target: Target, mesh: Any) -> Plan:
  """Compiles the step of a checked config.

  Args:
    config: of `train`.
    dataset: the training images; only their number and size are used.
    target: the devices.
    mesh: over them.
  """
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
  warmup, flop = recipe.warmup_steps if recipe.attack else 0, operations.flop(plain.jaxpr.jaxpr)
  return Plan(config, mesh.size, recipe.num_steps, warmup, flop, found)


def _smaller(plan: Plan, planned: Callable[[ConfigDict], Plan]) -> Iterator[tuple[str, Plan | None]]:
  """Yields the nearest settings that fit if a plan does not, after compiling them.

  Args:
    plan: that does not fit.
    planned: config -> its plan.

  Yields:
    The flags and their plan; None if even the smallest does not fit.
  """
  from adversarial_augment import attacks
  from adversarial_augment.planning import compiling
  from adversarial_augment.training import builders

  config, each = plan.config, plan.config.batch_size // plan.devices
  fewer = lambda images: _with(config, {'batch_size': images * plan.devices})

  def can_be(make: Callable[[int], ConfigDict], number: int) -> bool:
    try:
      builders.check_parts(make(number), plan.devices)
    except UserError:
      return False
    return True

  plans: dict[int, Plan] = {}
  estimate = lambda images: plans.setdefault(images, planned(fewer(images))).estimate
  found = compiling.largest(each, plan.estimate, estimate, functools.partial(can_be, fewer))
  if plans:
    images = found[0] if found else min(plans)
    yield f'--config.batch_size={images * plan.devices}', plans[images] if found else None
  attack = config.attack
  if attack.name not in adversaries.ADVERSARIES or attack.beta_mode == 'batch':
    return
  split = lambda part: _with(config, {'attack.batch_norm': 'running', 'attack.microbatch': part})
  whole = attack.microbatch or attacks.attacked_images(attack.fraction, each)
  parts = [part for part in range(whole - 1, 0, -1) if can_be(split, part)]
  share = plan.estimate.bytes_available / plan.estimate.bytes_needed
  for part in parts:
    if part > max(parts[-1], whole * share):
      continue
    tried = planned(split(part))
    if tried.estimate.fits or part == parts[-1]:
      flags = f'--config.attack.batch_norm=running --config.attack.microbatch={part}'
      yield flags, tried if tried.estimate.fits else None
      return


def _with(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Returns a checked copy of a config with other values."""
  changed = configs.override(config, {name: str(value) for name, value in values.items()})
  configs.validate(changed)
  return changed


def _lines(plan: Plan, target: Target, assumed: str) -> Iterator[str]:
  size, found = plan.config.batch_size, plan.estimate
  yield f'{plan.devices} x {target.chip.title}, {size:,} images per step, {size // plan.devices:,} on each; estimated:'
  yield _line('memory', _memory(plan))
  if found.step is not None:
    yield _line('step', f'{found.step.seconds:.4g} s' + _inner(plan))
    warmup = f'; its first {plan.warmup_steps:,} steps, without the adversary, take less' if plan.warmup_steps else ''
    yield _line('the run', f'{plan.num_steps:,} steps, {_duration(plan)} without evaluations{warmup}')
    peak = {'float32': 'TF32' if target.is_gpu else 'bfloat16'}.get(plan.config.precision, plan.config.precision)
    yield _line('work', f'{plan.flop / 1e12:.4g} TFLOP per step, {_share(plan, target):.2%} of the {peak} peak')
    of = [f'{count:,.0f} {name} ({size / 1e6:,.1f} MB)' for name, count, size in found.step.collectives]
    yield _line('collectives', (', '.join(of) or 'none') + (' per step' if of else ''))
  yield _line('compiled in', f'{found.compile_seconds:.0f} s')
  yield _line('source', _source(target))
  if assumed:
    yield _line('data', assumed)


def _line(name: str, text: str) -> str:
  return f'  {name:<12} {text}'


def _memory(plan: Plan) -> str:
  found = plan.estimate
  verdict = 'fits' if found.fits else 'does not fit'
  return f'{verdict}: {found.bytes_needed / 1e9:.2f} of {found.bytes_available / 1e9:.2f} GB on each device'


def _inner(plan: Plan) -> str:
  inner = plan.estimate.inner_step
  if inner is None:
    return ''
  kernels = f'{inner.kernels:,.0f} kernels, {inner.bytes / 1e9:.4g} GB'
  return f', {plan.config.attack.num_steps} inner steps of {inner.seconds:.4g} s ({kernels})'


def _fitting(plan: Plan | None) -> str:
  if plan is None or plan.estimate.step is None:
    return 'does not fit either'
  return f'{_memory(plan)}, {plan.estimate.step.seconds:.4g} s per step'


def _hours(plan: Plan) -> float:
  assert plan.estimate.step is not None
  return plan.num_steps * plan.estimate.step.seconds / 3600


def _duration(plan: Plan) -> str:
  hours = _hours(plan)
  return f'{hours:.3g} hours' if hours >= 0.1 else f'{3600 * hours:.3g} seconds'


def _share(plan: Plan, target: Target) -> float:
  assert plan.estimate.step is not None
  peak = target.chip.peak_of(plan.config.precision)
  return plan.flop / (plan.devices * peak * plan.estimate.step.seconds)


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


def _facts(plan: Plan, target: Target) -> dict[str, Any]:
  """Returns the plan for JSON; null where the compiler rejected it, or without a loop of inner steps."""
  found = plan.estimate
  step, inner = found.step, found.inner_step
  return {
    'topology': target.name,
    'devices': plan.devices,
    'batch_size': plan.config.batch_size,
    'fits': found.fits,
    'bytes_needed': found.bytes_needed,
    'bytes_available': found.bytes_available,
    'seconds_per_step': step and step.seconds,
    'seconds_per_inner_step': inner and inner.seconds,
    'hours': step and _hours(plan),
    'flop_per_step': plan.flop,
    'share_of_peak': step and _share(plan, target),
    'collectives': step and {name: {'count': count, 'bytes': size} for name, count, size in step.collectives},
    'kernels_per_inner_step': inner and inner.kernels,
    'bytes_per_inner_step': inner and inner.bytes,
    'compile_seconds': found.compile_seconds,
    'source': _source(target),
  }


if __name__ == '__main__':
  cli.run(main, kept='nothing was written; run the same command again')
