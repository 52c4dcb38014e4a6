"""The configs of `train` and `pretrain`: reading, checking, changing, printing.

The fields are in `tables.py`, the rules between them in `rules.py`.

A config file is a Python file with a docstring, `get_config(variant='')`, which returns a changed `base_config()` or
`pretrain_config()`, and `VARIANTS`, a dict whose keys `--list_configs` prints (see `choose_variant`). It is code and is
executed: name only files that you trust. Values that follow from others (effective learning rate, number of steps) are
not fields, because they would go stale when a flag changes their input; `recipe` derives them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import hashlib
import json
import os
from pathlib import Path
import re
import traceback
import types
from typing import Any, TypeVar

from ml_collections import ConfigDict

from adversarial_augment import checks
from adversarial_augment.checks import did_you_mean
from adversarial_augment.config import fields, published, rules
from adversarial_augment.config.tables import ADDED, NETWORK_SIZES, PRETRAIN, RESUMABLE, TABLES, TRAIN
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import files, untrusted

T = TypeVar('T')


class _Config(ConfigDict):
  """A ConfigDict that does not turn True into 1.0 in a float field, as ConfigDict does."""

  def __setitem__(self, key: Any, value: Any) -> None:
    if isinstance(value, bool) and key in self and isinstance(self[key], float):
      raise TypeError(f"Could not override field '{key}'. {value} is a bool, not a number")
    super().__setitem__(key, value)


def _build(program: str, flat: Mapping[str, Any]) -> ConfigDict:
  tree = checks.nest({name: field.default for name, field in TABLES[program].items()})
  config = _Config({key: _Config(value) if isinstance(value, dict) else value for key, value in tree.items()})
  config.lock().update_from_flattened_dict(dict(flat))
  return config


def base_config() -> ConfigDict:
  """Returns the config of `train` with the paper's full setting: locked, type-safe, plain values only."""
  return _build('train', {})


def pretrain_config() -> ConfigDict:
  """Returns the config of `pretrain`: the EDSR baseline on photographs that ship with installed packages."""
  return _build('pretrain', {})


def _program(flat: Mapping[str, Any]) -> str:
  """Returns whose config this is, by its field names."""
  return max(TABLES, key=lambda program: len(flat.keys() & TABLES[program].keys()))


def validate(config: Mapping[str, Any]) -> None:
  """Raises UserError for the first wrong name, type or value, or broken rule between fields."""
  flat = checks.flatten(config)
  program = _program(flat)
  fields.check_names(TABLES[program], flat)
  fields.check_values(TABLES[program], flat)
  for sentence in rules.broken(program, flat):
    raise UserError(sentence)


def network_sizes(config: ConfigDict) -> dict[str, int]:
  """Returns the sizes of a config's corruption network, those that are none as published."""
  net = config.corruption_net
  return {size: net[size] or published for size, published in NETWORK_SIZES[net.name].items()}


def override(config: ConfigDict, pairs: Mapping[str, str]) -> ConfigDict:
  """Returns a copy with fields replaced, given as {dotted name: text as on the command line}.

  Raises:
    UserError: unknown field, or text of another type. Ranges are left to `validate`.
  """
  flat = checks.flatten(config)
  program = _program(flat)
  return _build(program, flat | {name: fields.parse(TABLES[program], name, value) for name, value in pairs.items()})


def follow(config: ConfigDict, other: ConfigDict | None = None) -> ConfigDict:
  """Returns a config of `train` in which fields of the classifier that are None follow.

  They have the values of the config `other` or, without one, those that belong to the data set, if any.
  """
  flat, known = checks.flatten(config), published.find(config.dataset)
  values = checks.flatten(other) if other is not None else known.fields if known else {}
  return _build('train', flat | {name: values.get(name) for name in published.FOLLOWING if flat[name] is None})


def describe(config: ConfigDict) -> str:
  """Returns every field with its value and meaning, one per line."""
  flat = checks.flatten(config)
  return '\n'.join(fields.describe(TABLES[_program(flat)], flat))


