"""Compiles a traced program for devices that this machine does not have, and adds up the compiler's figures."""

from collections.abc import Callable
import functools
import math
import re
import time
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh
import numpy as np

from adversarial_augment.cli import signals
from adversarial_augment.parallel import sharding
from adversarial_augment.planning import targets
from adversarial_augment.planning.program import Cost, Operation, Program
from adversarial_augment.planning.targets import Chip, Target

_TRIES = 4  # compilations to find the largest batch that fits
# Without a card, autotuning is impossible and some tilings cannot be chosen.
_GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False, 'xla_gpu_autotune_level': 0}


class Estimate(NamedTuple):
  """The compiler's figures for a program."""

  bytes_needed: int  # on each device
  bytes_available: int
  compile_seconds: float
  step: Cost | None  # of the program; None: the compiler rejected it
  inner_step: Cost | None  # one iteration of the inner loop, over all images; None: rejected, or there is no such loop

  @property
  def fits(self) -> bool:
    return self.step is not None and self.bytes_needed <= self.bytes_available


def mesh_of(target: Target) -> Mesh:
  """Returns the mesh over a target's devices; see `targets.devices`."""
  return Mesh(np.array(targets.devices(target)), (sharding.AXIS,), axis_types=(AxisType.Auto,))


def estimate(traced: jax.stages.Traced, target: Target, *, precision: str, inner_loop: str) -> Estimate:
  """Compiles a program that was traced for a target's mesh, with products in `precision`.

  The loop with the scope `inner_loop` is reported separately.
  """
  start = time.monotonic()
  try:
    with signals.at_once():
      compiled = traced.lower().compile(_GPU_OPTIONS if target.is_gpu else None)
  except jax.errors.JaxRuntimeError as error:
    refused = _too_much(str(error))
    if refused is None:
      raise
    return Estimate(*refused, time.monotonic() - start, None, None)
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  parts = ('argument', 'output', 'temp', 'generated_code')
  needed = sum(getattr(memory, f'{part}_size_in_bytes') for part in parts) - memory.alias_size_in_bytes
  seconds_of = functools.partial(_seconds, chip=target.chip, precision=precision)
  program = Program(compiled.as_text(), seconds_of)
  inner = next((loop for loop in program.loops if loop.name.endswith(f'/{inner_loop}/while')), None)
  return Estimate(needed, target.available, seconds, program.cost, inner and inner.once.times(inner.runs))


def _seconds(operation: Operation, moved: int, flop: int, chip: Chip, precision: str) -> float:
  """Returns the seconds of a kernel: the TPU compiler's cycles, or the least that its bytes and FLOP take."""
  if chip.gpu:
    return max(moved / chip.bandwidth, flop / chip.peak_of(precision))
  if cycles := re.search(r'"estimated_cycles":"(\d+)"', operation.attributes):
    return int(cycles[1]) / chip.clock
  if operation.opcode == 'custom-call':  # such as a Pallas kernel, which the compiler knows nothing about
    return max(moved / chip.bandwidth, flop / (chip.peak / 4))
  return 0.0


def _too_much(message: str) -> tuple[int, int] | None:
  """Returns the needed and the available bytes from an out-of-memory error; None for other errors."""
  found = re.search(r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm', message) or re.search(
    r'memory required .* \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)', message
  )
  in_bytes = lambda number, unit: round(float(number) * 1024 ** ' KMGT'.index(unit or ' '))
  return (in_bytes(found[1], found[2]), in_bytes(found[3], found[4])) if found else None


def largest(
  whole: int, refused: Estimate, tried: Callable[[int], Estimate], allowed: Callable[[int], bool]
) -> tuple[int, Estimate] | None:
  """Returns approximately the largest number of images that fits, with its estimate; None if none was found.

  Args:
    whole: the number that does not fit.
    refused: its estimate.
    tried: compiles for a number, and returns its estimate.
    allowed: whether a number may be tried.
  """
  above, other = (whole, refused.bytes_needed), (0, 0)  # memory is roughly linear
  found: tuple[int, Estimate] | None = None
  for left in reversed(range(_TRIES)):
    slope = (above[1] - other[1]) / (above[0] - other[0])
    guess = math.floor(above[0] - (above[1] - refused.bytes_available) / slope) if slope > 0 and left else 1
    guess, least = min(guess, above[0] - 1), found[0] if found else 0
    nearest = [*range(guess, least, -1), *(() if found else range(max(guess, 0) + 1, above[0]))]
    images = next(filter(allowed, nearest), None)
    if images is None:
      break
    tried_now = tried(images)
    point = images, tried_now.bytes_needed
    if tried_now.fits:
      found, other = (images, tried_now), point
    else:
      above, other = point, other if found else above
  return found
