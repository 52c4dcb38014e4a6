"""Errors in the words that a command line prints."""

from collections.abc import Iterator
import contextlib

import pytest

from adversarial_augment import cli
from adversarial_augment.errors import AdversarialAugmentError, UserError


@contextlib.contextmanager
def described() -> Iterator[None]:
  """Adds the way out to an error of the block, as a command line does."""
  try:
    yield
  except AdversarialAugmentError as error:
    error.args, error.remedy = (cli.describe(error),), ''
    raise


@contextlib.contextmanager
def refused(said: str) -> Iterator[None]:
  """Expects a UserError of one line, in which a command line says this (a regular expression)."""
  with pytest.raises(UserError, match=said) as caught, described():
    yield
  assert '\n' not in str(caught.value)
