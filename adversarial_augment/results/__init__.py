"""What a run has found, on disk: results/NAME.json and NAME.csv for each evaluation, and the log of its training."""

from collections.abc import Iterator, Mapping, Sequence
import csv
import hashlib
import io
import json
from pathlib import Path
import shlex
from typing import Any

from adversarial_augment import metrics
from adversarial_augment.config import fields
from adversarial_augment.errors import UserError
from adversarial_augment.results import rules
from adversarial_augment.results.rules import OF_ONE as OF_ONE
from adversarial_augment.results.rules import robustness_name as robustness_name
from adversarial_augment.storage import files, run_directory, untrusted

Result = Mapping[str, Any]

_COLUMNS = (
  'evaluation', 'corruption', 'severity', 'num_correct', 'num_images', 'error', 'data', 'origin', 'seed', 'step',
  'checkpoint_sha256',
)  # fmt: skip
_METRIC = fields.optional(rules.FINITE)


def read(path: Path) -> dict[str, Any]:
  """Returns the results in a file, unchecked, to see what they are of; {} where there is none that can be read."""
  try:
    result = untrusted.read_json(path)
  except (OSError, ValueError):
    return {}
  return result if isinstance(result, dict) and isinstance(result.get('evals', {}), dict) else {}


def load(workdir: Path, name: str) -> dict[str, Any]:
  """Returns results/NAME.json of a run, checked; {} where there is none.

  Args:
    workdir: of the run.
    name: of an evaluation, an attack (see `robustness_name`), or 'train' or 'eval_STEP', which sum up several.

  Raises:
    UserError: the file cannot be read, does not hold what it must, or contradicts itself; says what makes it anew.
  """
  path = workdir / 'results' / f'{name}.json'
  remedy = 'remove it, and run the training command again'
  if name in rules.EVALUATIONS:
    remedy = f'evaluate again: {evaluate_command(workdir, name)} --overwrite'
  elif name.startswith(rules.ROBUSTNESS):
    remedy = 'remove it, and run the attack again'
  result = read_json(path, remedy)
  if result is None:
    return {}
  rules.check(name, result, f"'{path}'", remedy)
  return result


def load_robustness(workdir: Path) -> list[dict[str, Any]]:
  """Returns the results of all attacks on a run, checked, by attack, norm and epsilon.

  Raises:
    UserError: as of `load`.
  """
  names = [path.stem for path in files.named(workdir / 'results', f'{rules.ROBUSTNESS}*.json')]
  found = [load(workdir, name) for name in names if rules.is_robustness_name(name)]
  return sorted(found, key=lambda result: (result['attack'], result['norm'], result['epsilon']))


def load_data(workdir: Path) -> dict[str, Any]:
  """Returns data.json of a run, checked: the hash of each split, `image_shape`, `class_names`; {} where there is none.

  Older runs have hashes only.

  Raises:
    UserError: the file cannot be read, or does not hold what it must.
  """
  path, remedy = workdir / 'data.json', 'bring it back, or remove it'
  data = read_json(path, remedy)
  if data is None:
    return {}
  rules.conform(data, rules.OBJECT, f"'{path}'", remedy, 'the file')
  rules.conform(data, {name: rules.DATA.get(name, rules.STRING) for name in data}, f"'{path}'", remedy)
  return data


def evaluate_command(workdir: Path, *names: str) -> str:
  """Returns the command that measures some evaluations of a run."""
  return f'python -m adversarial_augment.evaluate --workdir={shlex.quote(str(workdir))} --evals={",".join(names)}'


def read_json(path: Path, remedy: str) -> Any:
  """Returns the content of a JSON file; None where there is no such file.

  Args:
    path: the file.
    remedy: ends the message.

  Raises:
    UserError: it cannot be read, or is no JSON; NaN and infinity are none.
  """
  try:
    return untrusted.read_json(path)
  except FileNotFoundError:
    return None
  except untrusted.Unusable as error:
    raise UserError(f"'{path}' is damaged ({error}); {remedy}.") from error
  except OSError as error:
    raise UserError(f"Cannot read '{path}': {error.strerror or error}; {remedy}.") from error


def read_log(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
  """Returns of each line of metrics.jsonl the step and some metrics; nothing where there is no such file.

  A last line that a kill has cut off is left out, as a resume leaves it out.

  Args:
    path: the file.
    names: of the metrics to be read: each a finite number, null, or not there.

  Raises:
    UserError: the file cannot be read, or a line does not hold what it must.
  """
  remedy = 'remove the line'
  records: list[dict[str, Any]] = []
  try:
    for number, line in enumerate(untrusted.lines(path), start=1):
      if not line.endswith(b'\n'):
        break
      source = f"'{path}' line {number}"
      try:
        record = untrusted.parse_json(line)
      except untrusted.Unusable as error:
        raise UserError(f'{source} is damaged ({error}); {remedy}.') from error
      rules.conform(record, {'step': rules.PART}, source, remedy)
      rules.conform(record, {name: _METRIC for name in names if name in record}, source, remedy)
      records.append({name: record[name] for name in ('step', *names) if name in record})
  except FileNotFoundError:
    return []
  except untrusted.Unusable as error:
    raise UserError(f"'{path}' cannot be used ({error}); remove the file.") from error
  except OSError as error:
    raise UserError(f"Cannot read '{path}': {error.strerror or error}; remove the file.") from error
  return records


def write(path: Path, result: Result) -> None:
  """Writes a file of results, whole or not at all.

  Raises:
    NumericalError: a value is NaN or infinite.
    StorageError: it cannot be written.
  """
  with files.storage_errors(f"write '{path}'"):
    path.parent.mkdir(exist_ok=True)
  run_directory.write_json(path, result)


def write_evaluation(folder: Path, name: str, result: Result) -> None:
  """Writes NAME.csv, one line a cell, and then NAME.json.

  Raises:
    NumericalError: a value is NaN or infinite.
    StorageError: they cannot be written.
  """
  with files.storage_errors(f"write '{folder}'"):
    folder.mkdir(exist_ok=True)
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(_COLUMNS)
  table.writerows(_rows(name, result))
  with files.storage_errors(f"write '{folder / name}.csv'"):
    files.replace(folder / f'{name}.csv', text.getvalue().encode())
  write(folder / f'{name}.json', result)


def _rows(name: str, result: Result) -> Iterator[tuple]:
  n = result['num_images']
  data = result['provenance']['data'][result['split']]['name']
  about = lambda origin, data=data: (data, origin, result['seed'], result['step'], result['checkpoint_sha256'])
  if 'error' in result:
    for corruption, errors in result['error'].items():
      for severity, (error, correct) in enumerate(zip(errors, result['num_correct'][corruption], strict=True), 1):
        yield name, corruption, severity, correct, n, error, *about(result['origin'])
    return
  versions = [version for version in metrics.CIFAR10_1_COUNTS if version in result]
  parts = {f'{name}/{version}': result[version] for version in versions} or {name: result}
  for label, part in parts.items():
    yield (
      label,
      '',
      '',
      part['num_correct'],
      part['num_images'],
      1 - part['accuracy'],
      *about(part['origin'], data if label == name else label),
    )


def digest(conditions: Any) -> str:
  """Returns the hash of what a result depends on: equal for evaluations that must find the same."""
  return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
