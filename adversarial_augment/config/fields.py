"""What a config field may hold: kinds of values, and checks of tables of fields. `tables.py` has the tables."""

from collections.abc import Callable, Iterator, Mapping
import itertools
import re
from typing import Any, NamedTuple

from adversarial_augment import checks
from adversarial_augment.checks import did_you_mean
from adversarial_augment.errors import UserError, show

LABEL = '[A-Za-z0-9][A-Za-z0-9_.-]{0,99}'  # a name that is a part of a path


class Kind(NamedTuple):
  """The values that a field accepts, in a config file and as text on the command line."""

  expected: str  # ends the sentence "config.x=1 must be ..."
  accepts: Callable[[Any], bool]
  parse: Callable[[str], Any]  # raises ValueError where the text is of another type; the range is left to `accepts`
  choices: tuple[str, ...] = ()


class Field(NamedTuple):
  """One field of a config."""

  default: Any
  kind: Kind
  meaning: str  # one line: what it is, its unit, and, where the paper sets it, the source


Table = Mapping[str, Field]  # by dotted name


def integer(low: int, high: int) -> Kind:
  """An integer in [low, high]."""
  accepts = lambda value: _is_number(value, int) and low <= value <= high
  return Kind(f'an integer from {low} to {high}', accepts, _parse_integer)


def integer_choice(*values: int) -> Kind:
  """One of some integers."""
  accepts = lambda value: _is_number(value, int) and value in values
  return Kind(f'one of {", ".join(map(str, values))}', accepts, _parse_integer)


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Kind:
  """A finite number in [low, high]; `above` leaves out `low` itself, `below` leaves out `high`."""
  left_out = {low: above, high: below}
  # NaN fails every comparison, and infinity the upper or the lower bound.
  accepts = lambda value: _is_number(value, int | float) and low <= value <= high and not left_out.get(value)
  expected = f'a number from {low:g} to {high:g}'
  if above or below:
    expected = f'a number {"above" if above else "of at least"} {low:g} and {"below" if below else "at most"} {high:g}'
  return Kind(expected, accepts, float)


def fraction(low: float, high: float) -> Kind:
  """A finite number in [low, high]; on the command line also as a fraction, such as 8/255."""
  kind = number(low, high)
  return kind._replace(expected=f'{kind.expected}, or a fraction such as 8/255', parse=parse_fraction)


