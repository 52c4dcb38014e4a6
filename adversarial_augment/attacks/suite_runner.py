"""A sequence of attacks from the host: each restart only on the images that no attack before it has broken.

The survivors are compacted into batches of two sizes, so that a stage compiles at most twice. Whatever a restart
returns is checked again by a program of its own, of one batch size: an image counts as broken only if that agrees.
Where it does not, because the attacked copy computes in bfloat16, the restart is repeated with the network in float32.
"""

from collections.abc import Callable, Iterator, Sequence
import time
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment.attacks.lp_ball import NORMS
from adversarial_augment.attacks.restarts import RestartedAttack

ALIVE = np.iinfo(np.int32).max  # in `SuiteState.broken_in`
_SMALL = 4  # the smaller batch is this part of the larger one
_ROUNDING = 1e-4  # of a perceptual distance, which another program computes in another order
_OUTSIDE = np.finfo(np.float32).min  # the margin of an image outside the ball


class Stage(NamedTuple):
  """One attack of a suite."""

  name: str
  attack: RestartedAttack


class Problem(NamedTuple):
  """What a suite attacks, and within which ball; on the host."""

  images: np.ndarray  # float [n, h, w, c] in [0, 1]
  labels: np.ndarray  # int32 [n]
  norm: str  # 'linf' or 'l2'; otherwise `Programs.distances` measures
  epsilon: float


