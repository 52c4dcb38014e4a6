"""Writes that may fail for a while, as on a full disk."""

from collections.abc import Callable
import time
from typing import Any

from adversarial_augment.cli import progress
from adversarial_augment.errors import StorageError

_ATTEMPTS = 3  # that fail in a row before the run ends


class Retries:
  """Warns, tries again later, and gives up at the third failure in a row."""

  def __init__(self) -> None:
    self._failures = 0
    self.retry_at = 0  # the step from which on the next attempt is worth making

  def attempt(self, step: int, write: Callable[[], Any], *, final: bool = False) -> bool:
    """Calls `write` after `step` updates and returns whether it succeeded; several processes fail together.

    With `final` there is no later: the attempts are made in one call, seconds apart.

    Raises:
      StorageError: the third failure in a row.
    """
    while True:
      try:
        write()
      except StorageError as error:
        self._failures += 1
        if self._failures >= _ATTEMPTS:
          raise
        if self._failures == 1:
          progress.log(f'warning: {error} The run goes on and tries again.')
        if not final:
          self.retry_at = step + 10 * 2**self._failures
          return False
        time.sleep(0.5 * 2**self._failures)
      else:
        self._failures = 0
        return True
