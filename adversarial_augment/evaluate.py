"""Evaluates a trained classifier: python -m adversarial_augment.evaluate --workdir=DIR"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from adversarial_augment import cli, datasets, inference, results
from adversarial_augment import config as configs
from adversarial_augment.cli import progress, signals, streams
from adversarial_augment.config import command_line
from adversarial_augment.config.evaluations import EVALUATIONS, GROUPS, are_read, fields_read
from adversarial_augment.datasets import classes
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_request
from adversarial_augment.parallel import devices, launch
from adversarial_augment.storage import files
from adversarial_augment.storage.remote import Remote
from adversarial_augment.types import Dataset

if TYPE_CHECKING:  # wrong input is reported before JAX is imported
  from adversarial_augment.evaluation.bench import Images

_ATTACKED_FIELDS = ('batch_size', 'data_dir', 'dataset', 'precision')  # that can change with --attack

_DESCRIPTION = """Evaluates the newest intact checkpoint of a run on the test set.

Each evaluation writes WORKDIR/results/NAME.json and NAME.csv. Results that exist already are shown again; --overwrite
replaces those that have other images, settings or versions. If it is stopped, the same command resumes evaluations on
corruptions and attacks; --overwrite starts a stopped attack over.

With --attack, the classifier is attacked within l_p balls or those of a perceptual distance instead. The number of
survivors is shown after each stage, and the robust accuracy is written to
WORKDIR/results/robustness_ATTACK_NORM_EPSILON.json, where NORM can be a distance. If a check of the classifier or the
attacks fails, the number is marked UNRELIABLE and the exit code is 3."""

_EVALUATIONS = ', '.join(f'{name} ({entry.meaning})' for name, entry in EVALUATIONS.items())
_EPILOG = f"""examples:
  python -m adversarial_augment.evaluate --workdir=runs/ada
  python -m adversarial_augment.evaluate --workdir=runs/ada --evals=clean,cifar10_c,ada
  python -m adversarial_augment.evaluate --workdir=runs/ada --evals=ada --config.attack.nu=0.03 --overwrite
  python -m adversarial_augment.evaluate --workdir=runs/ada --attack=autoattack --norm=linf --epsilon=8/255
  python -m adversarial_augment.evaluate --workdir=runs/ada --attack=table2 --num_examples=1000
  python -m adversarial_augment.evaluate --workdir=runs/ada --attack=perceptual --distance=alexnet --epsilon=0.5

evaluations: {_EVALUATIONS}.
Corrupted images are read from DATA_DIR/DATASET_c if `prepare cifar10_c` has written them, or generated in memory.

attacks: autoattack (standard), autoattack_plus, paper (AutoAttack & MultiTargeted as in arXiv 2104.01086),
multitargeted, pgd; table2 is `paper` within the balls of Table 2 there: l2 0.5 and 1, linf 1/255, 2/255 and 4/255;
perceptual is LPA and PPGD (arXiv 2006.12655) within a ball of the distance of an AlexNet's features, or, not for
comparisons, of the classifier's own.

exit codes: 0 done, 2 wrong input, 3 a number is NaN or UNRELIABLE (0 with --allow_suspect), 4 no usable checkpoint,
5 disk full or not writable, 75 stopped by a signal, or another process was lost (run the same command again, without
--overwrite)."""


def main(argv: Sequence[str]) -> int | None:
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  cli.check_processes(arguments)
  processes = launch.find(arguments)
  with launch.together(processes) as shared:  # what fails here fails on all processes, so that none waits
    request = attack_request.parse(arguments)
    workdir = inference.run_folder(arguments.workdir, '--workdir')
    trained = _read_config(workdir, arguments)
    config = _resolve(trained, arguments, overrides)
    images = _load(workdir, trained, config, request)
    about = _check(config, images, request) | {'overwrite': arguments.overwrite}
    shared |= launch.facts('evaluate', configs.to_json(config), about)
  devices.virtual_devices(devices.usable_cores())
  devices.compilation_cache()
  kept = f"what has been found so far is kept in '{workdir / 'results'}'"  # but for the last few seconds
  resume = f'run the same command again{" without --overwrite" if request and arguments.overwrite else ""} to resume'
  code = None
  with signals.listen(several_processes=False, kept=kept, resume=resume):
    if request is None:
      _evaluate(config, workdir, images, overwrite=arguments.overwrite)
    else:
      from adversarial_augment.evaluation import attack_run

      code = attack_run.run(config, workdir, images.dataset, request, overwrite=arguments.overwrite)
  if files.is_url(arguments.workdir) and launch.is_first(processes):
    from adversarial_augment.storage import mirror

    mirror.put_results(Remote(arguments.workdir, '--workdir'), workdir)
  return code


def _read_config(workdir: Path, arguments: argparse.Namespace) -> ConfigDict:
  """Reads the config of the run, on every process."""
  try:
    return inference.read_config(workdir, streams.say if arguments.process_id in (None, 0) else lambda line: None)
  except UserError as error:
    if arguments.process_id is None:
      raise
    raise UserError(f'{error} All processes read it, so it must be in a folder that they share.') from error


def _resolve(trained: ConfigDict, arguments: argparse.Namespace, overrides: Mapping[str, str]) -> ConfigDict:
  """Returns the config of the run with what the flags change in it."""
  overrides = {**overrides} if arguments.evals is None else {**overrides, 'evals': arguments.evals}
  config = configs.override(trained, overrides)
  configs.validate(config)
  for name in overrides:
    if arguments.attack is not None and name not in _ATTACKED_FIELDS:
      raise UserError(
        f'config.{name} has no effect with --attack; leave it out (these can change: {", ".join(_ATTACKED_FIELDS)}; '
        'the attack has --norm or --distance, --epsilon and --num_examples).'
      )
    if not are_read(name):
      raise UserError(
        f'config.{name} says how the classifier was trained and cannot be changed for an evaluation; leave it out '
        f'(these can: {", ".join(fields_read())}, {", ".join(f"{group}.*" for group in GROUPS)}).'
      )
  if not config.evals and arguments.attack is None:
    raise UserError('--evals names no evaluation; name some, such as --evals=clean,cifar10_c.')
  return config


def _load(workdir: Path, trained: ConfigDict, config: ConfigDict, request: attack_request.Request | None) -> 'Images':
  """Returns the test images, with the labels of the run's classifier, and what else the evaluations read."""
  with progress.stage(f'reading the images of {config.dataset}'):
    test = datasets.load(config.dataset, 'test', config.data_dir)
  relabel = _labels(workdir, trained, config, test)
  with progress.stage('loading JAX'):
    from adversarial_augment.evaluation import bench
  if request is None:
    return bench.open_images(config, test, relabel)
  return bench.Images(attack_request.first_examples(request, relabel(test)), {})


