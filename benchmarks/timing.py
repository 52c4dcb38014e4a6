"""Shared by the benchmarks: interleaved timing, a matrix product as reference, and counts of operations.

Only ratios matter. Machines are shared and noisy, so every round times every variant once, in turn, and medians over
rounds are compared. The processor time of all threads is reported with the wall time; other programs disturb it less.
"""

from collections.abc import Callable, Mapping
import os
import statistics
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment.planning import operations


def settle(module: str, *, cores: int) -> None:
  """Restarts the process on this many cores, with huge pages and an allocator that keeps its memory.

  Fresh pages can cost more than the arithmetic, and which variant pays for them depends on the other variants of the
  round: on one virtual machine the same step took 240 ms alone and 340 ms with four others.
  """
  keep = ('arena_max=1', 'mmap_max=0', f'trim_threshold={2**36}')
  wanted = ':'.join(f'glibc.malloc.{setting}' for setting in ('hugetlb=1', *keep))
  if os.environ.get('GLIBC_TUNABLES') == wanted or not hasattr(os, 'sched_setaffinity'):
    return
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  os.execve(sys.executable, [sys.executable, '-m', module, *sys.argv[1:]], os.environ | {'GLIBC_TUNABLES': wanted})


class Timing(NamedTuple):
  """Seconds of one call, or medians over rounds."""

  wall: float
  cpu: float


def timed(variant: Callable[[], Any], calls: int = 1) -> Timing:
  """Times several consecutive calls, waiting only for the result of the last; returns the time per call."""
  time.sleep(0.05)  # idle threads of the previous variant may still spin
  wall, cpu = time.perf_counter(), time.process_time()
  for _ in range(calls):
    result = variant()
  jax.block_until_ready(result)
  return Timing((time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls)


def interleave(
  variants: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int = 1, slow: tuple[str, ...] = ()
) -> dict[str, Timing]:
  """Times one call of every variant.

  Args:
    variants: name -> function; the first call of each, which compiles, is not timed.
    rounds: of all variants in turn.
    calls: in each round, see `timed`.
    slow: variants that run in the first round only.
  """
  samples: dict[str, list[Timing]] = {name: [] for name in variants}
  for variant in variants.values():
    jax.block_until_ready(variant())
  for index in range(rounds):
    for name, variant in variants.items():
      if name in slow and index:
        continue
      samples[name].append(timed(variant, calls))
  return {
    name: Timing(*(statistics.median(values) for values in zip(*parts, strict=True))) for name, parts in samples.items()
  }


def yardstick(size: int = 1280) -> tuple[Callable[[], Any], float]:
  """Returns a float32 matrix product and its number of floating-point operations."""
  a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
  product = jax.jit(jnp.dot)
  return lambda: product(a, a), 2.0 * size**3


def flop(function: Callable, *args: Any) -> int:
  """Returns the FLOP of the convolutions and matrix products of `function`, including borders."""
  return operations.flop(jax.make_jaxpr(function)(*args).jaxpr)


def gate(name: str, value: float, bound: float, *, least: bool) -> bool:
  """Prints a ratio and its bound; returns whether it is met."""
  met = value >= bound if least else value <= bound
  print(f'{"ok  " if met else "MISS"} {name}: {value:.2f} ({"at least" if least else "at most"} {bound:g})', flush=True)
  return met
