"""When a run ends: its steps without and with the adversary, and its evaluations, each by the time that it takes."""


class Forecast:
  """What is left of a run, from what has been measured so far."""

  def __init__(
    self,
    num_steps: int,
    *,
    warmup_steps: int = 0,
    attacked: float | None = None,
    eval_every: int = 0,
    evaluation: float = 0.0,
  ):
    """Knows no time of a step yet.

    Args:
      num_steps: of the run.
      warmup_steps: the first ones, which are without the adversary.
      attacked: seconds of a step with it, until some have been made.
      eval_every: steps between evaluations; 0: there is the closing one only.
      evaluation: seconds of one.
    """
    self._num_steps, self._warmup, self._eval_every, self._evaluation = num_steps, warmup_steps, eval_every, evaluation
    self._clean, self._attacked = 0.0, attacked

  def left(self, before: int, step: int, seconds: float) -> float:
    """Returns the seconds until the run is evaluated.

    Args:
      before: a step.
      step: a later one, which has been made.
      seconds: of each step between them.
    """
    if step <= self._warmup:
      self._clean = seconds
    elif before >= self._warmup or self._attacked is None:
      self._attacked = seconds
    clean, total = max(self._warmup - step, 0), max(self._num_steps - step, 0)
    attacked = seconds if self._attacked is None else self._attacked
    return clean * self._clean + (total - clean) * attacked + self._evaluations(step) * self._evaluation

  def _evaluations(self, step: int) -> int:
    between = (self._num_steps - 1) // self._eval_every - step // self._eval_every if self._eval_every else 0
    return max(between, 0) + 1


def shown(seconds: float) -> str:
  """Returns a time as 01:02:03, or in days."""
  whole = round(seconds)
  if whole >= 86400:
    return f'{seconds / 86400:.1f} days'
  return f'{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}'
