"""Names: look-up in plain dicts with a helpful error, and dotted names of nested dicts."""

from collections.abc import Iterable, Mapping
import difflib
from typing import Any, TypeVar

from adversarial_augment.errors import UserError

T = TypeVar('T')
_CLOSE = 0.65  # similarity, in [0, 1]


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns " Did you mean 'x'?", or nothing if no known name is close; 'nu' is close to the dotted 'attack.nu'."""
  known = list(known)
  last = lambda dotted: dotted.rpartition('.')[2]
  same = [other for other in known if last(other) == last(name)]
  close = same if len(same) == 1 else difflib.get_close_matches(name, known, n=1, cutoff=_CLOSE)
  if not close and not same:
    parts = difflib.get_close_matches(last(name), map(last, known), n=1, cutoff=_CLOSE)
    close = [other for other in known if last(other) in parts]
  return f" Did you mean '{close[0]}'?" if close else ''


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
  """Returns `table[name]`.

  Raises:
    UserError: there is no such name; the message lists the known ones and the closest.
  """
  if not isinstance(name, str) or name not in table:
    known = ', '.join(sorted(table))
    raise UserError(f"Unknown {kind} '{name}'; known: {known}.{did_you_mean(str(name), table)}")
  return table[name]


def flatten(tree: Mapping[Any, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {dotted name: value} of nested mappings."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) or hasattr(value, 'items'):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts; the inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for name, value in flat.items():
    *groups, leaf = name.split('.')
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
    node[leaf] = value
  return tree