def to_json(config: ConfigDict) -> str:
  """Returns the whole config as JSON, always with the same text for the same values."""
  flat = checks.flatten(config)
  ordered = {name: flat[name] for name in TABLES[_program(flat)]}
  return json.dumps(checks.nest(ordered), indent=2, allow_nan=False) + '\n'


def unknown_to(old: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that came after the version which wrote a config, {dotted name: what their absence means}."""
  flat = checks.flatten(old)
  return {name: value for name, value in ADDED.items() if name in TABLES[_program(flat)] and name not in flat}


def note(path: Path, added: Mapping[str, Any]) -> str:
  """Returns the line that tells of `unknown_to`."""
  meant = ', '.join(f'{name}={show(value)}' for name, value in added.items())
  return f"note: '{path}' is of an older version, which did not know some fields; they are taken as {meant}"


def from_json(text: str, source: str = 'config.json') -> ConfigDict:
  """Returns the config that `to_json` wrote, perhaps that of an older version (`unknown_to`), checked by `validate`.

  Raises:
    UserError: no JSON object, unknown or missing fields, or values against a rule; `source` begins the message.
  """
  try:
    tree = untrusted.parse_json(text, finite=False)  # the rules of the fields name what is not
    if not isinstance(tree, dict):
      raise UserError(f'the file must hold a JSON object, not {show(tree)}.')
    flat = checks.flatten(tree) | unknown_to(tree)
    flat = {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()}
    validate(flat)
  except untrusted.Unusable as error:
    raise UserError(f'{source} is not JSON ({show(str(error))}).') from None
  except UserError as error:
    raise UserError(f'{source}: {error}') from None
  return _build(_program(flat), flat)


def sha256(config: ConfigDict) -> str:
  """Returns the hash, in hex, of all fields but `RESUMABLE`: equal for the configs that may go on with a run."""
  return _sha256(checks.flatten(config))


def _sha256(flat: Mapping[str, Any]) -> str:
  deciding = {name: value for name, value in flat.items() if name not in RESUMABLE}
  return hashlib.sha256(json.dumps(deciding, sort_keys=True, allow_nan=False).encode()).hexdigest()


def all_sha256(config: ConfigDict) -> set[str]:
  """Returns the hashes that this version and older ones give an equal config: those without the newest fields."""
  flat = checks.flatten(config)
  hashes = {_sha256(flat)}
  for name, value in reversed(ADDED.items()):
    if name in flat and json.dumps(flat[name]) != json.dumps(value):  # tuples may have become lists
      break  # an older version could not have meant this
    flat.pop(name, None)
    hashes.add(_sha256(flat))
  return hashes


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns `field: old -> new` for each field but `RESUMABLE` that differs; takes nested dicts, JSON's, or configs."""
  plain = lambda value: list(value) if isinstance(value, tuple) else value
  before, after = ({name: show(plain(value)) for name, value in checks.flatten(one).items()} for one in (old, new))
  found = {name: (before.get(name, '(absent)'), after.get(name, '(absent)')) for name in before | after}
  return [f'{name}: {was} -> {now}' for name, (was, now) in found.items() if name not in RESUMABLE and was != now]


def choose_variant(variant: str, variants: Mapping[str, T]) -> T:
  """Returns `variants[variant]`; for use in the `get_config` of a config file. Raises UserError for other names."""
  if variant not in variants:
    known = ', '.join(f':{name}' for name in variants if name) or 'none'
    raise UserError(f"unknown variant '{variant}'; known: {known}.{did_you_mean(variant, variants)}")
  return variants[variant]


def load(spec: str, program: str = 'train') -> ConfigDict:
  """Returns what `get_config` of a config file gives, which must be a config of `program`: 'train' or 'pretrain'.

  `spec` is `path.py` or `path.py:variant`. A relative `configs/...` path that does not exist is looked up among the
  configs that ship. A UserError names the file, and the line where known.
  """
  match = re.fullmatch(r'(.*\.py)(?::([^/\\:]*))?', spec)
  if not match:
    raise UserError(f'--config={show(spec)} must be PATH.py or PATH.py:VARIANT (--list_configs shows some).')
  path, variant = _find(match[1]), match[2] or ''
  get_config = getattr(_execute(path), 'get_config', None)
  with explained(path):
    if not callable(get_config):
      raise UserError('no function get_config(variant=""); it must return a changed base_config().')
    config = get_config(variant) if variant else get_config()
    if not isinstance(config, ConfigDict):
      raise UserError(f'get_config must return a ConfigDict, not {show(config)}.')
    flat = checks.flatten(config)
    if _program(flat) != program:
      raise UserError(f'a config of adversarial_augment.{_program(flat)}, not of adversarial_augment.{program}.')
    fields.check_names(TABLES[program], flat)
  return config


def _shipped() -> Path:
  """Returns the folder of the shipped configs: inside a wheel, beside the package in a checkout."""
  package = Path(__file__).parents[1]
  return package / 'configs' if (package / 'configs').is_dir() else package.parent / 'configs'


def _find(name: str) -> Path:
  path = Path(os.path.expanduser(name))
  shipped = _shipped().parent / path
  # os.path.exists, unlike Path.exists, is False for a name that no file can have.
  return shipped if path.parts[:1] == ('configs',) and not os.path.exists(path) and os.path.exists(shipped) else path


def _execute(path: Path) -> types.ModuleType:
  module = types.ModuleType(f'config_file_{path.stem}')
  module.__file__ = str(path)
  try:
    source = path.read_bytes()
  except (OSError, ValueError) as error:
    known = [other.name for other in _config_files()]
    reason = getattr(error, 'strerror', None) or error
    there = f'in configs/ there are {", ".join(known) or "none"}.{did_you_mean(path.name, known)}'
    raise UserError(f'Cannot read the config file {path}: {reason}; {there}') from None
  with explained(path):
    exec(compile(source, str(path), 'exec'), module.__dict__)
  return module


@contextmanager
def explained(path: Path) -> Iterator[None]:
  """Reports what goes wrong in a Python file of the user as one line, with its path and, where known, line number."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  except (Exception, SystemExit) as error:
    own = str(path.absolute())  # as the import system has it
    frames = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename in (own, str(path))]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
    text = f'{path}{f":{line}" if line else ""}: {_reason(error)}'
    if text.endswith('?'):
      raise UserError(text) from error
    raise UserError(text, remedy='debug') from error


def _reason(error: BaseException) -> str:
  # ConfigDict reports an unknown field as `Key "x" does not exist ...` when set, and as a wrapped KeyError when read.
  unknown = re.match(r'\W*Key \W+([\w.]+)\W+(?:does not exist|cannot be updated)', str(error))
  if isinstance(error, AttributeError) and error.args and isinstance(error.args[0], KeyError):
    unknown = unknown or re.match(r'\W*([\w.]+)', str(error))
  if unknown:
    return f'unknown field {unknown[1]!r}.{did_you_mean(unknown[1], TRAIN | PRETRAIN)}'
  message = ' '.join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
  missing = (isinstance(error, ModuleNotFoundError) and error.name or '').partition('.')[0]
  package = "'adversarial-augment[torch]'" if missing == 'torch' else missing
  way_out = f'pip install {package}, or run Python where it is' if missing else 'mend it'
  return f'{type(error).__name__}: {message[:300]}; {way_out}'


def _config_files() -> list[Path]:
  return [path for path in files.named(_shipped(), '*.py') if not path.name.startswith('_')]


def list_configs() -> str:
  """Returns, for each config file that ships, its path, the first line of its docstring, and its variants."""
  lines = []
  for path in _config_files():
    module = _execute(path)
    lines.append(f'configs/{path.name}\n  {(module.__doc__ or "").strip().partition(chr(10))[0]}')
    variants = ', '.join(f':{name}' for name in getattr(module, 'VARIANTS', ()) if name)
    lines += [f'  variants: {variants}'] if variants else []
  return '\n'.join(lines)
