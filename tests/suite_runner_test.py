"""Suites: every image attacked until it is broken and no longer, in few shapes, and resumed without a difference."""

import copy
import io

import jax
import numpy as np
import pytest

from adversarial_augment.attacks import suite_runner
from adversarial_augment.attacks.restarts import RestartedAttack
from adversarial_augment.attacks.suite_runner import Problem, Stage, SuiteState
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import unfinished

NUM, EPSILON = 23, 0.125
# The first pixel says which image it is; attacks change the second one.
IMAGES = np.stack([np.arange(NUM) / 64, np.full(NUM, 0.5)], axis=-1).astype(np.float32).reshape(NUM, 1, 2, 1)
LABELS = np.zeros(NUM, np.int32)
STAGES = (
  Stage('first', RestartedAttack(3, lambda _: None)),
  Stage('second', RestartedAttack(2, lambda _: None)),
)
# The round in which an image gives way; 0: it is misclassified as it is, 9: never.
BREAKS = np.array([0, 1, 2, 3, 4, 5, 9, 2, 4, 9, 1, 1, 9, 3, 0, 5, 5, 2, 9, 1, 4, 9, 9])
PROBLEM = Problem(IMAGES, LABELS, 'linf', EPSILON)


class Attacker:
  """Moves an image by a 16th of the radius in each round, and by all of it in the round that breaks it."""

  def __init__(self, radius: float = EPSILON, nan_at: int = -1):
    self.calls: list[tuple[int, int, list[int]]] = []
    self._radius, self._nan_at = radius, nan_at

  def attack(self, index: int, inner: int, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    self.calls.append((index, inner, part.tolist()))
    number = 3 * index + inner + 1
    images = IMAGES[part].copy()
    images[:, 0, 1, 0] += self._radius * np.where(number == BREAKS[part], 1, number / 16).astype(np.float32)
    return images, np.zeros(len(part), bool)

  def margins(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """0.5 where the image was moved by all of the radius, or is wrong from the start; else below 0, by the distance."""
    assert images.shape == (8, 1, 2, 1)
    which = np.round(images[:, 0, 0, 0] * 64).astype(int)
    moved = (images[:, 0, 1, 0] - 0.5) / EPSILON
    margins = np.where((moved > 0.99) | (BREAKS[which] == 0), 0.5, moved - 1)
    return np.where((which == self._nan_at) & (moved > 0), np.nan, margins)

  def programs(self) -> suite_runner.Programs:
    return suite_runner.Programs(self.attack, self.margins, 8, 2)


def finish(attacker: Attacker, state: SuiteState | None = None, batches: int = 1000) -> SuiteState:
  state = suite_runner.start(PROBLEM, attacker.programs(), len(STAGES)) if state is None else state
  for _, _ in zip(range(batches), suite_runner.run(PROBLEM, attacker.programs(), STAGES, state), strict=False):
    pass
  return state


def test_an_image_is_broken_in_the_round_that_does_it_and_its_strongest_form_is_kept():
  state = finish(Attacker())
  np.testing.assert_array_equal(state.broken_in, np.where(BREAKS == 9, suite_runner.ALIVE, BREAKS))
  assert suite_runner.survivors(STAGES, state) == {'first': int((BREAKS > 3).sum()), 'second': int((BREAKS == 9).sum())}
  assert (state.seconds > 0).all()
  moved = (state.images - IMAGES)[:, 0, 1, 0] / EPSILON
  np.testing.assert_allclose(moved, np.where(BREAKS == 0, 0, np.where(BREAKS == 9, 5 / 16, 1)), atol=1e-6)


def test_only_survivors_are_attacked_in_batches_of_two_sizes():
  attacker = Attacker()
  finish(attacker)
  assert {len(part) for _, _, part in attacker.calls} == {2, 8}
  for number in range(1, 6):
    stage, inner = divmod(number - 1, 3)
    parts = [part for index, round_, part in attacker.calls if (index, round_) == (stage, inner)]
    attacked = np.flatnonzero(number <= BREAKS)
    assert sorted({image for part in parts for image in part}) == attacked.tolist()
    # As few as possible are repeated: 6 images are three batches of 2, and 7 are one of 8.
    assert sum(len(part) for part in parts) == -(-len(attacked) // 2) * 2
    assert len(parts) == len(attacked) // 8 + (-(-(len(attacked) % 8) // 2) if len(attacked) % 8 < 7 else 1)


def test_no_image_is_attacked_when_none_is_left():
  state = finish(Attacker())
  state.broken_in[:], state.cursor[:] = 0, (1, 0)
  attacker = Attacker()
  finish(attacker, state)
  assert not attacker.calls
  assert suite_runner.survivors(STAGES, state) == {'first': 0, 'second': 0}


def test_an_attack_that_leaves_the_ball_is_an_error():
  with pytest.raises(AssertionError, match='left the ball'):
    finish(Attacker(radius=EPSILON * 1.01))


def test_logits_that_are_nan_break_nothing_and_are_counted():
  state = finish(Attacker(nan_at=6))
  assert state.num_nan == 5  # rounds
  assert state.broken_in[6] == suite_runner.ALIVE
  np.testing.assert_array_equal(state.images[6], IMAGES[6])


ABOUT = {'checkpoint': 'f' * 64, 'epsilon': EPSILON, 'norm': 'linf'}


def test_a_stop_after_any_batch_changes_nothing(tmp_path):
  path = tmp_path / 'state'
  straight = Attacker()
  expected = finish(straight)
  for stop in range(1, len(straight.calls) + 5):
    first, second = Attacker(), Attacker()
    unfinished.write_suite(path, finish(first, batches=stop), ABOUT)
    found = unfinished.read_suite(path, suite_runner.start(PROBLEM, second.programs(), 2), ABOUT)
    done = finish(second, found)
    for name in ('images', 'margins', 'broken_in', 'cursor', 'num_nan'):
      np.testing.assert_array_equal(getattr(done, name), getattr(expected, name))
    assert first.calls + second.calls == straight.calls


def test_seconds_of_all_starts_are_kept_and_those_of_compiling_apart(tmp_path, monkeypatch):
  """On a clock that compiling moves by 100, once per size in each start, and every attack on a batch by 1."""
  now, path = [0], tmp_path / 'state'
  monkeypatch.setattr(suite_runner.time, 'monotonic', lambda: now[0])

  class Timed(Attacker):
    def __init__(self):
      super().__init__()
      self.compiled = set()

    def attack(self, index, inner, part):
      assert (index, len(part)) in self.compiled
      now[0] += 1
      return super().attack(index, inner, part)

    def compile(self, index, size):
      now[0] += 0 if (index, size) in self.compiled else 100
      self.compiled.add((index, size))

    def programs(self):
      return super().programs()._replace(compile=self.compile)

  first, second = Timed(), Timed()
  state = finish(first, batches=8)  # within the second stage
  unfinished.write_suite(path, state, ABOUT)
  done = finish(second, unfinished.read_suite(path, state, ABOUT))
  calls = first.calls + second.calls
  assert done.seconds.tolist() == [sum(index == stage for index, _, _ in calls) for stage in (0, 1)]
  compiled = [*first.compiled, *second.compiled]
  assert done.compile_seconds.tolist() == [100 * sum(index == stage for index, _ in compiled) for stage in (0, 1)]
  assert {index for index, _ in first.compiled} & {index for index, _ in second.compiled}  # again, after the stop


def saved(tmp_path):
  path, state = tmp_path / 'state', finish(Attacker(), batches=3)
  unfinished.write_suite(path, state, ABOUT)
  return path, copy.deepcopy(state)


def test_a_file_of_something_else_is_refused(tmp_path):
  path, like = saved(tmp_path)
  for name, value in {'checkpoint': 'e' * 64, 'epsilon': 0.25, 'norm': 'l2'}.items():
    assert refused(path, like, ABOUT | {name: value}).startswith(f"'{path}' exists already, with {name} = ")
  assert 'exists already, with suite = null' in refused(path, like, ABOUT | {'suite': 'pgd'})
  assert unfinished.read_suite(tmp_path / 'none', like, ABOUT) is None


def test_a_damaged_file_is_refused(tmp_path):
  path, like = saved(tmp_path)
  whole, rng, array = path.read_bytes(), np.random.default_rng(0), io.BytesIO()
  np.save(array, np.zeros(3))
  damages = [whole[: len(whole) // 2], b'x', b'', array.getvalue(), whole[100:]]
  for place in rng.integers(len(whole), size=60):
    changed = bytearray(whole)
    changed[place] ^= 1 << int(rng.integers(8))
    damages.append(bytes(changed))
  messages = []
  for damage in damages:
    path.write_bytes(damage)
    messages.append(refused(path, like, ABOUT))
  assert all('damaged' in message or 'exists already' in message for message in messages if message)
  assert all(messages[:5])
  assert not any('\n' in message for message in messages)
  assert sum(map(bool, messages)) > 40


def refused(path, like, about) -> str:
  """Returns why a file is refused; '' if it gives the state, as where a bit of the archive has no meaning."""
  try:
    found = unfinished.read_suite(path, like, about)
  except UserError as error:
    return str(error)
  jax.tree.map(np.testing.assert_array_equal, found, like)
  return ''
