"""How far a long job is: a bar on a terminal, a line every ten seconds elsewhere, as in the log of a batch job."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
import datetime
import sys
import threading
import time

from adversarial_augment.cli import streams

_SECONDS = 10  # between lines
_QUIET = 4  # seconds that a stage may take without a word


def log(message: str) -> None:
  """Prints a line on standard error, above the progress bar if there is one. Of several processes, process 0 does."""
  import jax

  if jax.process_index() == 0:
    from tqdm import tqdm

    # In one write: the thread that watches for signals writes lines too.
    with suppress(OSError):  # nobody can take it: the run goes on
      tqdm.write(f'{message}\n', file=sys.stderr, end='')


@contextmanager
def stage(what: str, say: Callable[[str], None] = streams.say) -> Iterator[None]:
  """Says what goes on, if the block takes longer than a few seconds.

  Args:
    what: the block does, such as 'reading the data'.
    say: takes the line; another thread calls it.
  """
  done = threading.Event()

  def watch() -> None:
    if not done.wait(_QUIET):
      say(f'{what}...')

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    done.set()


class Lines:
  """Says every ten seconds how many images are done, how many a second, and when it ends."""

  def __init__(self, total: int, say: Callable[[str], None], done: int = 0):
    self._total, self._say, self._done = total, say, done
    self._began = self._told = time.monotonic()

  def advance(self, what: str, count: int) -> None:
    self._done = min(self._done + count, self._total)
    now = time.monotonic()
    if now - self._told < _SECONDS or self._done <= 0:
      return
    self._told, speed = now, self._done / (now - self._began)
    eta = datetime.timedelta(seconds=round((self._total - self._done) / speed))
    self._say(f'  {what}: {self._done:,} of {self._total:,} images  {speed:,.0f} images/s  ETA {eta}')


@contextmanager
def images(total: int) -> Iterator[Callable[[str, int], None]]:
  """Gives a function of (what is being done, images more that are done), which shows both on standard error."""
  if not sys.stderr.isatty():
    yield Lines(total, streams.say).advance
    return
  from tqdm import tqdm

  with tqdm(total=total, unit=' images', unit_scale=True, leave=None) as bar:

    def advance(what: str, count: int) -> None:
      bar.set_description(what, refresh=False)
      bar.update(count)

    yield advance
