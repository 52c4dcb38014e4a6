"""Evaluates a trained classifier: python -m adversarial_augment.evaluate --workdir=DIR

The newest good checkpoint, on what the run's `config.evals` names or on what --evals does.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from adversarial_augment import cli, datasets, inference
from adversarial_augment import config as configs
from adversarial_augment.cli import progress, signals, streams
from adversarial_augment.config import command_line
from adversarial_augment.datasets import benchmarks, classes
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import robustness_flags
from adversarial_augment.parallel import devices, launch
from adversarial_augment.storage import files, results
from adversarial_augment.types import Attack, Dataset, PyTree

# What an evaluation may have otherwise than the training.
_FIELDS = ('evals', 'eval_images', 'corrupted_images', 'batch_size', 'data_dir', 'dataset', 'frost_dir', 'precision')
_GROUPS = ('attack', 'corruption_net')
_OF_ATTACKED = ('batch_size', 'data_dir', 'dataset', 'precision')  # with --attack

_DESCRIPTION = """Evaluates the newest good checkpoint of a run on the test set.

Results go to WORKDIR/results, one .json and one .csv for each evaluation. What they hold already is shown again;
--overwrite replaces what other images, settings or versions gave for the same checkpoint. After a stop the same
command goes on, within an evaluation on corruptions and within an attack too; only --overwrite begins an attack anew.

With --attack the classifier is attacked within l_p balls instead: survivors are shown after each stage, and the robust
accuracy goes to WORKDIR/results/robustness_ATTACK_NORM_EPSILON.json. A number that checks of the classifier or of the
attacks speak against is marked UNRELIABLE, and the program ends with 3."""

_EPILOG = """examples:
  python -m adversarial_augment.evaluate --workdir=runs/ada
  python -m adversarial_augment.evaluate --workdir=runs/ada --evals=clean,cifar10_c,cifar10_1
  python -m adversarial_augment.evaluate --workdir=runs/ada --evals=ada --config.attack.nu=0.03 --overwrite
  python -m adversarial_augment.evaluate --workdir=runs/ada --attack=autoattack --norm=linf --epsilon=8/255
  python -m adversarial_augment.evaluate --workdir=runs/ada --attack=table2 --num_examples=1000

evaluations: clean, ada (under AdA), cifar10_c (the 15 corruptions), cifar10_c_extra (the 4 others), cifar10_1.
Corrupted images come from DATA_DIR/DATASET_c, where `prepare cifar10_c` has put them, or are made in memory.

attacks: autoattack (standard), autoattack_plus, paper (AutoAttack & MultiTargeted as arXiv 2104.01086), multitargeted,
pgd; table2 is `paper` within the balls of that Table 2: l2 0.5 and 1, linf 1/255, 2/255 and 4/255.

