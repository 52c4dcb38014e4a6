"""The learning rate against its closed form."""

import math

import numpy as np
import pytest

from adversarial_augment.training import schedules


@pytest.mark.parametrize('batch, expected', [(256, 0.1), (512, 0.2), (1024, 0.4), (64, 0.1), (8, 0.1)])
def test_linear_scaling_never_scales_down(batch, expected):
  assert schedules.effective_learning_rate(0.1, batch) == pytest.approx(expected)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('num_steps, warmup', [(100, 10), (100, 0), (58_593, 976), (3, 1), (2, 0)])
def test_warmup_and_cosine_are_the_closed_form(num_steps, warmup):
  schedule = schedules.warmup_cosine(0.4, num_steps, warmup)

  def expected(step):
    if step < warmup:
      return 0.4 * step / warmup
    return 0.2 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))

  steps = np.unique(np.linspace(0, num_steps, 50).astype(int))
  np.testing.assert_allclose([float(schedule(s)) for s in steps], [expected(s) for s in steps], atol=1e-12)
  assert float(schedule(warmup)) == pytest.approx(0.4)
  assert float(schedule(num_steps)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('num_steps, warmup', [(1, 0), (1, 1), (2, 1), (5, 2)])
def test_the_shortest_runs_learn_from_the_first_update_on(num_steps, warmup):
  schedule = schedules.warmup_cosine(0.1, num_steps, warmup)
  assert float(schedule(1)) > 0
  assert all(0 <= float(schedule(step)) <= 0.1 * (1 + 1e-6) for step in range(num_steps + 3))


def test_a_run_of_one_update_has_the_middle_of_the_cosine():
  assert float(schedules.warmup_cosine(0.1, 1, 0)(1)) == pytest.approx(0.05)


def test_the_rate_of_a_step_does_not_depend_on_where_a_run_resumes():
  before, after = (schedules.warmup_cosine(0.1, 40, 20) for _ in range(2))
  assert float(before(np.int32(11))) == float(after(np.int32(11))) == pytest.approx(0.055)
