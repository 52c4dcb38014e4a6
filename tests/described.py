"""Errors in the words that a command line prints."""

from collections.abc import Iterator
import contextlib

from adversarial_augment import cli
from adversarial_augment.errors import AdversarialAugmentError


@contextlib.contextmanager
def described() -> Iterator[None]:
  """Adds the way out to an error of the block, as a command line does."""
  try:
    yield
  except AdversarialAugmentError as error:
    error.args, error.remedy = (cli.describe(error),), ''
    raise
