"""Reads what runs left in their folders, and refuses what no report should be made of."""

from collections.abc import Iterator, Sequence
import json
import math
import os
from pathlib import Path
import re
import shlex
from typing import Any, NamedTuple

from adversarial_augment import figures, files
from adversarial_augment.errors import UserError
from adversarial_augment.reporting import checks

METRICS = tuple(field for _, fields in figures.PANELS for field in fields)
_PNG = b'\x89PNG\r\n\x1a\n'


class Run(NamedTuple):
  """The files of one run, checked; what it does not have is empty."""

  folder: Path
  label: str  # no two runs of a page share one
  config: dict[str, Any]
  closing: dict[str, Any]  # results/train.json; empty until training has ended
  results: dict[str, dict[str, Any]]  # by evaluation
  between: list[dict[str, Any]]  # results/eval_STEP.json, by step
  metrics: list[dict[str, Any]]  # metrics.jsonl
  examples: bytes | None  # figures/ada_examples.png


def collect(folders: Sequence[str | os.PathLike]) -> list[Run]:
  """Returns the runs of some folders, in their order.

  Args:
    folders: workdirs of `train`; at least one, each once.

  Raises:
    UserError: a folder is missing, given twice, or holds no run; or one of its files is damaged.
  """
  paths = [files.user_path(os.fspath(folder), 'DIR') for folder in folders]
  if not paths:
    raise UserError('A report needs at least one run; name the workdir of a run.')
  whole = [path.resolve() for path in paths]
  for path, resolved in zip(paths, whole, strict=True):
    if whole.count(resolved) > 1:
      raise UserError(f"'{path}' is given twice; name every run once.")
  names = [path.name for path in whole]
  distinct = len(set(names)) == len(names)
  return [_run(path, _printable(name if distinct else str(path))) for path, name in zip(paths, names, strict=True)]


def evaluate_command(folder: Path, *names: str) -> str:
  """Returns the command that measures some evaluations of a run."""
  return f'python -m adversarial_augment.evaluate --workdir={shlex.quote(str(folder))} --evals={",".join(names)}'


def _run(folder: Path, label: str) -> Run:
  if not folder.is_dir():
    what = 'is a file' if folder.exists() else 'does not exist'
    raise UserError(f"'{folder}' {what}; name the workdir of a run.")
  config = _read(folder / 'config.json')
  if config is None:
    raise UserError(f"'{folder}' is not a run: it has no config.json; name the --workdir of a training run.")
  again = 'run the training again'
  checks.conform(config, checks.CONFIG, f"'{folder / 'config.json'}'", again)
  closing = _read(folder / 'results' / 'train.json')
  if closing is not None:
    checks.conform(closing, checks.CLOSING, f"'{folder / 'results' / 'train.json'}'", again)
  return Run(
    folder,
    label,
    config,
    closing or {},
    dict(_results(folder)),
    list(_between(folder / 'results')),
    _metrics(folder / 'metrics.jsonl'),
    _examples(folder / 'figures' / 'ada_examples.png'),
  )


def _results(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the evaluations of the test set, by name."""
  for name in checks.EVALUATIONS:
    path = folder / 'results' / f'{name}.json'
    result = _read(path)
    if result is not None:
      checks.evaluation(name, result, f"'{path}'", f'evaluate again: {evaluate_command(folder, name)} --overwrite')
      yield name, result


def _between(folder: Path) -> Iterator[dict[str, Any]]:
  """Yields the evaluations between steps, by step."""
  paths = [path for path in folder.glob('eval_*.json') if re.fullmatch('[0-9]{1,12}', path.stem[5:])]
  for path in sorted(paths, key=lambda path: int(path.stem[5:])):
    result = _read(path)
    checks.between(result, f"'{path}'", 'remove the file')
    yield result


def _metrics(path: Path) -> list[dict[str, Any]]:
  """The lines of a log; a last one that was cut off by a kill is left out, as a resume leaves it out."""
  lines = (_content(path) or '').splitlines(keepends=True)
  if lines and not lines[-1].endswith('\n'):
    lines.pop()
  records = []
  for number, line in enumerate(lines, start=1):
    source = f"'{path}' line {number}"
    record = _parse(line, source)
    checks.log_line(record, METRICS, source, 'remove the line')
    records.append(record)
  return records


def _examples(path: Path) -> bytes | None:
  """The bytes of the picture of adversarial examples, where there is one."""
  try:
    content = path.read_bytes()
  except FileNotFoundError:
    return None
  except OSError as error:
    raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error
  if not content.startswith(_PNG):
    raise UserError(f"'{path}' is not a PNG picture; remove it, or run the training command again.")
  return content


def _read(path: Path) -> Any:
  """The content of a JSON file; None where there is no such file."""
  content = _content(path)
  return None if content is None else _parse(content, f"'{path}'")


def _content(path: Path) -> str | None:
  try:
    return path.read_text(encoding='utf-8')
  except FileNotFoundError:
    return None
  except UnicodeDecodeError as error:
    raise UserError(f"'{path}' is damaged ({error.reason}); make it anew.") from error
  except OSError as error:
    raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from error


def _parse(content: str, source: str) -> Any:
  try:
    return json.loads(content, parse_float=_finite, parse_constant=_finite)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{source} is damaged ({error}); make it anew.') from error


def _finite(text: str) -> float:
  """A float of JSON; NaN and infinity are none."""
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{text} is not a finite number')
  return value


def _printable(name: str) -> str:
  """A name without control characters and lone surrogates, which file names may hold."""
  return ''.join(letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}' for letter in name)
