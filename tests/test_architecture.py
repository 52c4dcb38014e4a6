"""The architecture of docs/design.md, read from the imports of every file: which way the arrows point."""

import ast
from collections.abc import Iterator
import copy
import functools
from pathlib import Path
import re
import subprocess
import sys

import pytest

from adversarial_augment.cli import ways_out

ROOT = Path(__file__).parent.parent
PACKAGE = 'adversarial_augment'


def layers() -> dict[str, int]:
  """Returns the layer of every room, as docs/design.md draws them: a module directly in the package, or a folder."""
  _, drawn = re.findall(r'^```\n(.*?)^```', (ROOT / 'docs' / 'design.md').read_text(), re.MULTILINE | re.DOTALL)
  found: dict[str, int] = {}
  for line in drawn.splitlines():
    number, *rooms = line.split()
    found |= dict.fromkeys(rooms, int(number))
  return found


LAYERS = layers()
COMMANDS = [name for name, layer in LAYERS.items() if layer == max(LAYERS.values())]
HAIKU = ('classifiers', 'corruption_nets')
CONFIG_DICT = ('config', 'evaluation', 'exporting', 'inference', 'run', 'training', *COMMANDS)
HEAVY = ('matplotlib', 'orbax', 'skimage', 'sklearn', 'tensorboardX', 'tensorflow_datasets', 'torch')


def package_files() -> list[Path]:
  return sorted((ROOT / PACKAGE).rglob('*.py'))


def name_of(path: Path) -> str:
  """adversarial_augment/attacks/ascent.py -> attacks.ascent"""
  parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@functools.cache
def tree(path: Path) -> ast.Module:
  return ast.parse(path.read_text(), str(path))


@functools.cache
def modules() -> frozenset[str]:
  return frozenset(name_of(path) for path in package_files())


def imported(node: ast.AST) -> Iterator[str]:
  """Yields the dotted names that an import statement names, `from a import b` as 'a.b'."""
  if isinstance(node, ast.Import):
    yield from (alias.name for alias in node.names)
  elif isinstance(node, ast.ImportFrom):
    assert node.level == 0, 'imports are absolute'
    yield from (f'{node.module}.{alias.name}' for alias in node.names)


def imports(path: Path) -> set[str]:
  return {name for node in ast.walk(tree(path)) for name in imported(node)}


def own_imports(path: Path) -> set[str]:
  """Returns the modules of the package that a file imports, anywhere in it."""
  found = set()
  for name in imports(path):
    if name.startswith(f'{PACKAGE}.'):
      inside = name.removeprefix(f'{PACKAGE}.')
      while inside and inside not in modules():  # 'errors.UserError' -> 'errors'
        inside = inside.rpartition('.')[0]
      if inside:
        found.add(inside)
  return found


def top(name: str) -> str:
  return name.partition('.')[0]


def test_every_module_has_a_layer():
  assert {top(name) for name in modules() if name} == set(LAYERS)


@pytest.mark.parametrize('path', package_files(), ids=name_of)
def test_imports_point_downwards(path):
  name = name_of(path)
  if not name:  # the package itself
    assert not own_imports(path)
    return
  own = top(name)
  for other in {top(other) for other in own_imports(path)} - {own}:
    lower = LAYERS[other] < LAYERS[own] or (own in COMMANDS and other in COMMANDS)
    assert lower, f'{name} (layer {LAYERS[own]}) imports {other} (layer {LAYERS[other]})'


def test_no_module_imports_itself_through_others():
  graph = {name_of(path): own_imports(path) - {name_of(path)} for path in package_files()}
  done: set[str] = set()

  def visit(name: str, trail: tuple[str, ...]) -> None:
    assert name not in trail, f'cycle: {" -> ".join((*trail, name))}'
    if name not in done:
      for other in graph[name]:
        visit(other, (*trail, name))
      done.add(name)

  for name in graph:
    visit(name, ())


def test_nothing_imports_what_is_outside_the_package():
  for path in package_files():
    outside = {top(name) for name in imports(path)} & {'benchmarks', 'configs', 'experiments', 'tests'}
    assert not outside, path


def test_only_network_folders_import_haiku():
  users = {top(name_of(path)) for path in package_files() if 'haiku' in map(top, imports(path))}
  assert users == set(HAIKU)


