"""Evaluates and attacks a classifier that was made elsewhere: python -m adversarial_augment.audit --model=FILE.py:NAME

From Python, the module is a function: `adversarial_augment.audit(logits_fn, images, labels)`; see `audit`.
"""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import functools
import json
from pathlib import Path
import sys
import tempfile
import types
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from adversarial_augment import checks, cli, datasets, results
from adversarial_augment import config as configs
from adversarial_augment.cli import progress, signals, streams
from adversarial_augment.config import command_line
from adversarial_augment.config.evaluations import EVALUATIONS, GROUPS, are_read, fields_read
from adversarial_augment.config.fields import spell
from adversarial_augment.datasets import arrays, classes
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_request, audit_request
from adversarial_augment.parallel import devices
from adversarial_augment.storage import artifact, files, run_directory
from adversarial_augment.types import Dataset

if TYPE_CHECKING:  # wrong input is reported before JAX is imported
  from adversarial_augment.evaluation.foreign import Model

_NOT_READ = ('precision', 'attack.name')  # a model computes in what it was made for, and how it was trained is unknown
_SHORTCUTS = ('dataset', 'data_dir', 'batch_size', 'evals')  # flags that are config fields

_DESCRIPTION = """Evaluates a classifier that was made elsewhere, in PyTorch, JAX, Flax or Haiku, and attacks it.

The model is tried on a few images first, so that a wrong layout, size, normalisation or order of classes is named
before anything long. Each evaluation writes WORKDIR/results/NAME.json and NAME.csv, and each attack
WORKDIR/results/robustness_ATTACK_NORM_EPSILON.json, as those of a run: `report WORKDIR runs/ada` shows both side by
side. If it is stopped, the same command resumes. FILE.py is run; name only files that you trust."""

_EVALUATIONS = ', '.join(f'{name} ({entry.meaning})' for name, entry in EVALUATIONS.items())
_EPILOG = f"""examples:
  python -m adversarial_augment.audit --model=net.py:net --workdir=audits/net --evals=clean,cifar10_c,ada
  python -m adversarial_augment.audit --model=net.py:Net --workdir=audits/net --mean=0.49,0.48,0.45 --std=0.25,0.24,0.26
  python -m adversarial_augment.audit --model=net.py:net --workdir=audits/net --attack=autoattack --norm=linf \\
    --epsilon=8/255 --num_examples=1000
  python -m adversarial_augment.audit --model=classifier.jax_export --workdir=audits/net --dataset=pets

evaluations: {_EVALUATIONS}.

exit codes: 0 done, 2 wrong input, 3 a number is NaN or UNRELIABLE (0 with --allow_suspect), 5 disk full or not
writable, or out of memory, 75 stopped by a signal (run the same command again, without --overwrite)."""


def main(argv: Sequence[str]) -> int:
  """Runs the command line; see `--help`."""
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  given = audit_request.parse(arguments)
  request = attack_request.parse(arguments, beside_evals=True)
  if not arguments.workdir:
    raise UserError('--workdir is empty; name a folder for the results.')
  workdir = files.user_path(arguments.workdir, '--workdir')
  config = _config(
    {**overrides, **{name: value for name in _SHORTCUTS if (value := getattr(arguments, name)) is not None}},
    attack=request is not None,
  )
  _check_workdir(workdir)
  path, name = audit_request.split(arguments.model)
  told = {flag: value for flag, value in given.items() if value is not None}
  if name:
    with artifact.storage_errors(f"read '{path}'"):
      told |= {'model': f'{path.name}:{name}', 'file_sha256': artifact.sha256_of(path)}
  _check_model(workdir, told)
  with progress.stage(f'reading the images of {config.dataset}'):
    test = datasets.load(config.dataset, 'test', config.data_dir)
  if request is not None:
    attack_request.first_examples(request, test)
  devices.virtual_devices(devices.usable_cores())
  devices.compilation_cache()
  kept = f"what has been found so far is kept in '{workdir / 'results'}'"  # but for the last few seconds
  resume = f'run the same command again{" without --overwrite" if arguments.overwrite else ""} to resume'
  with signals.listen(several_processes=False, kept=kept, resume=resume):
    with progress.stage('loading the model'):
      from adversarial_augment.evaluation import foreign

      model = foreign.load(arguments.model, given, test.image_shape)
    _, code = _measure(
      model, test, config, workdir, request, allow_suspect=arguments.allow_suspect, overwrite=arguments.overwrite
    )
  return code


