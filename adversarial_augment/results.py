"""Results of a run on disk: results/NAME.json and NAME.csv of each evaluation, and the training log.

A results file may have been damaged or edited. So each is converted to a record, which checks the types and ranges of
its fields and that its numbers do not contradict each other. Other fields are allowed; fields that only newer versions
write are optional.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
import csv
import hashlib
import io
import itertools
import json
import math
from pathlib import Path
import re
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
import numpy as np

from adversarial_augment import checks, metrics
from adversarial_augment.config.evaluations import EVALUATIONS, Evaluation
from adversarial_augment.config.fields import parse_fraction
from adversarial_augment.errors import UserError, show
from adversarial_augment.storage import artifact, files, outcomes, untrusted

Result = Mapping[str, Any]

DISTANCES = ('self', 'alexnet')  # which attacks can have for a norm
START = 'init_from.json'  # where the first parameters of a run come from
SEGMENTS = 'segments.json'  # the starts of a run that made its steps
AUDIT = 'audit.json'  # beside the results of a model that was made elsewhere: which one
ROBUSTNESS = 'robustness_'  # begins the names of the results of l_p attacks
_COLUMNS = (
  'evaluation', 'corruption', 'severity', 'num_correct', 'num_images', 'error', 'data', 'origin', 'seed', 'step',
  'checkpoint_sha256',
)  # fmt: skip
_PRINTABLE = r'^[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+\Z'
_WORDS = {'array': 'a list', 'object': 'a JSON object', 'int': 'an integer', 'float': 'a number', 'str': 'a text'}


def _one_of(*names: str) -> Meta:
  return Meta(pattern=rf'^({"|".join(names)})\Z')


def _list(of: Any, length: int) -> Any:
  return Annotated[list[of], Meta(min_length=length, max_length=length)]


def _record(
  check: Callable[[Any], None] | None = None, optional: Collection[str] = ('subset_of', 'correct'), /, **fields: Any
) -> Any:
  """Returns a record of these fields, whose numbers `check` compares; older versions did not write `optional` ones."""
  typed = [(name, of | UnsetType, UNSET) if name in optional else (name, of) for name, of in fields.items()]
  return msgspec.defstruct('Record', typed, kw_only=True, namespace={'__post_init__': check} if check else {})


# ---- Kinds of fields.

Share = Annotated[float, Meta(ge=0, le=1)]
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
Positive = Annotated[int, Meta(ge=1, le=10**12)]
Text = Annotated[str, Meta(pattern=_PRINTABLE)]
_Origin = Annotated[
  str,
  _one_of(
    'official', 'generated', metrics.GENERATED_IN_MEMORY, metrics.GENERATED_OLDER, 'own', 'embedded', 'unverified'
  ),
]  # fmt: skip
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]
_Ssim = Annotated[float, Meta(ge=-1.001, le=1.001)]  # of equal images it may round to more than 1
_Interval = tuple[Share, Share]
_Errors = tuple[Share, Share, Share, Share, Share]  # at the five severities


class Attack(Struct):
  name: Text
  nu: Number
  num_steps: Count
  min_ssim: _Ssim


class Start(Struct):
  """One start of a run."""

  first_step: Positive
  devices: Positive
  device_kind: Text
  processes: Positive
  versions: dict[str, str]
  host: str


class Segment(Start):
  """The steps of a run that one start made."""

  last_step: Positive


# ---- Checks of numbers against each other.


def _check_edges(histogram: Any) -> None:
  if any(left >= right for left, right in itertools.pairwise(histogram.edges)):
    raise ValueError('edges must rise')


def _check_accuracy(record: Any) -> None:
  n = record.num_images
  _agree(record, accuracy=record.num_correct / n)
  _agree_bits('correct', record.correct, record.num_correct, n)
  for name in ('calibration', 'ssim_histogram'):
    if hasattr(record, name) and (total := sum(getattr(record, name).count)) != n:
      raise ValueError(f'the sum of {name}.count is {total}, but must be {n} by the other numbers')


def _check_errors(record: Any, mean: str) -> None:
  tables, n = msgspec.to_builtins(record), record.num_images
  errors = tables['error']
  computed = {
    mean: metrics.mean_corruption_error(errors),
    'severity_error': np.mean(list(errors.values()), axis=0),
    'corruption_error': {name: np.mean(row) for name, row in errors.items()},
  }
  if 'num_correct' in tables:
    computed['error'] = {name: 1 - np.asarray(row) / n for name, row in tables['num_correct'].items()}
  _agree(record, **computed)
  for name, row in tables.get('correct', {}).items():
    for index, (bits, error) in enumerate(zip(row, errors[name], strict=True)):
      _agree_bits(f'correct.{name}[{index}]', bits, n * (1 - error), n)


def _check_robustness(record: Any) -> None:
  n = record.num_images
  _agree(
    record,
    clean_accuracy=record.num_correct / n,
    robust_accuracy=record.num_robust / n,
    robust_accuracy_uint8=record.num_robust_uint8 / n,
    interval=metrics.binomial_interval(record.num_robust, n),
  )
  _agree_bits('correct', record.correct, record.num_correct, n)
  _agree_bits('robust', record.robust, record.num_robust, n)
  if not math.isclose(record.epsilon, parse_fraction(record.epsilon_text), rel_tol=1e-9):
    raise ValueError(f'epsilon is {record.epsilon}, but epsilon_text {show(record.epsilon_text)}')
  stages = set(record.stages)
  if len(stages) < len(record.stages) or not stages <= record.survivors.keys() & record.seconds.keys():
    raise ValueError(f'stages={show(record.stages)} must be distinct, each with its survivors and seconds')
  left = [record.num_correct, *(record.survivors[stage] for stage in record.stages)]
  is_random = 'stochastic_logits' in record.flags  # then the same image may be right now and wrong later
  if any(before < after for before, after in itertools.pairwise(left[is_random:])):
    raise ValueError(f'survivors must not rise from stage to stage, but are {left}')
  if not is_random:
    _agree(record, num_robust=left[-1])


def _check_segments(record: Any) -> None:
  steps = [(one.first_step, one.last_step) for one in record.segments or ()]
  flat = list(itertools.chain.from_iterable(steps))
  if flat != sorted(flat) or flat and flat[-1] != record.step:
    raise ValueError(f'segments has the steps {steps}, which must rise to step={record.step}')


def _agree(record: Struct, **computed: Any) -> None:
  """Compares fields of a record with what its other numbers give, both of which may be lists and tables."""
  stated = checks.flatten(msgspec.to_builtins(record))
  for field, values in checks.flatten(computed).items():
    for index, (found, wanted) in enumerate(zip(np.ravel(stated[field]), np.ravel(values), strict=True)):
      if not math.isclose(found, wanted, abs_tol=1e-6):
        place = f'{field}[{index}]' if np.ndim(values) else field
        raise ValueError(f'{place} is {found}, but must be {wanted:.6g} by the other numbers')


def _agree_bits(field: str, bits: str | UnsetType, count: float, n: int) -> None:
  """Checks the images that are right against their number; older versions did not record them."""
  if isinstance(bits, UnsetType):
    return
  try:
    right = int(outcomes.unpack(bits, n).sum())
  except ValueError as error:
    raise ValueError(f'{field} is damaged: {error}') from error
  if not math.isclose(right, count, abs_tol=1e-6 * n):
    raise ValueError(f'{field} has {right} right images, but must have {count:.6g} by the other numbers')


# ---- Records.

_CONFIG = _record(attack=Attack)
_DEVICES = _record(kind=Text, count=Positive)
_PROVENANCE = _record(
  None,
  ('command', 'model', 'doubts'),  # the last two are of audits
  data=dict[str, Any],
  config=_CONFIG,
  versions=dict[str, Any],
  devices=_DEVICES,
  command=str,
  model=dict[str, Any],
  doubts=list[str],
)
_IMAGES = {'num_images': Positive, 'origin': _Origin, 'subset_of': Positive}
_ACCURACY = _IMAGES | {'accuracy': Share, 'num_correct': Count, 'interval': _Interval, 'correct': str}
_UNDER_ADA = {
  'ssim': _Ssim,
  'ssim_corrected': Share,
  'ssim_below_min': Share,
  'attack_loss_start': Number,
  'attack_loss_end': Number,
}
_CHECKPOINT = {
  'step': Count,
  'split': Text,
  'seed': Count | None,  # official files have none
  'checkpoint_sha256': Text,
  'provenance': _PROVENANCE,
}
_OWN_FILE = {'eval': str, 'seconds': _Seconds, **_CHECKPOINT}
_HISTOGRAMS = {
  'calibration': _record(
    _check_edges,
    edges=_list(Share, 16),
    count=_list(Count, 15),
    num_correct=_list(Count, 15),
    confidence=_list(Number, 15),
    ece=Share,
  ),
  'ssim_histogram': _record(_check_edges, edges=_list(_Ssim, 201), count=_list(Count, 200)),
}


def _evaluation(entry: Evaluation, own_file: bool) -> Any:
  """Returns the record of an evaluation, in its own file or in the summary of several, which has fewer fields."""
  own = _OWN_FILE if own_file else {}
  if entry.corruptions:
    table = lambda of: _record(**dict.fromkeys(entry.corruptions, of))
    return _record(
      lambda record: _check_errors(record, entry.mean_error),
      ('subset_of', 'num_correct', 'correct'),
      **{**_IMAGES, **own, entry.mean_error: Share},
      interval=_Interval,
      severity_error=_Errors,
      corruption_error=table(Share),
      error=table(_Errors),
      num_correct=table(tuple[Count, Count, Count, Count, Count]),
      correct=table(tuple[str, str, str, str, str]),
    )
  fields = _ACCURACY | own | (_UNDER_ADA if entry.under_attack else {})
  if own_file and not entry.parts:
    fields |= _HISTOGRAMS if entry.under_attack else {'calibration': _HISTOGRAMS['calibration']}
  return _record(_check_accuracy, **fields, **{part: _record(_check_accuracy, **_ACCURACY) for part in entry.parts})


_EVALUATED = {name: _evaluation(entry, True) for name, entry in EVALUATIONS.items()}
_SUMMARY = _record(  # train.json, which closes a run, and eval_STEP.json, which has no segments
  _check_segments,
  ('segments',),
  data=_record(train=_record(name=Text)),
  config=_CONFIG,
  versions=dict[str, Any],
  devices=_DEVICES,
  seed=Count,
  command=str,
  step=Count,
  num_steps=Positive,
  segments=list[Segment],
  split=Text,
  state_sha256=Text,
  evals=_record(None, EVALUATIONS, **{name: _evaluation(entry, False) for name, entry in EVALUATIONS.items()}),
)
_ATTACKED = _record(
  _check_robustness,
  ('correct', 'robust'),
  **_CHECKPOINT,
  num_images=Positive,
  origin=_Origin,
  attack=Text,
  norm=Annotated[str, _one_of('linf', 'l2', *DISTANCES)],
  epsilon=_Seconds,
  epsilon_text=Text,
  num_correct=Count,
  num_robust=Count,
  num_robust_uint8=Count,
  clean_accuracy=Share,
  robust_accuracy=Share,
  robust_accuracy_uint8=Share,
  interval=_Interval,
  stages=Annotated[list[str], Meta(min_length=1)],
  survivors=dict[str, Count],
  seconds=dict[str, _Seconds],
  left_out=list[str],
  flags=list[str],
  conditions_sha256=Text,
  correct=str,
  robust=str,
)
_DATA_FIELDS = {'image_shape': tuple[Positive, Positive, Positive], 'class_names': list[str]}
_DATA = _record(None, _DATA_FIELDS, **_DATA_FIELDS)  # of data.json, beside the hash of each split


def check(value: Any, record: Any, source: str, remedy: str) -> Any:
  """Returns a value of JSON as a record, a type that msgspec knows.

  Raises:
    UserError: names the source, the first field that is missing or wrong, its value, the rule, and the remedy.
  """
  try:
    return msgspec.convert(value, record)
  except msgspec.ValidationError as error:
    raise UserError(f'{source}: {_explain(str(error), value)}; {remedy}.') from None


def _explain(message: str, value: Any) -> str:
  """Returns a message such as "Expected `int` >= 0 - at `$.evals.clean.step`" as a sentence."""
  rule, place = re.fullmatch(r'(.*?)(?: - at `\$\.?(.*?)`)?', message, re.DOTALL).groups('')  # type: ignore[union-attr]
  inside = f'{place}.' if place else ''
  if missing := re.fullmatch('Object missing required field `(.*)`', rule):
    return f'{inside}{missing[1]} is missing'
  if not re.match('Expected|Number|Integer', rule):  # it is from a record's own checks
    return f'{inside}{rule}'
  for name, index in re.findall(r'(\w+)|\[(\d+)\]', place.partition('[...]')[0]):
    value = value[name or int(index)]
  rule = _in_words(rule.partition(', got')[0].removeprefix('Expected '))
  return f'{place}={show(value)} must be {rule}' if place else f'the file must be {rule}, not {show(value)}'


def _in_words(rule: str) -> str:
  """Returns '`int` >= 0' as 'an integer of at least 0'."""
  if 'out of range' in rule:
    return 'a number of usual size'
  if 'regex' in rule:
    names = re.search(r"'\^\((.*)\)", rule)
    return f'one of {names[1].replace("|", ", ")}' if names else 'a printable text that is not empty'
  words = rule.replace('length >=', 'length at least').replace('<=', 'of at most').replace('>=', 'of at least')
  return re.sub('`(.*?)`', lambda kinds: ' or '.join(_WORDS.get(kind, kind) for kind in kinds[1].split(' | ')), words)


# ---- Reading.


def robustness_name(attack: str, norm: str, epsilon: str) -> str:
  """Returns the name of the results of an attack; `epsilon` as text, such as 8/255."""
  return f'{ROBUSTNESS}{attack}_{norm}_{epsilon.replace("/", "-")}'


def read(path: Path) -> dict[str, Any]:
  """Returns the content of a results file without checking it; {} if it cannot be read."""
  try:
    result = untrusted.read_json(path)
  except (OSError, ValueError):
    return {}
  return result if isinstance(result, dict) and isinstance(result.get('evals', {}), dict) else {}


def load(workdir: Path, name: str) -> dict[str, Any]:
  """Returns results/NAME.json of a run, with all of its fields; {} where there is none.

  `name` is an evaluation, an attack (see `robustness_name`), or 'train' or 'eval_STEP', which sum up several.

  Raises:
    UserError: the file cannot be read, a field is missing or wrong, or its numbers contradict each other.
  """
  path, is_attack = workdir / 'results' / f'{name}.json', name.startswith(ROBUSTNESS)
  again = 'evaluate again' if name in EVALUATIONS else f'run the {"attack" if is_attack else "training command"} again'
  source, remedy = f"'{path}'", f'remove it, and {again}'
  result = read_json(path, remedy)
  if result is None:
    return {}
  if name in EVALUATIONS:
    own_name = check(result, _EVALUATED[name], source, remedy).eval
  elif is_attack:
    about = check(result, _ATTACKED, source, remedy)
    own_name = robustness_name(about.attack, about.norm, about.epsilon_text)
  else:
    check(result, _SUMMARY, source, remedy)
    own_name = name
  if own_name != name:
    raise UserError(f'{source} holds the results of {show(own_name)}; {remedy}.')
  return result


def record(name: str, result: Result) -> Any:
  """Returns a result of an evaluation or an attack as a record with a typed attribute for each number."""
  return check(result, _ATTACKED if name.startswith(ROBUSTNESS) else _EVALUATED[name], name, 'report this as a bug')


def load_robustness(workdir: Path) -> list[dict[str, Any]]:
  """Returns the results of all attacks on a run by attack, norm and epsilon; raises as `load`."""
  norms = '|'.join(('linf', 'l2', *DISTANCES))
  ours = re.compile(rf'{ROBUSTNESS}\w+_({norms})_[\w.+-]+')  # not 'robustness_pgd_l2_0.5 copy'
  names = [path.stem for path in files.named(workdir / 'results', f'{ROBUSTNESS}*.json')]
  found = [load(workdir, name) for name in names if ours.fullmatch(name)]
  return sorted(found, key=lambda result: (result['attack'], result['norm'], result['epsilon']))


def load_data(workdir: Path) -> dict[str, Any]:
  """Returns data.json: the hash of each split, `image_shape`, `class_names`; {} if missing; raises as `load`."""
  path, remedy = workdir / 'data.json', 'bring it back, or remove it'
  data = read_json(path, remedy)
  if data is None:
    return {}
  check(data, _DATA, f"'{path}'", remedy)
  check(split_hashes(data), dict[str, str], f"'{path}'", remedy)
  return data


def load_start(workdir: Path) -> dict[str, Any] | None:
  """Returns where the first parameters of a run come from; None if they were drawn, or the run is of an older version.

  Raises:
    UserError: the file is damaged.
  """
  path, remedy = workdir / START, 'remove it'
  found = read_json(path, remedy)
  if not isinstance(found, dict | None):
    raise UserError(f"'{path}' must hold a JSON object, not {show(found)}; {remedy}.")
  return found


def split_hashes(data: Result) -> dict[str, str]:
  """Returns the hash of each split in what `load_data` gives."""
  return {name: value for name, value in data.items() if name not in _DATA_FIELDS}


def read_json(path: Path, remedy: str) -> Any:
  """Returns the content of a JSON file, or None if it does not exist; raises UserError if it cannot be read."""
  with _readable(path, remedy):
    return untrusted.read_json(path) if path.exists() else None


def read_log(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
  """Returns the step and the metrics `names` of each line of metrics.jsonl; [] without such a file.

  Each is a finite number, null, or missing. An incomplete last line, which a kill may leave, is ignored.

  Raises:
    UserError: the file cannot be read, or a field of a line is missing or wrong.
  """
  fields = {'step': Count} | dict.fromkeys(names, NotRequired[Number | None])  # type: ignore[operator, valid-type]
  decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(TypedDict('Line', fields))  # type: ignore
  records: list[dict[str, Any]] = []
  with _readable(path, 'remove the file'):
    for number, line in enumerate(untrusted.lines(path) if path.exists() else (), start=1):
      if not line.endswith(b'\n'):
        break
      try:
        records.append(decoder.decode(line))
      except (msgspec.DecodeError, RecursionError):
        records.append(_explained_line(line, decoder.type, f"'{path}' line {number}"))
  return records


def _explained_line(line: bytes, line_type: Any, source: str) -> dict[str, Any]:
  """Raises the error of a line that msgspec refuses."""
  try:
    value = untrusted.parse_json(line)
  except untrusted.Unusable as error:
    raise UserError(f'{source} is damaged ({error}); remove the line.') from error
  return check(value, line_type, source, 'remove the line')


@contextmanager
def _readable(path: Path, remedy: str) -> Iterator[None]:
  try:
    yield
  except UserError:
    raise
  except untrusted.Unusable as error:
    raise UserError(f"'{path}' is damaged ({error}); {remedy}.") from error
  except OSError as error:
    raise UserError(f"Cannot read '{path}': {error.strerror or error}; {remedy}.") from error


# ---- Writing.


def without_details(result: Result) -> dict[str, Any]:
  """Returns the part of a result that the summary of several evaluations repeats."""
  details = {*_OWN_FILE, *_HISTOGRAMS, 'conditions_sha256', 'correct', 'robust'}
  return {field: value for field, value in result.items() if field not in details}


def write(path: Path, result: Result) -> None:
  """Writes a results file atomically; raises NumericalError for NaN and infinity, or StorageError."""
  with artifact.storage_errors(f"write '{path}'"):
    path.parent.mkdir(exist_ok=True)
  artifact.write_json(path, result)


def write_evaluation(folder: Path, name: str, result: Result) -> None:
  """Writes NAME.csv, one line a cell, and then NAME.json; raises as `write`."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(_COLUMNS)
  table.writerows(_rows(name, result))
  with artifact.storage_errors(f"write '{folder / name}.csv'"):
    folder.mkdir(exist_ok=True)
    artifact.replace(folder / f'{name}.csv', text.getvalue().encode())
  write(folder / f'{name}.json', result)


def _rows(name: str, result: Result) -> Iterator[tuple]:
  data = result['provenance']['data'][result['split']]['name']
  state = result['seed'], result['step'], result['checkpoint_sha256']
  if 'error' in result:
    for corruption, errors in result['error'].items():
      for severity, error in zip(metrics.SEVERITIES, errors, strict=True):
        correct = result['num_correct'][corruption][severity - 1]
        yield name, corruption, severity, correct, result['num_images'], error, data, result['origin'], *state
    return
  parts = {f'{name}/{part}': result[part] for part in EVALUATIONS[name].parts}
  for label, part in (parts or {name: result}).items():
    counts = part['num_correct'], part['num_images'], 1 - part['accuracy']
    yield label, '', '', *counts, label if parts else data, part['origin'], *state


def digest(conditions: Any) -> str:
  """Returns the hash of everything that determines a result."""
  return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