def numbers(count: int, low: float, high: float, *, above: bool = False) -> Kind:
  """So many numbers, each as in `number`; on the command line separated by commas."""
  kind = number(low, high, above=above)

  def accepts(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == count and all(map(kind.accepts, value))

  parse = lambda text: tuple(map(float, text.split(',')))
  return Kind(f'{count} numbers separated by commas, each {kind.expected.removeprefix("a number ")}', accepts, parse)


def increasing(low: float, high: float) -> Kind:
  """A tuple of numbers between `low` and `high`, each above the one before, possibly empty; on the command line too."""

  def accepts(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not all(_is_number(item, int | float) for item in value):
      return False
    return all(one < other for one, other in itertools.pairwise((low, *value, high)))

  expected = f'numbers above {low:g} and below {high:g} separated by commas, each above the one before'
  return Kind(expected, accepts, lambda text: tuple(map(float, text.split(','))) if text.strip() else ())


def boolean() -> Kind:
  """True or False; on the command line also 1 and 0."""
  return Kind('true or false', lambda value: isinstance(value, bool), _parse_boolean)


def text(what: str = 'a text', suffix: str = '') -> Kind:
  """A printable text that is not empty and ends with `suffix`."""
  accepts = lambda value: isinstance(value, str) and value.isprintable() and value != '' and value.endswith(suffix)
  return Kind(f'{what} ending in {suffix}' if suffix else f'{what} (printable, not empty)', accepts, str)


def choice(*names: str) -> Kind:
  """One of some names."""
  return Kind(f'one of {", ".join(names)}', lambda value: isinstance(value, str) and value in names, str, names)


def names(*known: str) -> Kind:
  """A tuple of distinct names, possibly empty; on the command line separated by commas."""
  return _several(', '.join(known), lambda item: item in known)._replace(choices=known)


def labels(what: str) -> Kind:
  """A tuple of distinct names of letters, digits, `_`, `-` and `.`; on the command line separated by commas."""
  return _several(what, lambda item: re.fullmatch(LABEL, item) is not None)


def _several(what: str, accepts: Callable[[str], bool]) -> Kind:
  def accepts_all(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) and accepts(item) for item in value):
      return False
    return len(set(value)) == len(value)

  parse = lambda text: tuple(item.strip() for item in text.split(',')) if text.strip() else ()
  return Kind(f'a comma-separated list, each at most once, of {what}', accepts_all, parse)


def optional(kind: Kind) -> Kind:
  """`kind`, or None; on the command line `none` or `null`."""
  return kind._replace(
    expected=f'{kind.expected}, or none',
    accepts=lambda value: value is None or kind.accepts(value),
    parse=lambda text: None if text.lower() in ('none', 'null') else kind.parse(text),
  )


def parse_fraction(text: str) -> float:
  """Returns the number that '0.5' or '8/255' stands for; raises ValueError for other texts."""
  above, slash, below = text.partition('/')
  denominator = float(below) if slash else 1.0
  if denominator == 0:
    raise ValueError(text)
  return float(above) / denominator


def _is_number(value: Any, of: Any) -> bool:
  return isinstance(value, of) and not isinstance(value, bool)


def _parse_integer(text: str) -> int:
  if not re.fullmatch(r'[+-]?[0-9]{1,30}', text):
    raise ValueError(text)
  return int(text)


def _parse_boolean(text: str) -> bool:
  if text.lower() not in ('true', '1', 'false', '0'):
    raise ValueError(text)
  return text.lower() in ('true', '1')


def spell(config: Mapping[str, Any], *names: str) -> str:
  """Returns fields, or all, with their values as flags have them: 'config.seed=1, config.evals=clean,ada'."""
  flat = checks.flatten(config)

  def spelled(value: Any) -> str:
    if isinstance(value, tuple | list):
      return ','.join(map(str, value))
    return value if isinstance(value, str) else str(value).lower()

  return ', '.join(f'config.{name}={spelled(flat[name])}' for name in names or flat)


def clash(config: Mapping[str, Any], name: str, other: str, reason: str, remedy: str) -> str:
  """Returns the sentence that two fields do not go together, perhaps why, and what to set."""
  return f'{spell(config, name)} cannot go with {spell(config, other)}{reason and ", "}{reason}; set {remedy}.'


def check_names(table: Table, flat: Mapping[str, Any]) -> None:
  """Raises UserError where `flat` has a field that `table` has not, or lacks one."""
  for name in flat:
    if name not in table:
      raise UserError(f'unknown field {show(name)}.{did_you_mean(name, table)}')
  for name, field in table.items():
    if name not in flat:
      raise UserError(f'the field {name!r} is missing; its default is {show(field.default)}.')


def check_values(table: Table, flat: Mapping[str, Any]) -> None:
  """Raises UserError for the first value of another type or out of its range."""
  for name, field in table.items():
    if not field.kind.accepts(flat[name]):
      raise _refused(name, field.kind, flat[name])


def _refused(name: str, kind: Kind, value: Any) -> UserError:
  items = value.split(',') if isinstance(value, str) else value if isinstance(value, tuple | list) else ()
  wrong = [item.strip() for item in items if isinstance(item, str) and item not in kind.choices]
  guess = next(filter(None, (did_you_mean(item, kind.choices) for item in wrong)), '')
  return UserError(f'config.{name}={show(value)} must be {kind.expected}.{guess}')


def parse(table: Table, name: str, value: str) -> Any:
  """Returns the value that the command-line text stands for; ranges are left to `check_values`."""
  if name not in table:
    inside = [other for other in table if other.startswith(f'{name}.')]
    if inside:
      raise UserError(f'config.{name} is a group of fields; set one of them, for example config.{inside[0]}.')
    raise UserError(f'Unknown config field {show(name)}.{did_you_mean(name, table)} (--print_config lists all fields.)')
  try:
    return table[name].kind.parse(value)
  except (ValueError, OverflowError):
    raise _refused(name, table[name].kind, value) from None


def describe(table: Table, flat: Mapping[str, Any]) -> Iterator[str]:
  """Yields one line per field, `name = value   # meaning`, aligned."""
  values = {name: show(flat[name]) for name in table}
  name_width, value_width = max(map(len, table)), min(28, max(map(len, values.values())))
  for name, field in table.items():
    options = f' [{", ".join(field.kind.choices)}]' if len(field.kind.choices) > 1 else ''
    yield f'{name:<{name_width}} = {values[name]:<{value_width}}  # {field.meaning}{options}'
