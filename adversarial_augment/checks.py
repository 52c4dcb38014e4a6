"""What callers give: names, looked up with a did-you-mean; dotted names; images; radii. No JAX: configs use it."""

from collections.abc import Iterable, Mapping, Sequence
import difflib
import math
from typing import Any, TypeVar

from adversarial_augment.errors import UserError, show

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


def per_channel(value: Any, what: str, *, positive: bool = False, given: Any = None) -> tuple[float, ...]:
  """Returns one number, or one for each of three channels, as a tuple; raises UserError for anything else.

  `what` names the value in messages, which show what was `given` for it, if that is something else.
  """
  shown = show(value if given is None else given)
  try:
    found = tuple(map(float, [value] if isinstance(value, int | float) else value))
  except (ValueError, TypeError):
    found = ()
  if len(found) not in (1, 3) or not all(map(math.isfinite, found)):
    raise UserError(f'{what}={shown} must be one number or three, one per channel, such as 0.49,0.48,0.45.')
  if positive and min(found) <= 0:
    raise UserError(f'{what}={shown} must be above 0.')
  return found


def check_images(
  images: Any,
  dtypes: Sequence[str],
  *,
  channels: int | None = None,
  min_images: int = 1,
  min_side: int = 1,
  values: bool = True,
) -> None:
  """Checks images [n, h, w, c] of NumPy or JAX.

  Args:
    images: floats must lie in [0, 1].
    dtypes: names of the dtypes they may have; 'floats' stands for all floats.
    channels: what c must be; None: any.
    min_images: the least n.
    min_side: the least h and w.
    values: whether to check the range; a traced array has no values.

  Raises:
    UserError: another shape or dtype, a value beyond [0, 1], or NaN.
  """
  name, shape = str(images.dtype), tuple(images.shape)
  is_float = name.startswith(('float', 'bfloat'))
  has_dtype = name in dtypes or (is_float and 'floats' in dtypes)
  has_shape = len(shape) == 4 and shape[0] >= min_images and min(shape[1:3]) >= min_side
  if not (has_dtype and has_shape and shape[3] and channels in (None, shape[3])):
    least = f', n at least {min_images}' if min_images else ''
    sides = f', h and w at least {min_side}' if min_side > 1 else ''
    raise UserError(
      f'images are {name} of shape {list(shape)}; they must be {" or ".join(dtypes)} [n, h, w, {channels or "c"}]'
      f'{least}{sides}.'
    )
  if values and is_float and shape[0] and not (images.min() >= 0 and images.max() <= 1):  # NaN too
    raise UserError(
      f'images run from {images.min():g} to {images.max():g}; they must lie in [0, 1]; normalise inside '
      'logits_fn, as the classifiers of this package do.'
    )


def too_large_radius(norm: str, epsilon: float, num_values: int | None = None) -> str:
  """Returns why an l_p ball is too large, and the radius that may have been meant; '' if it is not too large.

  `num_values` of an image, pixels times channels, bounds the radius of l_2 balls.
  """
  largest = 1.0 if norm == 'linf' else math.sqrt(num_values) if num_values else math.inf
  if epsilon <= largest:
    return ''
  return f'must be at most {largest:.4g}, because images are in [0, 1]; did you mean {epsilon:g}/255?'