exit codes: 0 done, 2 wrong input, 3 a number is NaN or UNRELIABLE (0 with --allow_suspect), 4 no usable checkpoint,
5 disk full or not writable, 75 stopped by a signal (run the same command again, without --overwrite)."""


def main(argv: Sequence[str]) -> int | None:
  overrides, rest = command_line.split_overrides(argv)
  arguments = _parser().parse_args(rest)
  cli.check_processes(arguments)
  processes = launch.find(arguments)
  with launch.together(processes) as shared:
    request = robustness_flags.parse(arguments)
    workdir = files.user_path(arguments.workdir, '--workdir')
    if arguments.evals is not None:
      overrides['evals'] = arguments.evals
    trained = _read_config(workdir, arguments)
    config = configs.override(trained, overrides)
    configs.validate(config)
    _check_overrides(config, overrides, attack=request is not None)
    with progress.stage(f'reading the images of {config.dataset}'):
      test = datasets.load(config.dataset, 'test', config.data_dir)
    counted = _labels(workdir, trained, config, test)
    with progress.stage('loading JAX'):
      from adversarial_augment.evaluation import evaluations
      from adversarial_augment.training import recipe
    about: dict[str, Any] = {'data': {'test': test.provenance}, 'overwrite': arguments.overwrite}
    if request is None:
      test_data = benchmarks.load(config.evals, config.dataset, config.data_dir, test)
      newer = {version: counted(dataset) for version, dataset in test_data.cifar10_1.items()}
      test_data = test_data._replace(images=counted(test), cifar10_1=newer)
      recipe.check_adversary(config, test.image_shape)
      about |= {'frost': evaluations.check_frost(config, test_data), **benchmarks.origins(test_data)}
      about['weights'] = recipe.weights_sha256(config)
    else:
      test = robustness_flags.first_examples(request, counted(test))
      about['attack'] = request._replace(surrogate=None)._asdict()
    shared |= launch.facts('evaluate', configs.to_json(config), about)
  num_devices = devices.virtual_devices(devices.usable_cores())
  if request is None and num_devices is not None and processes is None and 'ada' in config.evals:
    recipe.check_evaluation_parts(config, num_devices)
  devices.compilation_cache()
  kept = f"what has been found so far is kept in '{workdir / 'results'}'"  # but for the last few seconds
  again = 'and the same command' + (' without --overwrite' if request and arguments.overwrite else '') + ' goes on'
  with signals.listen(several_processes=False, kept=kept, again=again):
    if request is None:
      evaluate(config, workdir, test_data, overwrite=arguments.overwrite)
      return None
    from adversarial_augment.evaluation import run_robustness

    return run_robustness.run(config, workdir, test, request, overwrite=arguments.overwrite)


def _read_config(workdir: Path, arguments: argparse.Namespace) -> ConfigDict:
  """Reads the config of the run, which every process does for itself."""
  try:
    return inference.read_config(workdir, streams.say if arguments.process_id in (None, 0) else lambda line: None)
  except UserError as error:
    if arguments.process_id is None:
      raise
    raise UserError(f'{error} All processes read it: it must lie in a folder that they share.') from error


def _check_overrides(config: ConfigDict, overrides: Mapping[str, str], *, attack: bool) -> None:
  """Refuses what says how the classifier was trained, what an attack ignores, and an empty list of evaluations."""
  for name in overrides:
    if attack and name not in _OF_ATTACKED:
      raise UserError(
        f'config.{name} changes nothing with --attack; leave it out (these can change: {", ".join(_OF_ATTACKED)}; the '
        'attack has --norm, --epsilon and --num_examples).'
      )
    if name not in _FIELDS and name.partition('.')[0] not in _GROUPS:
      raise UserError(
        f'config.{name} says how the classifier was trained and cannot be changed for an evaluation; leave it out '
        f'(these can: {", ".join(_FIELDS)}, {", ".join(f"{group}.*" for group in _GROUPS)}).'
      )
  if not config.evals and not attack:
    raise UserError('--evals names no evaluation; name some, such as --evals=clean,cifar10_c.')


def _labels(workdir: Path, trained: ConfigDict, config: ConfigDict, test: Dataset) -> Callable[[Dataset], Dataset]:
  """Refuses a test set that has changed since the training; says so where another one is wanted.

  Returns:
    What gives a data set the labels that the run's classifier has for its classes.
  """
  known = inference.classes(workdir)
  counted = functools.partial(classes.in_order, known=known, classifier=f"The run '{workdir}'")
  if config.dataset != trained.dataset:
    print(f'note: trained on {trained.dataset}, evaluated on {config.dataset}', flush=True)
    counted(test)  # refuses other classes
    if note := classes.note(known, test, config.dataset):
      print(note, flush=True)
    return counted
  sha256 = results.read(workdir / 'data.json').get('test')
  if sha256 is not None and sha256 != test.provenance.get('sha256', sha256):
    raise UserError(
      f"The test set '{config.dataset}' under '{config.data_dir}' is not the one of the run (SHA-256 in "
      f"'{workdir}/data.json'): its images may have been trained on; bring that one back, or train anew."
    )
  return lambda dataset: dataset if sha256 is not None else counted(dataset)


def evaluate(config: ConfigDict, workdir: Path, test_data: benchmarks.Benchmarks, *, overwrite: bool = False) -> None:
  """Evaluates a run on `config.evals`, writes and prints what is found.

  Args:
    config: of the run, perhaps with other evaluations, images or adversary.
    workdir: of the run.
    test_data: the images.
    overwrite: whether to evaluate what `workdir` has results of.

  Raises:
    AdversarialAugmentError: no good checkpoint, or the results cannot be written.
  """
  import jax

  from adversarial_augment.evaluation import run_evaluation
  from adversarial_augment.evaluation.evaluations import Evaluations
  from adversarial_augment.parallel import sharding
  from adversarial_augment.run import summary
  from adversarial_augment.training import recipe

  mesh, test = sharding.data_mesh(), test_data.images
  with progress.stage('reading the newest checkpoint'):
    restored = inference.restore(config, workdir, test.num_classes, test.image_shape, mesh)
  attack: Attack | None = None
  phi: PyTree = {}
  if 'ada' in config.evals:
    attack, phi = recipe.build_attack(config, mesh)
  classifier = recipe.attacked_classifier(config, test.num_classes)
  evaluations = Evaluations(config, classifier, mesh, test_data, attack, sharding.replicate(mesh, phi))
  provenance = summary.provenance(config, {'test': test}, 'evaluate', workdir)
  provenance['config_sha256'] = restored.config_sha256  # of the run
  about = {'step': restored.step, 'checkpoint_sha256': restored.sha256, 'provenance': provenance}
  if jax.process_index() == 0:
    print(f'{workdir}: step {restored.step:,}, checkpoint {restored.sha256[:12]}, on {test.name}', flush=True)
  for name in config.evals:
    result = run_evaluation.find(evaluations, name, restored.state, workdir, about, anew=overwrite, keep=True)
    if jax.process_index() == 0:
      print('\n'.join(summary.evaluation(name, result, {'split': 'test', 'config': provenance['config']})), flush=True)
  if jax.process_index() == 0:
    print(f'  {"results":<20} {workdir / "results"}')


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(prog='python -m adversarial_augment.evaluate', description=_DESCRIPTION, epilog=_EPILOG)
  parser.add_argument('--workdir', required=True, metavar='DIR', help='of the run; several processes must all see it')
  parser.add_argument('--evals', metavar='NAMES', help="evaluations, separated by commas; default: the run's")
  parser.add_argument(
    '--config.FIELD', dest='_', metavar='VALUE', help='replace a field, such as data_dir, batch_size, eval_images'
  )
  parser.add_argument(
    '--overwrite', action='store_true', help='evaluate again what is known; begin a stopped attack anew'
  )
  parser.add_argument('--debug', action='store_true', help='show tracebacks')
  robustness_flags.add(parser)
  cli.add_process_flags(parser)
  return parser


if __name__ == '__main__':
  cli.run(
    main,
    less_memory='lower --config.batch_size, or set --config.precision=bfloat16; for ada, also set '
    '--config.attack.microbatch; or end other programs on the device',
  )
