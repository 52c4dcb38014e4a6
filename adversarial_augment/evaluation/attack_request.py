"""The flags of `evaluate --attack`: what they ask for, checked before any device is touched."""

import argparse
from collections.abc import Callable
import contextlib
import math
from pathlib import Path
from typing import NamedTuple

from adversarial_augment import checks, results
from adversarial_augment.config import fields
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import files
from adversarial_augment.types import Dataset

TABLE2 = 'table2'  # of arXiv 2104.01086
TABLE2_SUITE = 'paper'
TABLE2_BALLS = (('l2', '0.5'), ('l2', '1'), ('linf', '1/255'), ('linf', '2/255'), ('linf', '4/255'))
# Of `suites.SUITES`, and the table; --help lists them without JAX.
PERCEPTUAL = 'perceptual'
ATTACKS = ('autoattack', 'autoattack_plus', 'multitargeted', 'paper', 'pgd', TABLE2, PERCEPTUAL)
_ONLY_WITH_ATTACK = (
  'norm', 'epsilon', 'distance', 'distance_from', 'num_examples', 'seed', 'save_images', 'surrogate', 'allow_suspect',
)  # fmt: skip


class Ball(NamedTuple):
  norm: str  # of `lp_ball.NORMS`, or of `results.DISTANCES`
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
  distance_from: str | None = None  # of the network that measures the distance 'alexnet'; None: the one that ships


def add(parser: argparse.ArgumentParser, title: str = 'attacks, instead of --evals') -> None:
  """Adds the flags."""
  group = parser.add_argument_group(title)
  group.add_argument('--attack', metavar='NAME', help=', '.join(ATTACKS))
  group.add_argument('--norm', metavar='NORM', help='linf or l2')
  group.add_argument('--epsilon', metavar='RADII', help='for images in [0, 1], such as 8/255 or 1/255,2/255,4/255')
  group.add_argument('--distance', metavar='NAME', help='for --attack=perceptual: alexnet, or self, of the classifier')
  group.add_argument(
    '--distance_from', metavar='PATH', help='run or classifier.safetensors of that AlexNet; default: a small one'
  )
  group.add_argument(
    '--num_examples', type=integer(1), metavar='N', help='attack the first N test images; default: all'
  )
  group.add_argument('--seed', type=integer(0), metavar='N', help='of the random starts; default: 0')
  group.add_argument('--save_images', action='store_true', help='save the strongest adversarial images as .npz')
  group.add_argument('--surrogate', metavar='DIR', help='another run, whose adversarial images are tried as a check')
  group.add_argument('--allow_suspect', action='store_true', help='exit with 0 even if a result is UNRELIABLE')


def integer(least: int) -> Callable[[str], int]:
  """Returns the type of a flag that takes an integer from `least` on."""
  kind = fields.integer(least, 2**31 - 1)

  def parse(text: str) -> int:
    with contextlib.suppress(ValueError):
      if kind.accepts(value := kind.parse(text)):
        return value
    raise argparse.ArgumentTypeError(f'{show(text)} must be {kind.expected}')

  return parse


def parse(arguments: argparse.Namespace, *, beside_evals: bool = False) -> Request | None:
  """Returns what the flags ask for, or None without --attack; raises UserError.

  `beside_evals`: --evals may be given too, and --allow_suspect is of both.
  """
  names = [name for name in _ONLY_WITH_ATTACK if not (beside_evals and name == 'allow_suspect')]
  values = {name: getattr(arguments, name) for name in names}
  given = [name for name, value in values.items() if value is not None and value is not False]
  if arguments.attack is None:
    if given:
      attack = PERCEPTUAL if given[0].startswith('distance') else 'autoattack'
      raise UserError(f'--{given[0]} needs --attack, such as --attack={attack}; add it, or leave --{given[0]} out.')
    return None
  if not beside_evals and arguments.evals is not None:
    raise UserError('--attack and --evals cannot go together; run one after the other.')
  checks.lookup(dict.fromkeys(ATTACKS), arguments.attack, '--attack')
  if arguments.attack == PERCEPTUAL and arguments.surrogate is not None:
    raise UserError(f'--surrogate cannot go with --attack={PERCEPTUAL}; leave it out.')
  if beside_evals and arguments.distance == 'self':
    raise UserError('--distance=self is of classifiers that were trained here; set --distance=alexnet.')
  for name in ('surrogate', 'distance_from'):
    if getattr(arguments, name) == '':
      raise UserError(f'--{name}= must name a run or its file; give its path, or leave it out.')
  return Request(
    TABLE2_SUITE if arguments.attack == TABLE2 else arguments.attack,
    _balls(arguments),
    arguments.num_examples,
    arguments.seed or 0,
    arguments.save_images,
    arguments.surrogate and files.user_path(arguments.surrogate, '--surrogate'),
    arguments.allow_suspect,
    arguments.distance_from,
  )