def _labels(workdir: Path, trained: ConfigDict, config: ConfigDict, test: Dataset) -> Callable[[Dataset], Dataset]:
  """Refuses a test set that has changed since the training; says so if another one is asked for.

  Returns:
    A function that gives a data set the labels that the run's classifier has for its classes.
  """
  known = inference.classes(workdir)
  relabelled = functools.partial(classes.in_order, known=known, classifier=f"The run '{workdir}'")
  if config.dataset != trained.dataset:
    print(f'note: trained on {trained.dataset}, evaluated on {config.dataset}', flush=True)
    relabelled(test)  # refuses other classes
    if note := classes.note(known, test, config.dataset):
      print(note, flush=True)
    return relabelled
  sha256 = results.read(workdir / 'data.json').get('test')
  if sha256 is not None and sha256 != test.provenance.get('sha256', sha256):
    raise UserError(
      f"The test set '{config.dataset}' under '{config.data_dir}' is not the one of the run (SHA-256 in "
      f"'{workdir}/data.json'): its images may have been trained on; restore that one, or train again."
    )
  return relabelled if sha256 is None else lambda dataset: dataset


def _check(config: ConfigDict, images: 'Images', request: attack_request.Request | None) -> dict[str, Any]:
  """Checks what can be checked before any device is touched; returns what must be equal on all processes."""
  from adversarial_augment.training import builders

  about = {'data': {'test': images.dataset.provenance}, **images.origins()}
  if request is not None:
    measured = {}
    if request.balls[0].norm == 'alexnet':
      from adversarial_augment.evaluation import distances

      measured = {'distance': distances.load(request.distance_from, distances.FLAG, 'float32').sha256}
    return about | measured | {'attack': request._replace(surrogate=None, distance_from=None)._asdict()}
  builders.check_adversary(config, images.dataset.image_shape)
  return about | {'weights': builders.weights_sha256(config)}


def _evaluate(config: ConfigDict, workdir: Path, images: 'Images', *, overwrite: bool) -> None:
  """Makes the evaluations of `config.evals`, or takes those that `workdir` has; prints them."""
  import jax

  from adversarial_augment.evaluation import reuse
  from adversarial_augment.evaluation.bench import Bench
  from adversarial_augment.parallel import sharding
  from adversarial_augment.run import summary
  from adversarial_augment.training import builders, recipe

  mesh, test = sharding.data_mesh(), images.dataset
  with progress.stage('reading the newest checkpoint'):
    restored = inference.restore(config, workdir, test.num_classes, test.image_shape, mesh)
  under_attack = builders.has_evaluation_under_attack(config)
  attack, phi = builders.evaluation_adversary(config, mesh) if under_attack else (None, {})
  classifier = recipe.attacked_classifier(config, test.num_classes)
  bench = Bench(config, classifier, mesh, images, attack, sharding.replicate(mesh, phi))
  about = reuse.source_of(config, workdir, test, restored)
  say = print if jax.process_index() == 0 else lambda *_, **options: None
  say(f'{workdir}: step {restored.step:,}, checkpoint {restored.sha256[:12]}, on {test.name}', flush=True)
  shown = {'split': 'test', 'config': about['provenance']['config']}
  for name in config.evals:
    result = reuse.measure_once(bench, name, restored.state, workdir, about, overwrite=overwrite, protected=True)
    say(*summary.evaluation(name, result, shown), sep='\n', flush=True)
  say(f'  {"results":<20} {workdir / "results"}')


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(prog='python -m adversarial_augment.evaluate', description=_DESCRIPTION, epilog=_EPILOG)
  parser.add_argument(
    '--workdir', required=True, metavar='DIR', help='of the run, or the URL of its mirror; all processes must see it'
  )
  parser.add_argument('--evals', metavar='NAMES', help="evaluations, separated by commas; default: the run's")
  parser.add_argument(
    '--config.FIELD', dest='_', metavar='VALUE', help='override a field, such as data_dir, batch_size, eval_images'
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='evaluate again even if there are results; start a stopped attack over'
  )
  attack_request.add(parser)
  cli.add_process_flags(parser)
  return parser


if __name__ == '__main__':
  cli.run(
    main,
    less_memory='lower --config.batch_size, or set --config.precision=bfloat16; for ada, also set '
    '--config.attack.microbatch; or end other programs on the device',
  )
