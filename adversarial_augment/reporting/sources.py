"""Which images a result used and where they come from, in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import shlex
from typing import Any

from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.metrics import GENERATED_IN_MEMORY, GENERATED_OLDER, generated_origin
from adversarial_augment.reporting.parts import Paragraph
from adversarial_augment.reporting.runs import Run
from adversarial_augment.storage import sharing


def unmeasured(run: Run) -> Paragraph | None:
  """Returns a line that names missing evaluations, with the command that runs them; None without any."""
  dataset = run.config['dataset'].partition(':')[0]
  missing = {
    name: entry.title
    for name, entry in EVALUATIONS.items()
    if name not in run.results and dataset in (entry.datasets or (dataset,))
  }
  if not missing:
    return None
  folder = shlex.quote(sharing.relative(str(run.folder), Path.cwd()))
  command = f'python -m adversarial_augment.evaluate --workdir={folder} --evals={",".join(missing)}'
  return Paragraph(
    f'{run.label} has not been evaluated for {", ".join(missing.values())}. To do that: ', 'quiet', command
  )


def having(runs: Sequence[Run], name: str) -> list[tuple[int, Run, dict[str, Any]]]:
  """Returns the runs that have a result of an evaluation: their number on the page, the run, and the result."""
  return [(number, run, run.results[name]) for number, run in enumerate(runs) if name in run.results]


def images(result: Mapping[str, Any], part: Mapping[str, Any] | None = None) -> str:
  """Describes the images of a result and where they come from; a page does so once.

  Args:
    result: of an evaluation.
    part: of the result, where it has its own images.
  """
  origin, n = (part or result)['origin'], (part or result)['num_images']
  if 'ssim' in result:
    attack = result['provenance']['config']['attack']
    return f'{origin}, n = {n:,}; nu {attack["nu"]:g}, {attack["num_steps"]} steps'
  if 'error' not in result:
    return f'{origin}, n = {n:,}'
  about = corruption_set(result)
  seed = f'seed {about["seed"]}, ' if about.get('seed') is not None else ''
  frost = f'frost of {made_up_frost(result)}, ' if made_up_frost(result) else ''
  made_with = about.get('made_with') if origin == GENERATED_IN_MEMORY else None
  older = made_with and generated_origin(made_with, result['error']) == GENERATED_OLDER
  of = f' of {result["subset_of"]:,}' if 'subset_of' in result else ''
  return f'{origin}{", version 1" if older else ""}, {seed}{frost}n = {n:,}{of} per cell'


def images_in_short(result: Mapping[str, Any]) -> str:
  """Returns the origin and number of images: a short form of `images`."""
  return f'{result["origin"]}, n = {result["num_images"]:,}'


def corruption_set(result: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the provenance of a result's corruptions; {} for files without a manifest."""
  return _dict(result['provenance'].get('corruptions'))


def made_up_frost(result: Mapping[str, Any]) -> str:
  """Returns what the frost is made of where it is not the official photographs; else ''."""
  frost = str(corruption_set(result).get('frost') or '')
  return '' if frost.startswith('photographs') else 'procedural textures' if frost == 'procedural' else frost


def data_set(run: Run, result: Mapping[str, Any]) -> str:
  """Returns the name of the data set that a result is of, without its version."""
  return str(split(result).get('name') or run.config['dataset']).partition(':')[0]


def test_set(result: Mapping[str, Any]) -> str:
  """Returns the name of the data set that a result is of, and what begins the hash of its images."""
  about = split(result)
  return f'{about.get("name")} {str(about.get("sha256") or "")[:12]}'.strip()


def has_hash(result: Mapping[str, Any]) -> bool:
  """Whether the images of a result are identified by a hash, or by the hash of their source and a seed."""
  made = corruption_set(result)
  known = 'error' not in result or made.get('sha256') or made.get('seed') is not None
  return bool(split(result).get('sha256') and known)


def split(result: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the provenance of the split that a result is of; {} without any."""
  return _dict(result['provenance']['data'].get(result['split']))


def weights(result: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the provenance of the weights that a result depends on; {} without any."""
  return _dict(result['provenance'].get('weights'))


def _dict(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, dict) else {}