def audit(
  logits_fn: Any,
  images: Any,
  labels: Any,
  evals: str | Sequence[str] = ('clean',),
  workdir: Any = None,
  *,
  attack: str | None = None,
  norm: str | None = None,
  epsilon: str | float | None = None,
  num_examples: int | None = None,
  class_names: Sequence[str] = (),
  mean: Any = None,
  std: Any = None,
  layout: str | None = None,
  size: Any = None,
  config: Mapping[str, Any] = types.MappingProxyType({}),
  allow_suspect: bool = False,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Evaluates and attacks a classifier on images at hand, as the command does on a data set, and prints the same.

  Args:
    logits_fn: a function of JAX, images [n, h, w, 3] -> logits [n, k], or a torch.nn.Module of [n, 3, h, w].
    images: uint8 [n, h, w, 3], or floats in [0, 1], which are rounded to 8 bits.
    labels: integers [n] from 0 to k - 1.
    evals: names of evaluations, such as ('clean', 'cifar10_c', 'ada').
    workdir: folder for results, which a further call with the same arguments takes up; None: nothing is kept.
    attack: name of an l_p attack, such as 'autoattack', with `norm` ('linf' or 'l2') and `epsilon` (such as '8/255').
    norm: see `attack`.
    epsilon: see `attack`.
    num_examples: the attack takes the first ones alone; None: all.
    class_names: of the labels.
    mean: subtracted from images, one number or one per channel; None: the attribute `mean` of the model, or 0.
    std: the images are divided by it; None: the attribute `std` of the model, or 1.
    layout: 'nhwc' or 'nchw' of what the model takes; None: its attribute `layout`, or as its framework has it.
    size: images are resized to it, 224 or (height, width); None: its attribute `image_size`, or none.
    config: further fields, as the flags `--config.FIELD`, such as {'attack.nu': 0.03, 'batch_size': 64}.
    allow_suspect: goes on where the model is no better than guessing, or gives probabilities.
    overwrite: replaces results of other images, settings or versions in `workdir`.

  Returns:
    {name: record} of evaluations and attacks. A record has the numbers of the results file as attributes, such as
    `accuracy`, `interval`, `mce`, `robust_accuracy` and `flags`.

  Raises:
    UserError: an argument is wrong, or the model does not take the images.
  """
  import numpy as np

  if not isinstance(evals, str | tuple | list) or not isinstance(config, Mapping):
    raise UserError(f'evals={evals!r} must be names of evaluations, and config={config!r} a dict of fields.')
  names = evals if isinstance(evals, str) else ','.join(map(str, evals))
  flags = {'attack': attack, 'norm': norm, 'epsilon': epsilon, 'num_examples': num_examples}
  words = [f'--{name}={value!r}' if isinstance(value, float) else f'--{name}={value}' for name, value in flags.items()]
  asked = [word for word, value in zip(words, flags.values(), strict=True) if value is not None]
  parser = cli.Parser(prog='audit')
  attack_request.add(parser)
  request = attack_request.parse(parser.parse_args(asked), beside_evals=True)
  given = {'mean': mean, 'std': std, 'layout': layout, 'size': size, 'classes': None}
  given = {name: value if value is None else audit_request.CHECKS[name](value, name) for name, value in given.items()}
  overrides = {name: _text(value) for name, value in config.items()} | {'evals': names, 'dataset': 'arrays'}
  resolved = _config(overrides, attack=request is not None)
  for name in resolved.evals:
    if EVALUATIONS[name].datasets:
      raise UserError(f'{name} has images of its own and needs a data set on disk; leave it out, or use the command.')
  pixels = _checked_images(images)
  if workdir is not None:
    workdir = files.user_path(workdir, 'workdir')
    _check_workdir(workdir)

  from adversarial_augment.attacks import inputs
  from adversarial_augment.evaluation import foreign, trial

  name = getattr(logits_fn, '__name__', None) or type(logits_fn).__name__
  model = foreign.adopt(logits_fn, given, pixels.shape[1:], name, {})
  classified = trial.num_outputs(model, pixels[:2].astype(np.float32) / 255)
  labels = np.asarray(labels)
  inputs.check_labels(labels, len(pixels), classified)
  if class_names and len(class_names) != classified:
    raise UserError(f'class_names has {len(class_names)} names, but {name} has {classified} outputs; name each class.')
  about = {'name': 'arrays', 'split': 'test', 'origin': 'own', 'archive_sha256': None}
  test = arrays.in_memory(pixels, labels.astype(np.int32), 'arrays', classified, class_names, about)
  if request is not None:
    attack_request.first_examples(request, test)
  with contextlib.ExitStack() as stack:
    folder = workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    options = {'allow_suspect': allow_suspect, 'overwrite': overwrite, 'kept': workdir is not None}
    found, _ = _measure(model, test, resolved, folder, request, command='adversarial_augment.audit(...)', **options)
  return {name: results.record(name, result) for name, result in found.items()}


def _text(value: Any) -> str:
  """Returns a value as the text of a flag."""
  return ','.join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _checked_images(images: Any) -> Any:
  """Returns images as uint8 [n, h, w, 3]."""
  import numpy as np

  found = np.asarray(images)
  checks.check_images(found, ('uint8', 'floats'), channels=3)
  return found if found.dtype == np.uint8 else np.round(found.astype(np.float32) * 255).astype(np.uint8)


def _config(overrides: Mapping[str, str], *, attack: bool) -> ConfigDict:
  """Returns the config of an audit: the defaults with what is asked for, and no evaluations but those named."""
  for name in overrides:
    if not (are_read(name) and name not in _NOT_READ) and name in configs.TABLES['train']:
      fields = ', '.join(field for field in fields_read() if field not in _NOT_READ)
      raise UserError(
        f'config.{name} has no effect on an audit; leave it out (these have: {fields}, '
        f'{", ".join(f"{group}.*" for group in GROUPS)}).'
      )
  usual = {'attack.name': 'none', **({'evals': ''} if attack else {})}
  config = configs.override(configs.base_config(), {**usual, **overrides})
  configs.validate(config)
  if not config.evals and not attack:
    raise UserError('--evals names no evaluation; name some, such as --evals=clean,cifar10_c.')
  for name in config.evals:
    if (only := EVALUATIONS[name].datasets) and config.dataset.partition(':')[0] not in (*only, 'arrays'):
      raise UserError(
        f'{spell(config, "dataset", "evals")}: {name} has the classes of {" or ".join(only)}; leave it out.'
      )
  return config


def _check_workdir(workdir: Path) -> None:
  """Refuses a folder that cannot hold an audit, or holds a run."""
  files.check_folder(workdir, '--workdir')
  if (workdir / 'config.json').exists() and not (workdir / results.AUDIT).exists():
    raise UserError(f"'{workdir}' holds a run; an audit needs a folder of its own.", remedy='workdir')


def _measure(
  model: 'Model',
  test: Dataset,
  config: ConfigDict,
  workdir: Path,
  request: attack_request.Request | None,
  *,
  allow_suspect: bool,
  overwrite: bool,
  command: str = '',
  kept: bool = True,
) -> tuple[dict[str, Any], int]:
  """Makes the evaluations and attacks, or takes those that `workdir` has, if it is `kept`; prints them.

  Returns:
    {name: result}, and the exit code.
  """
  from adversarial_augment.evaluation import bench, distances, foreign
  from adversarial_augment.run import summary
  from adversarial_augment.training import builders

  builders.check_adversary(config, test.image_shape)
  if request is not None and request.suite == attack_request.PERCEPTUAL:
    distances.load(request.distance_from, distances.FLAG, 'float32')  # a wrong one ends here, before evaluations
  relabel = functools.partial(
    classes.in_order, known=classes.Classes(None, model.class_names), classifier=f"The model '{model.name}'"
  )
  labelled = relabel(test)
  if model.class_names and (note := classes.note(classes.Classes(None, model.class_names), test, model.name)):
    print(note, flush=True)
  doubts = _try(model, labelled, allow_suspect)
  model = foreign.identified(model, test.image_shape)
  images = bench.open_images(config, test, relabel, prepared=not command)
  about = json.loads(json.dumps(model.about()))
  attacked = None
  if request is not None or builders.has_evaluation_under_attack(config):
    attacked = model.attacked()
    if attacked is None:
      raise UserError(
        f'{model.name} was exported without gradients; export it again with serialize(vjp_order=1), or leave out '
        '--attack and ada.'
      )
  with contextlib.ExitStack() as stack:
    run_directory.create(workdir)
    stack.enter_context(artifact.lock(workdir))
    _record(workdir, config, about)
    provenance = summary.provenance(config, {'test': test}, 'audit', workdir)
    read = {name: value for name, value in checks.flatten(provenance['config']).items() if are_read(name)}
    provenance['config'] = checks.nest(read)  # the others would tell of a classifier of ours
    provenance |= {'model': about, 'doubts': doubts} | ({'command': command} if command else {})
    source = {'step': 0, 'checkpoint_sha256': results.digest(about), 'provenance': provenance}
    weights = about['weights_sha256'][:12]
    place = f'{workdir}: ' if kept else ''
    print(f'{place}{model.name} ({model.kind}), weights {weights}, on {test.name}', flush=True)
    found = _evaluate(model, attacked, images, config, workdir, source, overwrite)
    code = 0
    if request is not None:
      assert attacked is not None
      code = _attack(model, attacked, labelled, config, workdir, request, source, overwrite)
      names = [results.robustness_name(request.suite, ball.norm, ball.text) for ball in request.balls]
      found |= {name: results.load(workdir, name) for name in names}
    elif kept:
      print(f'  {"results":<20} {workdir / "results"}', flush=True)
  return found, code


def _try(model: 'Model', test: Dataset, allow_suspect: bool) -> list[str]:
  """Tries a model on a few images; returns the flags of what may be wrong with it."""
  from adversarial_augment.evaluation import trial

  doubts = trial.examine(model, test)
  for text in doubts.values():
    if not allow_suspect:
      raise UserError(f'{text}; or go on as it is with --allow_suspect.')
    streams.say(f'warning: {text}')
  return list(doubts)


def _record(workdir: Path, config: ConfigDict, about: Mapping[str, Any]) -> None:
  """Writes which model a folder is of; refuses one of another model."""
  _check_model(workdir, about)
  artifact.write_json(workdir / 'config.json', json.loads(configs.to_json(config)))
  artifact.write_json(workdir / results.AUDIT, about)


def _check_model(workdir: Path, about: Mapping[str, Any]) -> None:
  """Refuses a folder of a model that differs in what is known of this one."""
  old = results.read_json(workdir / results.AUDIT, 'remove its folder')
  if isinstance(old, dict) and (changed := configs.differences({name: old.get(name) for name in about}, about)):
    raise UserError(
      f"'{workdir}' holds an audit of another model ({'; '.join(changed)}); use that one.", remedy='workdir'
    )


def _evaluate(
  model: 'Model',
  attacked: Any,
  images: Any,
  config: ConfigDict,
  workdir: Path,
  source: Mapping[str, Any],
  overwrite: bool,
) -> dict[str, Any]:
  """Makes the evaluations of `config.evals`, those under attack in the form that has gradients; prints them."""
  from adversarial_augment.evaluation import foreign, reuse
  from adversarial_augment.evaluation.bench import Bench
  from adversarial_augment.parallel import sharding
  from adversarial_augment.run import summary
  from adversarial_augment.training import builders

  @functools.cache
  def bench_of(under_attack: bool) -> tuple[Bench, Any]:
    form = attacked if under_attack else model.forward
    mesh, state = foreign.place(form)
    attack, phi = builders.evaluation_adversary(config, mesh) if under_attack else (None, {})
    opened = {name: one for name, one in images.opened.items() if EVALUATIONS[name].under_attack == under_attack}
    network = foreign.network(form, model.takes)
    part = images._replace(opened=opened)
    return Bench(config, network, mesh, part, attack, sharding.replicate(mesh, phi)), state

  found = {}
  shown = {'split': 'test', 'config': source['provenance']['config']}
  for name in config.evals:
    bench, state = bench_of(EVALUATIONS[name].under_attack)
    found[name] = reuse.measure_once(bench, name, state, workdir, source, overwrite=overwrite, protected=True)
    print(*summary.evaluation(name, found[name], shown), sep='\n', flush=True)
  return found


def _attack(
  model: 'Model',
  form: Any,
  test: Dataset,
  config: ConfigDict,
  workdir: Path,
  request: attack_request.Request,
  source: Mapping[str, Any],
  overwrite: bool,
) -> int:
  from adversarial_augment.evaluation import attack_run, foreign, robustness

  mesh, state = foreign.place(form)
  network = foreign.network(form, model.takes)
  classifier = robustness.Classifier(network, network, state, mesh, config.batch_size)
  part = attack_request.first_examples(request, test)
  return attack_run.attack(config, workdir, classifier, part, request, source, overwrite=overwrite)


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(prog='python -m adversarial_augment.audit', description=_DESCRIPTION, epilog=_EPILOG)
  audit_request.add(parser)
  parser.add_argument('--workdir', required=True, metavar='DIR', help='folder for the results')
  parser.add_argument('--dataset', metavar='NAME', help='a prepared data set, or embedded; default: cifar10')
  parser.add_argument('--data_dir', metavar='DIR', help='folder of the prepared data sets')
  parser.add_argument('--evals', metavar='NAMES', help='evaluations, separated by commas; default: clean')
  parser.add_argument('--batch_size', metavar='N', help='images at a time; default: 256')
  parser.add_argument(
    '--config.FIELD', dest='_', metavar='VALUE', help='set a field, such as attack.nu, eval_images, frost_dir'
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='evaluate again even if there are results; start a stopped attack over'
  )
  attack_request.add(parser, 'l_p attacks')
  return parser


class _Function(types.ModuleType):
  """A module that can be called: `adversarial_augment.audit` is the command and the function."""

  def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _Function

if __name__ == '__main__':
  cli.run(main, less_memory='lower --batch_size; for ada, also set --config.attack.microbatch')
