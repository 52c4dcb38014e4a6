"""Kills that tests ask for, by `ADA_CRASH_AT=name` or `name@place`, at the few instants that a program must survive."""

import os
import signal
from typing import NoReturn

CRASH_VARIABLE = 'ADA_CRASH_AT'


def crash_wanted(name: str, place: object = None) -> bool:
  return os.environ.get(CRASH_VARIABLE) in (name, f'{name}@{place}')


def crash_point(name: str, place: object = None) -> None:
  """Dies as by `kill -9` where a test asks for it."""
  if crash_wanted(name, place):
    die()


def die() -> NoReturn:
  """Ends the process as `kill -9` does."""
  os.kill(os.getpid(), signal.SIGKILL)
  raise SystemExit('SIGKILL did not end the process')
