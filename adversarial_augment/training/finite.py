"""Updates are made only where all their numbers are finite."""

import jax
import jax.numpy as jnp
import optax

from adversarial_augment.types import Array, TrainState


def update_if_finite(
  state: TrainState, new: TrainState, step: Array, metrics: dict[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
  """Returns `new` and its metrics with 'finite'; the state as it was if a metric, parameter or statistic is not finite.

  Args:
    state: before the update.
    new: after it.
    step: updates made before this one. Where it is not that of `state`, an earlier update was left out, and so is this.
    metrics: scalars of the update.
  """
  # Not of the counters: their squares overflow.
  numbers = [x for x in jax.tree.leaves((new.params, new.model_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
  is_finite = jnp.isfinite(jnp.stack([*metrics.values(), optax.tree.norm(numbers)])).all()
  is_finite &= state.step == step
  return optax.tree.where(is_finite, new, state), metrics | {'finite': is_finite}
