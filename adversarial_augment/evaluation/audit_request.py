"""The flags of `audit`: which model, and what it takes, checked before any device is touched."""

import argparse
import ast
from collections.abc import Callable, Mapping
import contextlib
import functools
from pathlib import Path
import re
from typing import Any

from adversarial_augment import checks
from adversarial_augment.config import fields
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import files

_LARGEST_SIDE = 4096  # pixels
_SHOWN = 10  # names in a message
# What a file holds that is data alone.
_DATA = {
  '.pt': 'a file of PyTorch', '.pth': 'a file of PyTorch', '.ckpt': 'a checkpoint', '.onnx': 'a file of ONNX',
  '.pkl': 'a pickle', '.msgpack': 'a file of Flax', '.npz': 'a file of arrays', '.h5': 'a file of Keras',
}  # fmt: skip


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.add_argument(
    '--model', required=True, metavar='FILE.py:NAME', help='a torch.nn.Module, a function of JAX, or a class or '
    'function that returns one; or a file of jax.export; or a file or folder of `export`',
  )  # fmt: skip
  group = parser.add_argument_group('what the model takes; attributes of the model of these names do as well')
  group.add_argument('--mean', metavar='NUMBERS', help='per channel, subtracted from images in [0, 1]; default: 0')
  group.add_argument('--std', metavar='NUMBERS', help='what they are divided by then; 1/255 gives 0..255; default: 1')
  group.add_argument('--layout', metavar='LAYOUT', help='nchw (usual of PyTorch) or nhwc (usual of JAX)')
  group.add_argument('--size', metavar='SIDE', help='images are resized to it: 224, or HEIGHTxWIDTH (image_size)')
  group.add_argument('--classes', metavar='NAMES', help='of the outputs, in order, by commas (class_names)')


def parse(arguments: argparse.Namespace) -> dict[str, Any]:
  """Returns what the flags say of the model's input, None where they say nothing; raises UserError."""
  split(arguments.model)
  given = {name: getattr(arguments, name) for name in CHECKS}
  return {name: value if value is None else CHECKS[name](value, f'--{name}') for name, value in given.items()}


def split(spec: str) -> tuple[Path, str]:
  """Returns the file or folder of a model and its name in it, '' where it holds one model alone; raises UserError."""
  match = re.fullmatch(r'(.+\.py)(?::(.*))?', spec, re.DOTALL)
  path = files.user_path(match[1] if match else spec, '--model')
  if not spec or not path.exists():
    raise UserError(
      f"--model={show(spec)}: there is no '{path if spec else ''}'; name a model as FILE.py:NAME, a file of "
      'jax.export, or a file or folder of `export`.'
    )
  name = (match and match[2]) or ''
  if match and not (name.isidentifier() and path.is_file()):
    raise UserError(
      f'--model={show(spec)} must be FILE.py:NAME, with the name of a model in the file{_names_in(path)}.'
    )
  if path.suffix in _DATA:
    raise UserError(
      f"--model: '{path}' is {_DATA[path.suffix]}, which does not say how to run it; write a FILE.py that loads it "
      'into a torch.nn.Module or a function of JAX, and name that as FILE.py:NAME.'
    )
  return path, name


def _names_in(path: Path) -> str:
  """Returns in words what a Python file defines, without running it; '' where that cannot be told."""
  found: list[str] = []
  with contextlib.suppress(OSError, SyntaxError, ValueError):
    for node in ast.parse(path.read_bytes()).body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        found.append(node.name)
      elif isinstance(node, ast.Assign):
        found += [target.id for target in node.targets if isinstance(target, ast.Name)]
  return f', such as {", ".join(found[:_SHOWN])}' if found else ''


def _numbers(value: Any, what: str, *, positive: bool = False) -> tuple[float, ...]:
  parts = value
  if isinstance(value, str):
    with contextlib.suppress(ValueError):
      parts = [fields.parse_fraction(part) for part in value.split(',')]
  return checks.per_channel(parts, what, positive=positive, given=value)


def _layout(value: Any, what: str) -> str:
  if not isinstance(value, str) or value.lower() not in ('nchw', 'nhwc'):
    raise UserError(f'{what}={show(value)} must be nchw or nhwc.')
  return value.lower()


def _size(value: Any, what: str) -> tuple[int, int]:
  text = value if isinstance(value, str) else 'x'.join(map(str, value if isinstance(value, tuple | list) else [value]))
  match = re.fullmatch('([0-9]{1,5})(?:x([0-9]{1,5}))?', text)
  sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
  if not all(1 <= side <= _LARGEST_SIDE for side in sides):
    raise UserError(
      f'{what}={show(value)} must be pixels a side from 1 to {_LARGEST_SIDE}, such as 224, or HEIGHTxWIDTH.'
    )
  return sides


def _classes(value: Any, what: str) -> tuple[str, ...]:
  names = value.split(',') if isinstance(value, str) else value
  if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name.strip() for name in names):
    raise UserError(f'{what}={show(value)} must be the names of the classes, separated by commas.')
  found = tuple(name.strip() for name in names)
  if len(found) < 2 or len(set(found)) < len(found):
    raise UserError(f'{what}={show(value)} must be at least two names, each once.')
  return found


# By flag: what it accepts, as text or as the value of an attribute.
CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
  'mean': _numbers, 'std': functools.partial(_numbers, positive=True), 'layout': _layout,
  'size': _size, 'classes': _classes,
}  # fmt: skip
