"""Runs of the trainer for the experiments: started through its command line, resumed by it, and read from its files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
import subprocess
import sys
from typing import Any

from adversarial_augment import config as configs
from adversarial_augment import inference
from adversarial_augment.config import command_line
from adversarial_augment.errors import AdversarialAugmentError, Stopped, UserError
from adversarial_augment.storage import files, untrusted
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
    wanted = configs.override(configs.load(config), command_line.split_overrides(flags)[0])
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
    return untrusted.read_json(path)
  except (OSError, ValueError):
    raise UserError(f"'{path}' is missing or damaged; evaluate {workdir} again.") from None


def open_table(
  output: str, name: str, draw: Callable[[dict[str, Any], Path], object]
) -> tuple[Path, dict[str, dict[str, Any]]]:
  """Returns the path of an experiment's table, and what was written there before: row -> what it holds.

  Args:
    output: the folder of the table.
    name: of its file.
    draw: makes of a table, and its path, what will be written beside it; tried on the table that is there.

  Raises:
    UserError: there is no such folder, or what is there is no table of the experiment.
    StorageError: nothing can be read or written there.
  """
  folder = files.user_path(output, '--output')
  path = folder / name
  with files.storage_errors(f"write in --output='{folder}'"):
    if not folder.is_dir():
      raise UserError(f"--output='{folder}' must be a folder that exists; make it, or name another one.")
    files.try_to_write(folder)
    if not path.exists():
      return path, {}
    content = untrusted.read_bytes(path, untrusted.MAX_JSON) if path.is_file() else b''
  try:
    table = untrusted.parse_json(content)
    if table != {}:
      draw(table, path)
  except AdversarialAugmentError:
    raise
  except Exception:  # whatever a wrong form leads to
    raise UserError(f"'{path}' is no table of this experiment; remove it, or name another --output.") from None
  return path, table


def minutes(workdir: Path) -> float:
  """Returns how long a run trained, all its starts together, without compilation and evaluations."""
  seconds, before = 0.0, 0
  for line in _metrics(workdir):
    seconds += (line['step'] - before) / line['images_per_second']
    before = line['step']
  return seconds * result(workdir, 'train')['config']['batch_size'] / 60


def _metrics(workdir: Path) -> Iterator[PyTree]:
  yield from map(untrusted.parse_json, untrusted.lines(workdir / 'metrics.jsonl'))
