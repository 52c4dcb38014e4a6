"""Reads the files of runs for a report, and refuses damaged ones."""

from collections.abc import Sequence
import io
import os
from pathlib import Path
import re
from typing import Any, NamedTuple
import warnings

from msgspec import Struct
from PIL import Image

from adversarial_augment import results
from adversarial_augment.config import adversaries, tables
from adversarial_augment.config.evaluations import EVALUATIONS
from adversarial_augment.errors import UserError, show
from adversarial_augment.reporting import figures
from adversarial_augment.storage import artifact, files, sharing, untrusted

_MAX_PICTURE = 1 << 26  # bytes


class _Classifier(Struct):
  name: results.Text
  depth: results.Positive
  width: results.Positive


class _CorruptionNet(Struct):
  name: results.Text


class _Config(Struct):
  """What a report shows of a config, whichever version wrote it."""

  dataset: results.Text
  seed: results.Count
  batch_size: results.Positive
  classifier: _Classifier
  attack: results.Attack
  corruption_net: _CorruptionNet


class _Audited(Struct):
  model: results.Text
  kind: results.Text
  weights_sha256: results.Text


class Run(NamedTuple):
  """The files of one run, checked; what it does not have is empty."""

  folder: Path
  label: str  # no two runs of a page share one
  config: dict[str, Any]
  closing: dict[str, Any] = {}  # results/train.json; empty until training has ended
  results: dict[str, dict[str, Any]] = {}  # by evaluation
  robustness: list[dict[str, Any]] = []  # results/robustness_*.json, by attack, norm and radius
  between: list[dict[str, Any]] = []  # results/eval_STEP.json, by step
  metrics: list[dict[str, Any]] = []  # metrics.jsonl
  examples: bytes = b''  # figures/ada_examples.png
  damage: str = ''  # why they are not shown; empty where they are, or where there is no file
  audited: dict[str, Any] = {}  # audit.json: the model, where it was made elsewhere and its training is not known


def collect(folders: Sequence[str | os.PathLike]) -> list[Run]:
  """Returns the runs of some folders, in their order.

  Raises:
    UserError: a folder is missing, given twice, or holds no run; or one of its files is damaged.
  """
  paths = [files.user_path(folder, 'DIR') for folder in folders]
  if not paths:
    raise UserError('A report needs at least one run; name the workdir of a run.')
  whole = [path.resolve() for path in paths]
  for path, resolved in zip(paths, whole, strict=True):
    if whole.count(resolved) > 1:
      raise UserError(f"'{path}' is given twice; name every run once.")
  names = [path.name for path in whole]
  if len(set(names)) < len(names):  # then by what leads to them from where they part
    above = os.path.commonpath(whole)
    names = [os.path.relpath(path, above) for path in whole]
  return [_run(path, _printable(name)) for path, name in zip(paths, names, strict=True)]


def _run(folder: Path, label: str) -> Run:
  with artifact.storage_errors(f"look into '{folder}'"):
    if not folder.is_dir():
      what = 'is a file' if folder.exists() else 'does not exist'
      raise UserError(f"'{folder}' {what}; name the workdir of a run.")
  config = _config(folder)
  found = {name: results.load(folder, name) for name in EVALUATIONS}
  names = [path.stem for path in (folder / 'results').glob('eval_*.json')]
  between = {name: int(name[5:]) for name in names if re.fullmatch('eval_[0-9]{1,12}', name)}
  examples, damage = _examples(folder / 'figures' / 'ada_examples.png')
  return Run(
    folder,
    label,
    config,
    results.load(folder, 'train'),
    {name: result for name, result in found.items() if result},
    results.load_robustness(folder),
    [results.load(folder, name) for name in sorted(between, key=between.__getitem__)],
    results.read_log(folder / 'metrics.jsonl', (*figures.METRICS, 'images_per_second')),
    examples,
    sharing.relative(damage, folder),
    _audited(folder),
  )


def _audited(folder: Path) -> dict[str, Any]:
  path, remedy = folder / results.AUDIT, 'remove its folder, and audit again'
  about = results.read_json(path, remedy)
  if about is None:
    return {}
  results.check(about, _Audited, f"'{path}'", remedy)
  return about


def _config(folder: Path) -> dict[str, Any]:
  path, remedy = folder / 'config.json', 'bring it back, or run the training again'
  config = results.read_json(path, remedy)
  if config is None:
    raise UserError(f"'{folder}' is not a run: it has no config.json; name the workdir of a training run.")
  if isinstance(config, dict) and 'classifier' not in config and 'output' in config:
    raise UserError(f"'{folder}' holds a run of pretrain, which has no classifier; name the workdir of a run of train.")
  results.check(config, _Config, f"'{path}'", remedy)
  attack = config['attack']
  fields = adversaries.find(attack).fields  # which describe it
  values = {name: attack.get(name.removeprefix('attack.'), tables.ADDED.get(name)) for name in fields}
  for name, field in fields.items():
    if not field.kind.accepts(values[name]):
      raise UserError(f"'{path}': {name}={show(values[name])} is not {field.kind.expected}; {remedy}.")
  try:
    adversaries.describe(attack)
  except (KeyError, TypeError):  # a field may be None, but not in this adversary
    empty = ', '.join(f'{name}=None' for name, value in values.items() if value is None)
    raise UserError(f"'{path}': {empty} does not describe attack.name={attack['name']}; {remedy}.") from None
  return config


def _examples(path: Path) -> tuple[bytes, str]:
  """The bytes of the picture of adversarial examples, and what is wrong with it; both are empty where there is none."""
  try:
    content = untrusted.read_bytes(path, _MAX_PICTURE)
    with warnings.catch_warnings():
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      Image.open(io.BytesIO(content), formats=('PNG',)).load()
  except FileNotFoundError:
    return b'', ''
  except Exception as error:  # Pillow's decoders raise many kinds
    reason = error.strerror if isinstance(error, OSError) and error.strerror else 'it is not a complete PNG'
    return b'', f"'{path}' is not shown: {reason}; remove its folder, and run the training command again."
  return content, ''


def _printable(name: str) -> str:
  """A name without control characters and lone surrogates, which file names may hold."""
  return ''.join(letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}' for letter in name)
