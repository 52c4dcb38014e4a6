"""Learning rates (appendix A, arXiv 2104.01086)."""

import jax.numpy as jnp
import optax


def effective_learning_rate(learning_rate: float, batch_size: int) -> float:
  """Returns max(lr * batch_size / 256, lr): the linear scaling rule, which never scales down."""
  return max(learning_rate * batch_size / 256, learning_rate)


def warmup_cosine(peak: float, num_steps: int, warmup_steps: int) -> optax.Schedule:
  """Returns a linear warm-up from 0 and a cosine to 0: 0 at step 0, `peak` at `warmup_steps`, 0 at `num_steps`.

  A run of a single update would have a rate of 0 there; it gets the middle of the cosine.
  """
  end = max(num_steps, warmup_steps + 2)
  schedule = optax.schedules.warmup_cosine_decay_schedule(
    init_value=peak if warmup_steps == 0 else 0.0, peak_value=peak, warmup_steps=warmup_steps, decay_steps=end
  )
  # Optax would divide an int32 count in float32 even where everything else is float64.
  return lambda count: schedule(jnp.asarray(count, jnp.result_type(float)))
