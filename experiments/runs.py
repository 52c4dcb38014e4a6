"""Runs of the trainer for the experiments: started and resumed by its command line, and read from its files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from adversarial_augment import config as configs
from adversarial_augment import inference
from adversarial_augment.config import command_line
from adversarial_augment.errors import AdversarialAugmentError, Stopped, UserError
from adversarial_augment.storage import artifact, files, untrusted
from adversarial_augment.types import PyTree

Rows = dict[str, Any]  # of a table


def is_finished(workdir: Path) -> bool:
  """Whether a run has finished: its results record the number of steps."""
  return (workdir / 'results' / 'train.json').exists()


def train(config: str, workdir: Path, flags: Sequence[str], *, module: str = 'adversarial_augment.train') -> None:
  """Trains a run unless it is finished; a stopped run resumes.

  Args:
    config: file and variant.
    workdir: of the run.
    flags: other flags of `adversarial_augment.train`.
    module: the trainer.

  Raises:
    Stopped: the run was stopped, and can be resumed.
    UserError: it failed and printed the reason, or it is finished with another config.
  """
  if is_finished(workdir):
    known = inference.read_config(workdir)
    wanted = configs.override(configs.load(config), command_line.split_overrides(flags)[0])
    if changed := configs.differences(known, configs.follow(wanted, known)):
      raise UserError(
        f"'{workdir}' holds a finished run with another config ({'; '.join(changed)}); use the flags of that run, or "
        'name another --workdir.'
      )
    return
  start(module, f'--config={config}', f'--workdir={workdir}', *flags)


def start(module: str, *arguments: str) -> None:
  """Runs a command of the package in a separate process.

  Raises:
    Stopped, UserError: as `train`.
  """
  print(f'$ python -m {module} {" ".join(arguments)}', flush=True)
  code = subprocess.run([sys.executable, '-m', module, *arguments], check=False).returncode
  if code in (75, 130, -2, -15):
    raise Stopped(f'{module} was stopped; repeat this command to resume.')
  if code:
    raise UserError(f'{module} ended with exit code {code}, see above; fix the cause and repeat this command.')


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


class Table:
  """The table of an experiment, to which several processes may add: row -> entry, or row -> seed -> entry.

  Attributes:
    path: of its JSON file; its other files lie beside.
    rows: what it held when it was last read.
  """

  def __init__(
    self,
    output: str,
    name: str,
    texts: Callable[[Rows, Path], Mapping[str, str]],
    picture: Callable[[Rows], bytes] | None = None,
  ):
    """Reads the table that is there.

    Args:
      output: the folder of the table.
      name: of its JSON file.
      texts: (rows, path) -> suffix -> contents of its other files; raises UserError for rows that are not comparable.
      picture: rows -> PNG.

    Raises:
      UserError: there is no such folder, or the file there is not a table of the experiment.
      StorageError: the folder cannot be read or written.
    """
    folder = files.user_path(output, '--output')
    self.path, self._texts, self._picture = folder / name, texts, picture
    with artifact.storage_errors(f"write in --output='{folder}'"):
      if not folder.is_dir():
        raise UserError(f"--output='{folder}' must be an existing folder; create it, or name another one.")
      files.try_to_write(folder)
    self.rows = self._read()

  def add(self, row: str, entry: Mapping[str, Any], seed: str | None = None) -> None:
    """Adds an entry to what the file holds by now, and draws all files anew; raises as `__init__` does."""
    with artifact.lock(self.path.parent, name=self.path.name, wait=True):
      self.rows = self._read()
      if seed is None:
        self.rows[row] = entry
      else:
        self.rows.setdefault(row, {})[seed] = entry
      made = {'.json': json.dumps(self.rows, indent=1, sort_keys=True) + '\n', **self._texts(self.rows, self.path)}
      contents = {suffix: text.encode() for suffix, text in made.items()}
      if self._picture is not None:
        contents['.png'] = self._picture(self.rows)
      with artifact.storage_errors(f"write '{self.path}'"):
        for suffix, content in contents.items():
          artifact.replace(self.path.with_suffix(suffix), content)

  def _read(self) -> Rows:
    with artifact.storage_errors(f"read '{self.path}'"):
      if not self.path.exists():
        return {}
      content = untrusted.read_bytes(self.path, untrusted.MAX_JSON) if self.path.is_file() else b''
    try:
      rows = untrusted.parse_json(content)
      if rows != {}:
        self._texts(rows, self.path)
    except AdversarialAugmentError:
      raise
    except Exception:  # whatever a malformed table raises
      raise UserError(
        f"'{self.path}' is not a table of this experiment; remove it, or name another --output."
      ) from None
    return rows


def minutes(workdir: Path) -> float:
  """Returns the training time of a run over all its starts, without compilation and evaluations."""
  seconds, before = 0.0, 0
  for line in _metrics(workdir):
    seconds += (line['step'] - before) / line['images_per_second']
    before = line['step']
  return seconds * result(workdir, 'train')['config']['batch_size'] / 60


def _metrics(workdir: Path) -> Iterator[PyTree]:
  yield from map(untrusted.parse_json, untrusted.lines(workdir / 'metrics.jsonl'))
