"""What a config field may hold: kinds of values, and tables of fields. `config.py` has the tables themselves."""

from collections.abc import Callable, Iterator, Mapping
import re
from typing import Any, NamedTuple

from adversarial_augment.errors import UserError, show
from adversarial_augment.registry import did_you_mean


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

LABEL = '[A-Za-z0-9][A-Za-z0-9_.-]{0,99}'  # a name that is a part of a path


def integer(low: int, high: int) -> Kind:
  """An integer in [low, high]; a bool is none."""
  accepts = lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
  return Kind(f'an integer from {low} to {high}', accepts, _parse_integer)


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Kind:
  """A finite number in [low, high]; `above` leaves out `low` itself, `below` leaves out `high`."""

  def accepts(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
      return False
    # NaN fails every comparison, and infinity the upper or the lower bound.
    return (low < value if above else low <= value) and (value < high if below else value <= high)

  if above or below:
    expected = f'a number {"above" if above else "of at least"} {low:g} and {"below" if below else "at most"} {high:g}'
  else:
    expected = f'a number from {low:g} to {high:g}'
  return Kind(expected, accepts, float)


def fraction(low: float, high: float) -> Kind:
  """A finite number in [low, high]; on the command line also as a fraction, such as 8/255."""
  kind = number(low, high)
  return kind._replace(expected=f'{kind.expected}, or a fraction such as 8/255', parse=parse_fraction)


def boolean() -> Kind:
  """True or False; on the command line also 1 and 0."""
  return Kind('true or false', lambda value: isinstance(value, bool), _parse_boolean)


def text(what: str = 'a text', suffix: str = '') -> Kind:
  """A printable text that is not empty and ends with `suffix`."""
  accepts = lambda value: isinstance(value, str) and value.isprintable() and value != '' and value.endswith(suffix)
  return Kind(f'{what} ending in {suffix}' if suffix else f'{what} (printable, not empty)', accepts, str)


def choice(*names: str) -> Kind:
  """One of some names."""
  accepts = lambda value: isinstance(value, str) and value in names
  return Kind(f'one of {", ".join(names)}', accepts, str, names)


def integer_choice(*values: int) -> Kind:
  """One of some integers."""
  accepts = lambda value: isinstance(value, int) and not isinstance(value, bool) and value in values
  return Kind(f'one of {", ".join(map(str, values))}', accepts, _parse_integer)


def names(*known: str) -> Kind:
  """A tuple of distinct names, possibly empty; on the command line separated by commas."""

  def accepts(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) and item in known for item in value):
      return False
    return len(set(value)) == len(value)

  parse = lambda text: tuple(item.strip() for item in text.split(',')) if text.strip() else ()
  return Kind(f'a comma-separated list, each at most once, of {", ".join(known)}', accepts, parse, known)


def labels(what: str) -> Kind:
  """A tuple of distinct names of letters, digits, `_`, `-` and `.`; on the command line separated by commas."""

  def accepts(value: Any) -> bool:
    if not isinstance(value, tuple | list) or not all(isinstance(item, str) for item in value):
      return False
    return len(set(value)) == len(value) and all(re.fullmatch(LABEL, item) for item in value)

  parse = lambda text: tuple(item.strip() for item in text.split(',')) if text.strip() else ()
  return Kind(f'a comma-separated list, each at most once, of {what}', accepts, parse)


def optional(kind: Kind) -> Kind:
  """`kind`, or None; on the command line `none` or `null`."""
  return Kind(
    f'{kind.expected}, or none',
    lambda value: value is None or kind.accepts(value),
    lambda text: None if text.lower() in ('none', 'null') else kind.parse(text),
    kind.choices,
  )


def parse_fraction(text: str) -> float:
  """Returns the number that '0.5' or '8/255' stands for.

  Raises:
    ValueError: neither.
  """
  above, slash, below = text.partition('/')
  denominator = float(below) if slash else 1.0
  if denominator == 0:
    raise ValueError(text)
  return float(above) / denominator


def _parse_integer(text: str) -> int:
  if not re.fullmatch(r'[+-]?[0-9]{1,30}', text):
    raise ValueError(text)
  return int(text)


def _parse_boolean(text: str) -> bool:
  try:
    return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
  except KeyError:
    raise ValueError(text) from None


def require_names(table: Table, flat: Mapping[str, Any], source: str) -> None:
  """Checks that `flat` has the fields of `table`, no more and no fewer.

  Raises:
    UserError: an unknown or a missing field; `source` begins the message.
  """
  for name in flat:
    if name not in table:
      raise UserError(f'{source}: unknown field {show(name)}.{did_you_mean(name, table)}')
  for name in table:
    if name not in flat:
      raise UserError(f'{source}: the field {name!r} is missing; its default is {show(table[name].default)}.')


def refusal(table: Table, name: str, value: Any) -> str:
  """Returns the sentence that refuses a value."""
  kind = table[name].kind
  wrong = value.split(',') if isinstance(value, str) else value if isinstance(value, tuple | list) else ()
  guesses = (
    did_you_mean(item.strip(), kind.choices) for item in wrong if isinstance(item, str) and item not in kind.choices
  )
  return f'config.{name}={show(value)} must be {kind.expected}.{next((guess for guess in guesses if guess), "")}'


def require_values(table: Table, flat: Mapping[str, Any]) -> None:
  """Checks every value by its own rule.

  Raises:
    UserError: a value of another type or out of its range.
  """
  for name, field in table.items():
    if not field.kind.accepts(flat[name]):
      raise UserError(refusal(table, name, flat[name]))


def parse(table: Table, name: str, value: str) -> Any:
  """Returns the value that the command-line text stands for; ranges are left to `require_values`.

  Raises:
    UserError: unknown field, or text of another type.
  """
  if name not in table:
    inside = [other for other in table if other.startswith(f'{name}.')]
    if inside:
      raise UserError(f'config.{name} is a group of fields; set one of them, for example config.{inside[0]}.')
    raise UserError(f'Unknown config field {show(name)}.{did_you_mean(name, table)} (--print_config lists all fields.)')
  try:
    return table[name].kind.parse(value)
  except (ValueError, OverflowError):
    raise UserError(refusal(table, name, value)) from None


def describe(table: Table, flat: Mapping[str, Any]) -> Iterator[str]:
  """Yields one line per field, `name = value   # meaning`, aligned."""
  values = {name: show(flat[name]) for name in table}
  name_width, value_width = max(map(len, table)), min(28, max(map(len, values.values())))
  for name, field in table.items():
    options = f' [{", ".join(field.kind.choices)}]' if len(field.kind.choices) > 1 else ''
    yield f'{name:<{name_width}} = {values[name]:<{value_width}}  # {field.meaning}{options}'
