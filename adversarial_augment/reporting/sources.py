"""Which images results used and where they come from, in words; and whether two results used the same ones."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
import shlex
from typing import Any

from adversarial_augment.config import tables
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.datasets.manifests import with_code
from adversarial_augment.metrics import GENERATED_IN_MEMORY, GENERATED_OLDER, generated_origin
from adversarial_augment.reporting.parts import NONE, Paragraph, Row, Table
from adversarial_augment.reporting.runs import Run
from adversarial_augment.storage import sharing

Result = Mapping[str, Any]

NORMS = {'linf': 'l_inf', 'l2': 'l_2', 'alexnet': 'AlexNet distance', 'self': 'its own distance'}
# What decides how strong the adversary of the evaluation is, whatever that of the training was.
_ADVERSARY = ('nu', 'num_steps', 'moved', 'step', 'step_fraction', 'init', 'keep_best', 'min_ssim', 'root')
_CORRUPTION_SET = ('seed', 'frost', 'made_with', 'sha256')


def having(runs: Sequence[Run], name: str) -> list[tuple[int, Run, dict[str, Any]]]:
  """Returns the runs that have a result of an evaluation: their number on the page, the run, and the result."""
  return [(number, run, run.results[name]) for number, run in enumerate(runs) if name in run.results]


def attacks(run: Run) -> dict[str, dict[str, Any]]:
  """Returns the results of attacks that compare with those of other runs, by title.

  The distance of a classifier's own features is another one for each.
  """
  return {
    f'{one["attack"]}, {norm_of(one)} {one["epsilon_text"]}': one for one in run.robustness if one['norm'] != 'self'
  }


def norm_of(result: Mapping[str, Any]) -> str:
  """Returns the norm or the distance of an attack, with the hash of the network that measures it."""
  sha256 = result.get('distance', {}).get('sha256', '')
  return f'{NORMS[result["norm"]]}{sha256 and " "}{sha256[:8]}'


def unmeasured(run: Run) -> Paragraph | None:
  """Names missing evaluations, with the command that runs them."""
  dataset = run.config['dataset'].partition(':')[0]
  missing = {
    name: entry.title
    for name, entry in EVALUATIONS.items()
    if name not in run.results and dataset in (entry.datasets or (dataset,))
  }
  if not missing:
    return None
  if run.audited:
    named = ','.join([*run.results, *missing])
    return Paragraph(
      f'{run.label} has not been evaluated for {", ".join(missing.values())}. To do that, repeat its audit with '
      f'--evals={named}.'
    )
  folder = shlex.quote(sharing.relative(str(run.folder), Path.cwd()))
  command = f'python -m adversarial_augment.evaluate --workdir={folder} --evals={",".join(missing)}'
  text = f'{run.label} has not been evaluated for {", ".join(missing.values())}. To do that: '
  return Paragraph(text, command=command)


def images(result: Result, part: Result | None = None) -> str:
  """Describes the images of a result, or of a part that has its own; a page does so once."""
  origin, n = (part or result)['origin'], (part or result)['num_images']
  if 'ssim' in result:
    attack = result['provenance']['config']['attack']
    return f'{origin}, n = {n:,}; nu {attack["nu"]:g}, {attack["num_steps"]} steps'
  if 'error' not in result:
    return f'{origin}, n = {n:,}'
  about, frost = corruption_set(result), made_up_frost(result)
  made_with = about.get('made_with') if origin == GENERATED_IN_MEMORY else None
  is_older = made_with and generated_origin(made_with, result['error']) == GENERATED_OLDER
  version = ', version 1' if is_older else ''
  seed = f'seed {about["seed"]}, ' if about.get('seed') is not None else ''
  frost = f'frost of {frost}, ' if frost else ''
  of = f' of {result["subset_of"]:,}' if 'subset_of' in result else ''
  return f'{origin}{version}, {seed}{frost}n = {n:,}{of} per cell'


def test_images(runs: Sequence[Run]) -> Table | None:
  """Says once, for all tables and charts, which images each evaluation used and where they come from."""
  about = [dict(_images_of(run)) for run in runs]
  names = dict.fromkeys(name for one in about for name in one)
  texts_of = {name: [one.get(name, NONE) for one in about] for name in names}
  if not names:
    return None
  if all(len(set(texts)) == 1 for texts in texts_of.values()):
    columns, rows = ['images'], [Row((name, texts[0])) for name, texts in texts_of.items()]
  else:
    columns, rows = [run.label for run in runs], [Row((name, *texts)) for name, texts in texts_of.items()]
  return Table('Test images used below', ['evaluation', *columns], rows, words=1 + len(columns))


def _images_of(run: Run) -> Iterator[tuple[str, str]]:
  """Yields each evaluation with its images; all l_p attacks together where they used the same ones."""
  for name, result in run.results.items():
    evaluation = EVALUATIONS[name]
    texts = [f'{part}: {images(result, result[part])}' for part in evaluation.parts]
    yield evaluation.title, '; '.join(texts) or images(result)
  attacked = {name: images(result) for name, result in attacks(run).items()}
  if len(set(attacked.values())) == 1:
    attacked = {'l_p attacks': next(iter(attacked.values()))}
  yield from attacked.items()


def different_images(one: Result, other: Result) -> str:
  """Says how the images of two results of one evaluation differ; '' where they are the same."""
  both = _identity(one), _identity(other)
  if all('seed' in about for about in both) and not all('sha256' in about for about in both):
    for about in both:
      about.pop('sha256', None)  # what is made in memory has none
  return differing(*both) or ('' if _has_hash(one) else 'unknown, because their test set has no hash')


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> str:
  """Says in what two descriptions differ; '' where they are the same."""
  names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
  return ', '.join(f'{name} {one.get(name, NONE)} against {other.get(name, NONE)}' for name in names)


def _identity(result: Result) -> dict[str, str]:
  """Returns everything that determines which images an evaluation uses."""
  source = result['provenance']
  of = f' of {result["subset_of"]:,}, evenly spaced' if 'subset_of' in result else ''
  about = {'test set': test_set(result), 'split': result['split'], 'number': f'{result["num_images"]:,}{of}'}
  own: dict[str, Any] = {}
  if 'error' in result:
    own = {name: value for name, value in corruption_set(result).items() if name in _CORRUPTION_SET}
    own['made_with'] = with_code(own.get('made_with'), 'corruptions')
  elif 'ssim' in result:
    fields = source['config']['attack']
    own = {name: fields.get(name, tables.ADDED.get(f'attack.{name}')) for name in _ADVERSARY}
    own['weights'] = str(_dict(source.get('weights')).get('sha256'))[:12]
  elif result.get('eval') in source:  # it reads sets of its own
    own = {'data sets': source[result['eval']]}
  return about | {name: str(value) for name, value in own.items() if value is not None}


def _has_hash(result: Result) -> bool:
  """Whether the images of a result are identified by a hash, or by the hash of their source and a seed."""
  made = corruption_set(result)
  known = 'error' not in result or made.get('sha256') or made.get('seed') is not None
  return bool(split(result).get('sha256') and known)


def corruption_set(result: Result) -> Result:
  """Returns the provenance of a result's corruptions; {} for files without a manifest."""
  return _dict(result['provenance'].get('corruptions'))


def made_up_frost(result: Result) -> str:
  """Returns what the frost is made of where it is not the official photographs; else ''."""
  frost = str(corruption_set(result).get('frost') or '')
  return '' if frost.startswith('photographs') else 'procedural textures' if frost == 'procedural' else frost


def split(result: Result) -> Result:
  """Returns the provenance of the split that a result is of; {} without any."""
  return _dict(result['provenance']['data'].get(result['split']))


def data_set(run: Run, result: Result) -> str:
  """Returns the name of the data set that a result is of, without its version."""
  return str(split(result).get('name') or run.config['dataset']).partition(':')[0]


def test_set(result: Result) -> str:
  """Returns the name of the data set that a result is of, and what begins the hash of its images."""
  about = split(result)
  return f'{about.get("name")} {str(about.get("sha256") or "")[:12]}'.strip()


def _dict(value: Any) -> Result:
  return value if isinstance(value, dict) else {}
