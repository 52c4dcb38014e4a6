"""The starts of a run that made its steps: which ones, and on what; segments.json, which `results/train.json` repeats.

A start is recorded when it begins. The next one knows by the step that it restores which of the earlier ones made steps
that last. Process 0 alone calls all of this.
"""

from pathlib import Path
import socket
from typing import Any

import jax
import msgspec

from adversarial_augment import results
from adversarial_augment.cli import environment, progress
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import artifact


def begin(workdir: Path, step: int) -> str:
  """Records a start that goes on after `step`, and drops those of steps that did not last.

  Returns how its devices and processes differ from those of the start before, or ''.
  """
  own = {
    'first_step': step + 1,
    'devices': jax.device_count(),
    'device_kind': jax.devices()[0].device_kind,
    'processes': jax.process_count(),
    'versions': environment.versions(),
    'host': socket.gethostname(),
  }
  earlier = [start for start in _read(workdir) if start['first_step'] <= step]
  artifact.write_json(workdir / results.SEGMENTS, [*earlier, own])
  machines = [(one['devices'], one['device_kind'], one['processes']) for one in (own, *earlier[-1:])]
  if len(set(machines)) == 1:
    return ''
  of_kinds = len({kind for _, kind, _ in machines}) > 1
  now, before = (
    f'{count} device{"s" * (count > 1)}{f" ({kind})" if of_kinds else ""} in {n} process{"es" * (n > 1)}'
    for count, kind, n in machines
  )
  return f' on {now}; until here {before}'


def until(workdir: Path, step: int) -> list[dict[str, Any]]:
  """Returns the starts that made the steps to `step`, each with its first and last one."""
  starts = [start for start in _read(workdir) if start['first_step'] <= step]
  ends = [start['first_step'] - 1 for start in starts[1:]] + [step]
  return [start | {'last_step': end} for start, end in zip(starts, ends, strict=False)]


def _read(workdir: Path) -> list[dict[str, Any]]:
  """Returns the recorded starts; none where there is no file, as in runs of older versions, or it is damaged."""
  path, lost = workdir / results.SEGMENTS, 'the starts that it held are not known any more'
  try:
    found = results.check(results.read_json(path, lost) or [], list[results.Start], f"'{path}'", lost)
    steps = [start.first_step for start in found]
    if steps != sorted({*steps}):
      raise UserError(f"'{path}' has starts with first_step={show(steps)}, which must rise; {lost}.")
    return msgspec.to_builtins(found)
  except UserError as error:
    progress.log(f'warning: {error}')
    return []
