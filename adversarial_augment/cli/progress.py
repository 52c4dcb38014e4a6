"""Progress of long jobs: a bar on a terminal; elsewhere, as in the log of a batch job, a line every ten seconds."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
import datetime
import sys
import threading
import time

from adversarial_augment.cli import streams

_SECONDS = 10  # between lines
_COMPILER = 3600  # seconds that a compilation may take
_QUIET = 4  # seconds before a stage is announced
_done: Counter[str] = Counter()


def made() -> None:
  """Notes that something has been done: a batch, a file, a stage. Several processes end when nothing is for long."""
  _done['all'] += 1


@contextmanager
def compiling() -> Iterator[None]:
  """Counts each second of the block as something done, for an hour: nothing tells how far a compiler is."""
  _done['compiler ends'] = int(time.monotonic()) + _COMPILER
  try:
    yield
  finally:
    _done['compiler ends'] = int(time.monotonic())


def count() -> int:
  """Returns how much has been done so far."""
  return _done['all'] + min(int(time.monotonic()), _done['compiler ends'])


def log(message: str) -> None:
  """Prints a line on standard error of process 0, above a progress bar."""
  import jax

  if jax.process_index() == 0:
    from tqdm import tqdm

    # In one write, because the thread that watches for signals writes lines too; lost if nobody can take it.
    with suppress(OSError):
      tqdm.write(f'{message}\n', file=sys.stderr, end='')


@contextmanager
def stage(what: str, say: Callable[[str], None] = streams.say) -> Iterator[None]:
  """Announces `what`, such as 'reading the data', if the block takes longer than a few seconds; in another thread."""
  timer = threading.Timer(_QUIET, say, [f'{what}...'])
  timer.daemon = True
  timer.start()
  made()
  try:
    yield
  finally:
    timer.cancel()
    made()


class Lines:
  """Prints every ten seconds how many images are done, their rate, and the time left."""

  def __init__(self, total: int, say: Callable[[str], None], done: int = 0):
    self._total, self._say, self._done = total, say, done
    self._began = self._last = time.monotonic()

  def advance(self, what: str, count: int) -> None:
    made()
    self._done = min(self._done + count, self._total)
    now = time.monotonic()
    if now - self._last < _SECONDS or self._done <= 0:
      return
    self._last, speed = now, self._done / (now - self._began)
    eta = datetime.timedelta(seconds=round((self._total - self._done) / speed))
    self._say(f'  {what}: {self._done:,} of {self._total:,} images  {speed:,.0f} images/s  ETA {eta}')


@contextmanager
def images(total: int) -> Iterator[Callable[[str, int], None]]:
  """Gives a function of (what is being done, number of images that were done) that shows progress."""
  if not sys.stderr.isatty():
    yield Lines(total, streams.say).advance
    return
  from tqdm import tqdm

  with tqdm(total=total, unit=' images', unit_scale=True, leave=None) as bar:

    def advance(what: str, count: int) -> None:
      made()
      bar.set_description(what, refresh=False)
      bar.update(count)

    yield advance