def first_examples(request: Request, test: Dataset) -> Dataset:
  """Returns the part of a test set that is attacked; raises UserError for too many images or too large a ball."""
  for ball in request.balls:
    if ball.norm in results.DISTANCES:
      continue
    if wrong := checks.too_large_radius(ball.norm, ball.epsilon, math.prod(test.image_shape)):
      raise UserError(f'--epsilon={ball.text} with --norm={ball.norm} {wrong}')
  number = request.num_examples or test.num_examples
  if number > test.num_examples:
    raise UserError(f'--num_examples={number} must be at most {test.num_examples}, which {test.name} has.')
  return test._replace(num_examples=number)


def _balls(arguments: argparse.Namespace) -> tuple[Ball, ...]:
  if arguments.attack == TABLE2:
    for name in ('norm', 'epsilon', 'distance', 'distance_from'):
      if getattr(arguments, name) is not None:
        raise UserError(f'--attack={TABLE2} sets its balls itself; leave --{name} out, or name another attack.')
    return tuple(_ball(norm, text, text) for norm, text in TABLE2_BALLS)
  is_perceptual = arguments.attack == PERCEPTUAL
  kind, other = ('distance', 'norm') if is_perceptual else ('norm', 'distance')
  examples = {'norm': 'linf', 'distance': 'alexnet', 'epsilon': '0.5' if is_perceptual else '8/255'}
  if getattr(arguments, other) is not None:
    raise UserError(f'--{other} cannot go with --attack={arguments.attack}, which has --{kind}; leave it out.')
  for name in (kind, 'epsilon'):
    if not getattr(arguments, name):
      raise UserError(f'--attack={arguments.attack} needs --{name}, for example --{name}={examples[name]}.')
  if is_perceptual:
    checks.lookup(dict.fromkeys(results.DISTANCES), arguments.distance, '--distance')
  if arguments.distance_from is not None and arguments.distance != 'alexnet':
    raise UserError(f"--distance_from='{arguments.distance_from}' needs --distance=alexnet; leave it out, or add that.")
  return tuple(
    _ball(getattr(arguments, kind), text.strip(), arguments.epsilon) for text in arguments.epsilon.split(',')
  )


def _ball(norm: str, text: str, given: str) -> Ball:
  from adversarial_augment.attacks.lp_ball import check_ball

  is_signed = '-' in text.lower().replace('e-', '')
  try:
    epsilon = math.nan if is_signed else fields.parse_fraction(text)
  except ValueError:
    epsilon = math.nan
  if math.isnan(epsilon):
    raise UserError(
      f'--epsilon={show(given)} must be a number or a fraction without a sign, such as 0.5 or 8/255, or several with '
      'commas between.'
    )
  if norm not in results.DISTANCES:
    check_ball(norm, epsilon)
  elif not 0 < epsilon <= 1e3:
    raise UserError(f'--epsilon={show(text)} of a perceptual distance must be above 0 and at most 1000, such as 0.5.')
  return Ball(norm, epsilon, '/'.join(repr(float(part)).removesuffix('.0') for part in text.split('/')))
