"""A copy of a run's folder under a URL.

  URL/config.json, data.json, metrics.jsonl, results/...   as in the run's folder
  URL/compiled/...                                         compiled programs
  URL/checkpoints/<step>/...                               its manifest is written last and deleted first

A checkpoint without a manifest is not there. Every other one is verified as a local one is, before it is used.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
import fnmatch
import functools
import hashlib
import os
from pathlib import Path, PurePosixPath
import re
import shutil
from typing import Any

from adversarial_augment.cli import environment, streams
from adversarial_augment.errors import CheckpointError, UserError
from adversarial_augment.storage import artifact, checkpoints, files, run_directory, untrusted
from adversarial_augment.storage.artifact import MANIFEST, Damaged
from adversarial_augment.storage.remote import Remote, Unreachable

COMPILED = 'compiled'  # the folder of compiled programs
_FILES = (  # of a run, beside its checkpoints
  'config.json', 'data.json', 'environment.json', 'init_from.json', 'segments.json', 'metrics.jsonl',
  'results/*.json', 'results/*.csv', 'figures/*.png', 'report.html', 'weights.safetensors',
)  # fmt: skip
_MANIFESTS = re.compile(rf'checkpoints/(0|[1-9]\d{{0,11}})/{MANIFEST}')
_MAX_FILE = 1 << 30  # bytes of a file of a run other than those of a checkpoint


# Writing.


def run_files(workdir: Path) -> list[str]:
  """Returns the files of a run that a mirror has, beside its checkpoints, in the order in which they are written."""
  return [_relative(path, workdir) for pattern in (f'{COMPILED}/*', *_FILES) for path in files.named(workdir, pattern)]


def put_checkpoint(remote: Remote, workdir: Path, step: int) -> None:
  """Writes all of a checkpoint but its manifest, without which it is not there."""
  folder = workdir / 'checkpoints' / str(step)
  for name in checkpoints.read_manifest(folder, step)['files']:
    remote.put(folder / name, f'checkpoints/{step}/{name}')


def put_manifest(remote: Remote, workdir: Path, step: int) -> None:
  """Makes a checkpoint exist, all of whose other files have been written."""
  name = f'checkpoints/{step}/{MANIFEST}'
  remote.put(workdir / name, name)


def prune(remote: Remote, step: int, keep: int) -> None:
  """Deletes all but the newest `keep` checkpoints up to `step`, and at least two; what is newer stays."""
  found = remote.sizes('checkpoints')
  whole = [number for number in _steps(found) if number <= step]
  old = set(whole[max(keep, 2) :])
  manifests = [f'checkpoints/{number}/{MANIFEST}' for number in old]
  remote.delete(manifests)
  first = min(set(whole) - old, default=step)
  remote.delete([name for name in found if 0 <= _step_of(name) < first and name not in manifests])


def _steps(names: Iterable[str]) -> list[int]:
  """Returns the steps of the checkpoints that have a manifest, the newest first."""
  return sorted((int(match[1]) for match in map(_MANIFESTS.fullmatch, names) if match), reverse=True)


def newest_step(remote: Remote) -> int:
  """Returns the step of the newest checkpoint, good or bad; 0 where there is none."""
  return max(_steps(remote.sizes('checkpoints')), default=0)


def _step_of(name: str) -> int:
  """Returns the step of a file below checkpoints/, or -1 for one that is not of a checkpoint."""
  number = name.split('/')[1]
  return int(number) if number.isdecimal() else -1


def _relative(path: Path, workdir: Path) -> str:
  return path.relative_to(workdir).as_posix()


# Reading.

Check = Callable[[Path, Mapping[str, Any]], None]  # takes a folder with the run's files, and a checkpoint's manifest


def fetch(remote: Remote, workdir: Path, check: Check = lambda folder, manifest: None, *, refresh: bool = False) -> int:
  """Gives a folder the newest whole checkpoint of a mirror and the other files of the run, if its own is older.

  With `refresh`, it gets the other files in any case. `check` raises UserError if the run must not be used; then the
  folder is as it was.

  Returns:
    The step of the checkpoint that the mirror and the folder share, or 0.

  Raises:
    CheckpointError: the mirror has checkpoints, all of them are damaged, and the folder has none.
    UserError: `check` raised it, or another process uses the folder.
    Unreachable: the mirror cannot be read.
  """
  run_directory.create(workdir)
  with artifact.lock(workdir), _scratch(workdir) as scratch:
    own = checkpoints.newest_manifest(workdir / 'checkpoints')
    sizes, rejected = remote.sizes(), []
    small = [name for pattern in _FILES for name in fnmatch.filter(sizes, pattern)]
    for step in _steps(sizes):
      try:
        manifest = _get_manifest(remote, step, sizes, scratch)
        for name in small:
          if not (scratch / name).exists():
            _get(remote, name, sizes, scratch)
        check(scratch, manifest)
        newer = own is None or step > own['step']
        if newer:
          _get_arrays(remote, manifest, sizes, scratch)
      except Damaged as error:
        rejected.append(f'checkpoint {step} of {remote.url} rejected: {error}')
        streams.say(rejected[-1])
        continue
      if newer or refresh:
        _commit(scratch, workdir, small, step if newer else None)
      return step if newer or manifest == own else 0
    if rejected and own is None:
      raise CheckpointError(
        f"No usable checkpoint is left of {len(rejected)} under '{remote.url}' ({rejected[0]}); bring one back from a "
        'copy, or name another URL.'
      )
    return 0


def fetch_compiled(remote: Remote, workdir: Path) -> None:
  """Gives a folder the compiled programs that it lacks; raises `Unreachable`."""
  folder = workdir / COMPILED
  folder.mkdir(parents=True, exist_ok=True)
  for name, size in remote.sizes(COMPILED).items():
    path = workdir / name
    if path.parent == folder and size <= _MAX_FILE and artifact.size_of(path) != size:
      temporary = path.with_name(f'.{path.name}.tmp')
      remote.get(name, temporary)
      os.replace(temporary, path)


@contextmanager
def _scratch(workdir: Path) -> Iterator[Path]:
  folder = workdir / '.remote.tmp'
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _get(remote: Remote, name: str, sizes: Mapping[str, int], scratch: Path, limit: int = _MAX_FILE) -> None:
  if sizes[name] > limit:
    raise Damaged(f'{sizes[name]:,} bytes, too many,', name)
  path = scratch / name
  path.parent.mkdir(parents=True, exist_ok=True)
  remote.get(name, path)


def _get_manifest(remote: Remote, step: int, sizes: Mapping[str, int], scratch: Path) -> dict[str, Any]:
  _get(remote, f'checkpoints/{step}/{MANIFEST}', sizes, scratch, untrusted.MAX_JSON)
  manifest = checkpoints.read_manifest(scratch / 'checkpoints' / str(step), step)
  for name, entry in manifest['files'].items():
    if PurePosixPath(name).is_absolute() or '..' in name.split('/'):
      raise Damaged('a file outside of the folder', MANIFEST)
    artifact.check_entry(name, entry, sizes.get(f'checkpoints/{step}/{name}'))
  return manifest


def _get_arrays(remote: Remote, manifest: Mapping[str, Any], sizes: Mapping[str, int], scratch: Path) -> None:
  place = f'checkpoints/{manifest["step"]}'
  entries = manifest['files']
  artifact.check_space(scratch, sum(entry['bytes'] for entry in entries.values()))
  for name, entry in entries.items():
    _get(remote, f'{place}/{name}', sizes, scratch, entry['bytes'])
  artifact.verify(scratch / place, entries)


def _commit(scratch: Path, workdir: Path, small: Iterable[str], step: int | None) -> None:
  """Moves what was fetched to its place, the checkpoint last."""
  with artifact.storage_errors(f"write in '{workdir}'"):
    for name in small:
      (workdir / name).parent.mkdir(exist_ok=True)
      artifact.fsync(scratch / name)
      os.replace(scratch / name, workdir / name)
    if step is None:
      return
    folder = workdir / 'checkpoints'
    folder.mkdir(exist_ok=True)
    artifact.commit_folder(scratch / 'checkpoints' / str(step), folder / str(step), folder / f'{step}.replaced.tmp')


# A run that is named by its URL.


@functools.cache
def local_copy(remote: Remote, what: str) -> Path:
  """Returns the folder of a verified copy of a run in the user's cache, which it brings up to date.

  Raises:
    UserError: nothing is there, or it cannot be reached; `what` names the flag or field that has its URL.
    CheckpointError: as `fetch`.
  """
  key = hashlib.sha256(remote.url.encode()).hexdigest()[:16]
  folder = environment.cache_folder('runs') / key
  workdir = folder / PurePosixPath(remote.url).name
  try:
    with artifact.storage_errors(f"write in '{folder}'"):
      folder.mkdir(parents=True, exist_ok=True)
    with artifact.lock(folder, 'copy', wait=True):  # several processes may evaluate it
      fetch(remote, workdir, refresh=True)
      checkpoints.prune_here(workdir / 'checkpoints', 2)
  except Unreachable as error:
    raise UserError(f"{what}='{remote.url}' cannot be reached ({error}); try again, or name another one.") from error
  if not checkpoints.steps(workdir / 'checkpoints'):
    raise UserError(f"{what}='{remote.url}' has no checkpoint of a run; name the mirror of a run that has saved one.")
  return workdir


def put_results(remote: Remote, workdir: Path) -> None:
  """Writes the results of evaluations in a local copy to where the run is; warns if that fails."""
  try:
    for name in run_files(workdir):
      if name.startswith('results/'):
        remote.put(workdir / name, name)
  except Unreachable as error:
    streams.say(f"warning: the results are in '{workdir}' and could not be written to {remote.url} ({error}).")
