"""What a run has found, on disk: results/NAME.json and NAME.csv for each evaluation."""

from collections.abc import Iterator, Mapping
import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from adversarial_augment import files, run_directory

Result = Mapping[str, Any]

_COLUMNS = (
  'evaluation', 'corruption', 'severity', 'num_correct', 'num_images', 'error', 'data', 'origin', 'seed', 'step',
  'checkpoint_sha256',
)  # fmt: skip
# What an evaluation's own file says, and the one that closes a run does not: it holds several.
OF_ONE = (
  'eval', 'split', 'step', 'seed', 'seconds', 'checkpoint_sha256', 'conditions_sha256', 'provenance', 'calibration',
  'ssim_histogram',
)  # fmt: skip


def read(path: Path) -> dict[str, Any]:
  """Returns the results in a file; {} where there is none that can be read."""
  try:
    result = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return result if isinstance(result, dict) and isinstance(result.get('evals', {}), dict) else {}


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
  parts = {f'{name}/{version}': result[version] for version in ('v4', 'v6') if version in result} or {name: result}
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
