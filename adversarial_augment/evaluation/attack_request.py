"""What `evaluate --attack` asks for, checked before any device is touched."""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

from adversarial_augment import checks, registry
from adversarial_augment.config import fields
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import files
from adversarial_augment.types import Dataset

TABLE2 = 'table2'  # of arXiv 2104.01086
TABLE2_SUITE = 'paper'
TABLE2_BALLS = (('l2', '0.5'), ('l2', '1'), ('linf', '1/255'), ('linf', '2/255'), ('linf', '4/255'))
# Of `suites.SUITES`, and the table; --help lists them without JAX.
ATTACKS = ('autoattack', 'autoattack_plus', 'multitargeted', 'paper', 'pgd', TABLE2)
_OF_ATTACKS = ('norm', 'epsilon', 'num_examples', 'seed', 'save_images', 'surrogate', 'allow_suspect')


class Ball(NamedTuple):
  norm: str
  epsilon: float
  text: str  # of epsilon, such as 8/255


class Request(NamedTuple):
  """Attacks on one classifier."""

  suite: str  # a name of `suites.SUITES`
  balls: tuple[Ball, ...]
  num_examples: int | None  # the first ones of the test set; None: all
  seed: int
  save_images: bool
  surrogate: Path | None  # another run, whose adversarial images are tried
  allow_suspect: bool


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  group = parser.add_argument_group('l_p attacks, instead of --evals')
  group.add_argument('--attack', metavar='NAME', help=', '.join(ATTACKS))
  group.add_argument('--norm', metavar='NORM', help='linf or l2')
  group.add_argument('--epsilon', metavar='RADII', help='for images in [0, 1], such as 8/255 or 1/255,2/255,4/255')
  group.add_argument('--num_examples', metavar='N', help='attack the first N test images; default: all')
  group.add_argument('--seed', metavar='N', help='of the random starts; default: 0')
  group.add_argument('--save_images', action='store_true', help='keep the strongest image of each, as .npz')
  group.add_argument('--surrogate', metavar='DIR', help='try images that fool this other run: none should break more')
  group.add_argument('--allow_suspect', action='store_true', help='exit with 0 although a result is UNRELIABLE')


def parse(arguments: argparse.Namespace) -> Request | None:
  """Returns what the flags ask for; None without --attack.

  Raises:
    UserError: an unknown attack or norm, no radius, no number of images, or flags that do not go together.
  """
  given = [name for name in _OF_ATTACKS if getattr(arguments, name) not in (None, False)]
  if arguments.attack is None:
    if given:
      raise UserError(f'--{given[0]} belongs to --attack, such as --attack=autoattack; name one, or leave it out.')
    return None
  if arguments.evals is not None:
    raise UserError('--attack and --evals are two evaluations; give one of them, and then the other.')
  registry.lookup(dict.fromkeys(ATTACKS), arguments.attack, '--attack')
  suite = TABLE2_SUITE if arguments.attack == TABLE2 else arguments.attack
  return Request(
    suite,
    _balls(arguments),
    whole_number(arguments.num_examples, '--num_examples', 1),
    whole_number(arguments.seed, '--seed', 0) or 0,
    arguments.save_images,
    _surrogate(arguments.surrogate),
    arguments.allow_suspect,
  )


def _surrogate(text: str | None) -> Path | None:
  if text == '':
    raise UserError('--surrogate= must name the workdir of a run; name one, or leave it out.')
  return None if text is None else files.user_path(text, '--surrogate')


def first_examples(request: Request, test: Dataset) -> Dataset:
  """Returns the part of a test set that is attacked.

  Raises:
    UserError: it has not as many images, or an l_2 ball is larger than the box [0, 1] of all pixels.
  """
  for ball in request.balls:
    if wrong := checks.too_large_radius(ball.norm, ball.epsilon, math.prod(test.image_shape)):
      raise UserError(f'--epsilon={ball.text} with --norm={ball.norm} {wrong}')
  number = request.num_examples or test.num_examples
  if number > test.num_examples:
    raise UserError(f'--num_examples={number} must be at most {test.num_examples}, which {test.name} has.')
  return test._replace(num_examples=number)


def _balls(arguments: argparse.Namespace) -> tuple[Ball, ...]:
  if arguments.attack == TABLE2:
    for name in ('norm', 'epsilon'):
      if getattr(arguments, name) is not None:
        raise UserError(
          f'--attack={TABLE2} has norms and radii of its own; leave --{name} out, or name another attack.'
        )
    return tuple(_ball(norm, text) for norm, text in TABLE2_BALLS)
  for name, example in (('norm', 'linf'), ('epsilon', '8/255')):
    if not getattr(arguments, name):
      raise UserError(f'--attack={arguments.attack} needs --{name}, for example --{name}={example}.')
  return tuple(_ball(arguments.norm, text.strip()) for text in arguments.epsilon.split(','))


def _ball(norm: str, text: str) -> Ball:
  try:
    epsilon = fields.parse_fraction(text)
  except ValueError:
    epsilon = math.nan
  if math.isnan(epsilon):
    raise UserError(f'--epsilon={show(text)} must be a number or a fraction, such as 0.5 or 8/255.')
  from adversarial_augment.attacks.lp_ball import check_ball

  check_ball(norm, epsilon)
  if '-' in text.lower().replace('e-', ''):
    raise UserError(f'--epsilon={show(text)} must be written without a sign, such as 0.5 or 8/255.')
  return Ball(norm, epsilon, '/'.join(repr(float(part)).removesuffix('.0') for part in text.split('/')))


def whole_number(text: str | None, flag: str, least: int) -> int | None:
  """Returns the number that a flag was given, or None where it was left out.

  Raises:
    UserError: it is no integer from `least` on.
  """
  if text is None:
    return None
  kind = fields.integer(least, 2**31 - 1)
  try:
    value = kind.parse(text)
  except ValueError:
    value = None
  if not kind.accepts(value):
    raise UserError(f'{flag}={show(text)} must be {kind.expected}.')
  return value