def test_only_the_joints_mention_config_dict():
  users = {top(name_of(path)) for path in package_files() if 'ConfigDict' in path.read_text()}
  assert users <= set(CONFIG_DICT), users - set(CONFIG_DICT)


def test_heavy_imports_happen_where_they_are_used():
  for path in package_files():
    if name_of(path) == 'pytorch':  # it is for those who use PyTorch
      continue
    for statement in copy.deepcopy(tree(path)).body:
      type_checking = isinstance(statement, ast.If) and ast.unparse(statement.test) == 'TYPE_CHECKING'
      if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) or type_checking:
        continue
      for part in ast.walk(statement):
        if isinstance(part, ast.FunctionDef):  # a method: what is inside runs when it is called
          part.body = []
      early = {top(name) for part in ast.walk(statement) for name in imported(part)}
      assert not early & set(HEAVY), f'{path}:{statement.lineno}'


def run_python(code: str) -> str:
  return subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_datasets_do_not_import_jax():
  names = [f'{PACKAGE}.{name}' for name in sorted(modules()) if top(name) == 'datasets']
  heavy = ('jax', 'haiku', 'tensorflow', 'torch', *HEAVY)
  code = f'import sys, {", ".join(names)}\nprint([name for name in {heavy} if name in sys.modules])'
  assert len(names) > 5
  assert run_python(code).strip() == '[]'


def test_command_lines_start_without_jax():
  """So that `--help` and a wrong flag are answered at once."""
  names = [f'{PACKAGE}.{name}' for name in COMMANDS]
  code = f'import sys, {", ".join(names)}\nprint([name for name in ("jax", "haiku", "orbax") if name in sys.modules])'
  assert run_python(code).strip() == '[]'


# Rooms that define the flags and the fields, or are parts of the command of that name.
SPEAK_OF_FLAGS = ('cli', 'config', 'preparation', 'reporting', *COMMANDS)
FLAG_OR_FIELD = re.compile(r'(?<![\w-])--[a-z_]+(?![a-z_-])|\bconfig\.(?!json)[a-z_]+')
# And what tells in `audit` which flag a model may need.
SPEAK_TOO = tuple(f'evaluation.{name}' for name in ('attack_request', 'audit_request', 'distances', 'foreign', 'trial'))
OF_GIT = {'--porcelain'}


def messages(path: Path) -> Iterator[tuple[int, str]]:
  """Yields the line and the text of each string in a file, parts of f-strings too, but for docstrings."""
  documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
  first = [node.body[0] for node in ast.walk(tree(path)) if isinstance(node, documented) and node.body]
  docstrings = {id(statement.value) for statement in first if isinstance(statement, ast.Expr)}
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
      yield node.lineno, node.value


def test_only_commands_speak_of_flags_and_fields():
  """Elsewhere errors state facts (path, found, wanted); the command that runs adds the way out."""
  for path in package_files():
    name = name_of(path)
    if top(name) in SPEAK_OF_FLAGS or name in SPEAK_TOO:
      continue
    for line, text in messages(path):
      assert not set(FLAG_OR_FIELD.findall(text)) - OF_GIT, f'{path}:{line}: {text}'


def test_commands_know_every_way_out_that_errors_name():
  calls = [node for path in package_files() for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
  raised = [call for call in calls if ast.unparse(call.func) in ('CheckpointError', 'StorageError', 'UserError')]
  remedies = {keyword.value.value for call in raised for keyword in call.keywords if keyword.arg == 'remedy'}
  assert remedies == {remedy for remedy, way_out in ways_out.WAYS_OUT.items() if way_out.startswith('or ')}


def python_files() -> list[Path]:
  folders = (PACKAGE, 'benchmarks', 'configs', 'docs', 'experiments', 'tests')
  return [*ROOT.glob('*.py'), *(path for folder in folders for path in (ROOT / folder).rglob('*.py'))]


def test_nothing_is_called_utils():
  vague = ('utils', 'util', 'helpers', 'misc', 'common')
  assert not [path for path in python_files() if path.stem in vague or path.parent.name in vague]


def test_no_global_state():
  for path in package_files():
    assert not [node for node in ast.walk(tree(path)) if isinstance(node, ast.Global)], path