class Programs(NamedTuple):
  """The compiled parts of a suite; arrays on the host."""

  # Stage, its restart, indices [m] -> images [m, h, w, c], and whether the attack takes them for broken, bool [m].
  attack: Callable[[int, int, np.ndarray], tuple[np.ndarray, np.ndarray]]
  margins: Callable[[np.ndarray, np.ndarray], np.ndarray]  # images [m, h, w, c], labels [m] -> margins [m]
  batch_size: int  # the larger m, and the only one of `margins`
  multiple: int = 1  # every m is one of this
  compile: Callable[[int, int], Any] = lambda index, size: None  # stage, m: makes what `attack` calls, where it can
  again: Callable[[int, int, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None  # `attack` in float32
  distances: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None  # images twice, [batch_size, ...] -> [m]


class SuiteState(NamedTuple):
  """How far the evaluation of a suite is: all that a resume between two batches needs. The arrays change in place."""

  images: np.ndarray  # [n, h, w, c], the feasible image of the highest margin of each
  margins: np.ndarray  # [n], of those
  broken_in: np.ndarray  # int32 [n]: 0 misclassified without an attack, else the restart, counted over stages, or ALIVE
  cursor: np.ndarray  # int64 [2]: the restart, from 1, and how many of its survivors are done
  seconds: np.ndarray  # float64 [stages], of all starts, without those of compiling
  compile_seconds: np.ndarray  # float64 [stages], of all starts
  num_nan: np.ndarray  # int64 []: images whose margins were NaN or infinite, found on the way


def start(problem: Problem, programs: Programs, num_stages: int) -> SuiteState:
  """Returns the state before the first attack: an image that is misclassified already is broken."""
  margins = compute_margins(programs, problem.images, problem.labels)
  return SuiteState(
    images=problem.images.copy(),
    margins=margins,
    broken_in=np.where(margins < 0, ALIVE, 0).astype(np.int32),  # logits that are NaN have an infinite one
    cursor=np.array([1, 0], np.int64),
    seconds=np.zeros(num_stages),
    compile_seconds=np.zeros(num_stages),
    num_nan=np.array((~np.isfinite(margins)).sum(), np.int64),
  )


def compute_margins(programs: Programs, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the margins [n] of images [n, h, w, c], at least 0 where they are misclassified; in batches of one size."""
  size = programs.batch_size
  parts = [slice(start, start + size) for start in range(0, len(images), size)]
  margins = [programs.margins(padded(images[part], size), padded(labels[part], size)) for part in parts]
  return np.concatenate(margins)[: len(images)]


def run(
  problem: Problem, programs: Programs, stages: Sequence[Stage], state: SuiteState
) -> Iterator[tuple[int, int, int]]:
  """Runs a suite from where `state` is to its end.

  Yields:
    Its stage, the restart within that, and the number of images after every batch; 0 images when the restart has ended.
  """
  restarts = [(index, inner) for index, stage in enumerate(stages) for inner in range(stage.attack.number)]
  for number, (index, inner) in enumerate(restarts[state.cursor[0] - 1 :], int(state.cursor[0])):
    # Those that this very restart has broken before a stop are still among them: the batches stay the same.
    alive = np.flatnonzero(state.broken_in >= number)
    while state.cursor[1] < len(alive):
      began = time.monotonic()
      size = _batch_size(len(alive) - state.cursor[1], programs)
      part = alive[state.cursor[1] :][:size]
      programs.compile(index, size)
      compiled = time.monotonic()
      found, margins = _attack(problem, programs, index, inner, part)
      _keep(problem, state, part, found, margins, number)
      state.cursor[1] += len(part)
      state.seconds[index] += time.monotonic() - compiled
      state.compile_seconds[index] += compiled - began
      yield index, inner, len(part)
    state.cursor[:] = number + 1, 0
    yield index, inner, 0


def batch_sizes(programs: Programs) -> tuple[int, int]:
  """Returns the larger and the smaller number of images that are attacked at once."""
  small = -(-programs.batch_size // (_SMALL * programs.multiple)) * programs.multiple
  return programs.batch_size, small


def survivors(stages: Sequence[Stage], state: SuiteState) -> dict[str, int]:
  """Returns how many images were left after each stage, of those that have ended."""
  ends = zip(stages, np.cumsum([stage.attack.number for stage in stages]), strict=True)
  return {stage.name: int((state.broken_in > end).sum()) for stage, end in ends if state.cursor[0] > end}


def padded(values: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last value until there are `size` of them."""
  return np.concatenate([values, np.repeat(values[-1:], size - len(values), axis=0)])


def distances(norm: str, images: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns the norm of the difference of each pair, in float64: [n, h, w, c] twice -> [n]."""
  delta = (images.astype(np.float64) - others).reshape(len(images), -1)
  return np.abs(delta).max(1) if norm == 'linf' else np.sqrt((delta**2).sum(1))


def _batch_size(count: int, programs: Programs) -> int:
  """The larger size, or the smaller one where several of that hold so many images with fewer repeated ones."""
  large, small = batch_sizes(programs)
  return large if -(-count // small) * small >= large else small


def _attack(
  problem: Problem, programs: Programs, index: int, inner: int, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what a restart makes of the images `part` [m], and the margins of that."""

  def by(attack: Callable, part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, taken = (x[: len(part)] for x in attack(index, inner, padded(part, _batch_size(len(part), programs))))
    margins = compute_margins(programs, images, problem.labels[part])
    if programs.distances is not None:  # it decides what is within the ball, too
      size = programs.batch_size
      found = programs.distances(padded(problem.images[part], size), padded(images, size))[: len(part)]
      margins = np.where(found <= problem.epsilon * (1 + _ROUNDING), margins, _OUTSIDE)
    return images, margins, taken

  images, margins, taken = by(programs.attack, part)
  denied = np.flatnonzero(taken & (margins < 0))
  if len(denied) and programs.again is not None:
    images, margins = images.copy(), margins.copy()
    images[denied], margins[denied], _ = by(programs.again, part[denied])
  return images, margins


def _keep(
  problem: Problem, state: SuiteState, part: np.ndarray, found: np.ndarray, margins: np.ndarray, number: int
) -> None:
  """Keeps the images whose margins are higher than before."""
  if problem.norm in NORMS:
    far = distances(problem.norm, found, problem.images[part]) > problem.epsilon * (1 + 1e-6) + 1e-7
    assert not far.any(), f'an attack has left the ball of radius {problem.epsilon}'
  assert ((found >= 0) & (found <= 1)).all(), 'an attack has left the box [0, 1]'
  state.num_nan[...] += (~np.isfinite(margins)).sum()
  stronger = margins > state.margins[part]
  better = part[stronger]
  state.images[better], state.margins[better] = found[stronger], margins[stronger]
  state.broken_in[part[stronger & (margins >= 0)]] = number
