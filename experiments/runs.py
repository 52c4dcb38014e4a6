"""Runs of the trainer for the experiments: started through its command line, resumed by it, and read from its files."""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from adversarial_augment import cli, files, inference
from adversarial_augment import config as configs
from adversarial_augment.errors import Stopped, UserError
from adversarial_augment.types import PyTree


def is_finished(workdir: Path) -> bool:
  """Whether a run has closed: its results say how many steps it made."""
  return (workdir / 'results' / 'train.json').exists()


def train(config: str, workdir: Path, flags: Sequence[str]) -> None:
  """Trains what is not trained yet; a run that was stopped goes on.

  Args:
    config: file and variant.
    workdir: of the run.
    flags: further ones of `adversarial_augment.train`.

  Raises:
    Stopped: the run was, and can go on.
    UserError: it failed, and its own line has said why; or it has finished, with another config.
  """
  if is_finished(workdir):
    wanted = configs.override(configs.load(config), cli.split_overrides(flags)[0])
    if changed := configs.differences(inference.read_config(workdir), wanted):
      raise UserError(
        f"'{workdir}' holds a finished run with another config ({'; '.join(changed)}); give the flags that it had, or "
        'name another --workdir.'
      )
    return
  start('adversarial_augment.train', f'--config={config}', f'--workdir={workdir}', *flags)


def start(module: str, *arguments: str) -> None:
  """Runs a program of the package, in a process of its own.

  Raises:
    Stopped, UserError: as of `train`.
  """
  print(f'$ python -m {module} {" ".join(arguments)}', flush=True)
  code = subprocess.run([sys.executable, '-m', module, *arguments], check=False).returncode
  if code in (75, 130, -2, -15):
    raise Stopped(f'{module} was stopped; the same command goes on.')
  if code:
    raise UserError(f'{module} ended with exit code {code}, see above; mend that, and start the same command again.')


def result(workdir: Path, name: str) -> dict[str, Any]:
  """Returns results/NAME.json of a run.

  Raises:
    UserError: there is none.
  """
  path = workdir / 'results' / f'{name}.json'
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    raise UserError(f"'{path}' is missing or damaged; evaluate {workdir} again.") from None


def open_table(path: Path, fields: Sequence[str], *, depth: int) -> dict[str, dict[str, Any]]:
  """Returns what an experiment has written before, or {}, after a look whether it can write there.

  Args:
    path: of the table's JSON.
    fields: that each entry must have.
    depth: keys that lead to an entry.

  Raises:
    UserError: there is no such folder, or the file is no such table.
    StorageError: the folder cannot be written.
  """
  if not path.parent.is_dir():
    raise UserError(f"--output='{path.parent}' must be a folder that exists; make it, or name another one.")
  with files.storage_errors(f"write in --output='{path.parent}'"):
    probe = path.with_name(f'.{path.name}.probe')
    files.replace(probe, b'')
    probe.unlink()
  if not path.exists():
    return {}
  try:
    table = json.loads(path.read_text())
    entries = [table]
    for _ in range(depth):
      entries = [below for above in entries for below in above.values()]
    if not all(field in entry for entry in entries for field in fields):
      raise ValueError
  except (OSError, ValueError, AttributeError, TypeError):
    raise UserError(f"'{path}' is no table of this experiment; remove it, or name another --output.") from None
  return table


def write_table(path: Path, table: Mapping[str, Any]) -> None:
  with files.storage_errors(f"write '{path}'"):
    files.replace(path, (json.dumps(table, indent=1, sort_keys=True) + '\n').encode())


def minutes(workdir: Path) -> float:
  """Returns how long a run trained, all its starts together, without compilation and evaluations."""
  seconds, before = 0.0, 0
  for line in _metrics(workdir):
    seconds += (line['step'] - before) / line['images_per_second']
    before = line['step']
  return seconds * result(workdir, 'train')['config']['batch_size'] / 60


def _metrics(workdir: Path) -> Iterator[PyTree]:
  with (workdir / 'metrics.jsonl').open() as lines:
    yield from map(json.loads, lines)
