"""Compiles a traced program for devices that are not there, and adds up what the compiler says of it."""

from collections.abc import Callable
import math
import re
import time
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh
import numpy as np

from adversarial_augment import sharding, signals
from adversarial_augment.planning import operations, targets
from adversarial_augment.planning.program import Cost, Operation, Program
from adversarial_augment.planning.targets import Target

_TRIES = 4  # programs that are compiled to find the largest batch that fits
# Without a card there is nothing to tune on, and some tilings cannot be chosen.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False, 'xla_gpu_autotune_level': 0}


class Estimate(NamedTuple):
  """What the compiler says of a program."""

  bytes_needed: int  # on each device
  bytes_available: int
  compile_seconds: float
  flop: int  # on all devices
  step: Cost | None  # of the program; None: it does not fit, and there is none
  inner_step: Cost | None  # of the loop that was asked for, once; None: also where there is no such loop

  @property
  def fits(self) -> bool:
    return self.bytes_needed <= self.bytes_available


def mesh_of(target: Target) -> Mesh:
  """Returns the mesh over a target's devices.

  Raises:
    UserError: see `targets.devices`.
  """
  return Mesh(np.array(targets.devices(target)), (sharding.AXIS,), axis_types=(AxisType.Auto,))


def estimate(traced: jax.stages.Traced, target: Target, *, half: bool, inner_loop: str) -> Estimate:
  """Compiles a program that was traced for a target's mesh.

  Args:
    traced: the program.
    target: the devices.
    half: products are of bfloat16.
    inner_loop: scope of the loop that is wanted by itself.
  """
  start = time.monotonic()
  flop = operations.flop(traced.jaxpr.jaxpr)
  try:
    with signals.at_once():
      compiled = traced.lower().compile(_GPU_OPTIONS if target.is_gpu else None)
  except jax.errors.JaxRuntimeError as error:
    refused = _too_much(str(error))
    if refused is None:
      raise
    return Estimate(*refused, time.monotonic() - start, flop, None, None)
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  needed = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  program = Program(compiled.as_text(), lambda operation, moved, flop: _seconds(operation, moved, flop, target, half))
  inner = next((loop for loop in program.loops if f'/{inner_loop}/' in f'{loop.name}/'), None)
  return Estimate(needed, target.available, seconds, flop, program.cost, inner and inner.once)


def _seconds(operation: Operation, moved: int, flop: int, target: Target, half: bool) -> float:
  """Returns the seconds of a kernel: the TPU compiler's cycles, or the least that its bytes and FLOP take."""
  chip = target.chip
  if target.is_gpu:
    return max(moved / chip.bandwidth, flop / (chip.peak if half else chip.single))
  if cycles := re.search(r'"estimated_cycles":"(\d+)"', operation.attributes):
    return int(cycles[1]) / chip.clock
  if operation.opcode == 'custom-call':  # such as a Pallas kernel, of which the compiler knows nothing
    return max(moved / chip.bandwidth, flop / (chip.peak / 4))
  return 0.0


def _too_much(message: str) -> tuple[int, int] | None:
  """Returns the bytes that a program needs and those that there are, from a refusal; None where it is another one."""
  found = re.search(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', message)
  in_bytes = lambda number, unit: round(float(number) * 1024 ** ' KMGT'.index(unit or ' '))
  return (in_bytes(found[1], found[2]), in_bytes(found[3], found[4])) if found else None


def largest(whole: int, refused: Estimate, tried: Callable[[int], Estimate]) -> tuple[int, Estimate] | None:
  """Returns about the largest number of images on a device that fits, with its estimate; each guess is compiled.

  Args:
    whole: the number that does not fit.
    refused: its estimate.
    tried: number -> its estimate.

  Returns:
    None where not even one image fits.
  """
  above, other = (whole, refused.bytes_needed), (0, 0)  # memory is about a straight line through both
  found: tuple[int, Estimate] | None = None
  for _ in range(_TRIES):
    slope = (above[1] - other[1]) / (above[0] - other[0])
    images = math.floor(above[0] - (above[1] - refused.bytes_available) / slope) if slope > 0 else 1
    if found is None:
      images = min(max(images, 1), above[0] - 1)
    elif not found[0] < images < above[0]:
      break
    tried_now = tried(images)
    point = images, tried_now.bytes_needed
    if tried_now.fits:
      found, other = (images, tried_now), point
    elif images == 1:
      break
    else:
      above, other = point, other if found else above
  return found
