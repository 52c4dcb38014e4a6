"""Errors under the 15 corruptions of CIFAR-10-C, at five severities: the mCE of arXiv 2104.01086."""

from collections.abc import Callable
from typing import Any

from adversarial_augment import metrics
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation.evals import Evaluation, Keep, Outcomes, Poll, Result
from adversarial_augment.types import Dataset, TrainState

_CELLS = len(metrics.SEVERITIES)


class CorruptionErrors(Evaluation):
  """Errors on corrupted images: on those that `prepare cifar10_c` has written, or made in memory."""

  label: str  # of the mean, on the terminal

  def open(self, config: Any, images: Dataset, relabel: Callable[[Dataset], Dataset], *, prepared: bool = True) -> Any:
    from adversarial_augment.config import rules
    from adversarial_augment.datasets import cifar10_c
    from adversarial_augment.evaluation.corrupted import corrupted_in_memory
    from adversarial_augment.storage import files

    height, width, _ = images.image_shape
    if min(height, width) < metrics.MIN_SIZE:
      raise UserError(rules.too_small(config.dataset, height, width, metrics.MIN_SIZE, f'the evaluation {self.name}'))
    folder = files.user_path(config.data_dir, 'data_dir') / cifar10_c.folder_name(config.dataset)
    if prepared and folder.exists():
      return cifar10_c.open_set(folder, self.corruptions, images, verify=True)
    try:
      return corrupted_in_memory(images, self.corruptions, 0, config.frost_dir)
    except UserError as error:
      if config.frost_dir is None:
        raise
      raise UserError(rules.unusable_frost(config.frost_dir, error)) from error

  def origin(self, opened: Any) -> Result:
    return {'corruptions': {'origin': opened.origin, **opened.provenance}}

  def num_images(self, bench: Any) -> int:
    return len(self.corruptions) * _CELLS * len(bench.corrupted_rows())

  def num_programs(self, opened: Any) -> int:
    return len(self.corruptions) if opened.origin == metrics.GENERATED_IN_MEMORY else 1  # one each

  def conditions(self, bench: Any) -> Result:
    from adversarial_augment.datasets.made_with import with_code

    made = self.origin(bench.opened[self.name])['corruptions']
    return {'corruptions': made | {'made_with': with_code(made['made_with'], 'corruptions')}, **bench.subset()}

  def measure(self, bench: Any, state: TrainState, poll: Poll, known: Outcomes, keep: Keep) -> Result:
    from adversarial_augment.evaluation import corrupted

    found = corrupted.errors(
      lambda dataset: bench.accuracy(state, dataset, poll),
      bench.images,
      bench.opened[self.name],
      self.corruptions,
      rows=bench.corrupted_rows(),
      known=known,
      keep=keep,
    )
    mean = found.pop('mean')
    return {self.mean_error: mean, **found, **bench.subset()}

  def lines(self, values: Result, result: Result) -> list[str]:
    """Returns the errors in percent, a line for each corruption and a column for each severity."""
    row = lambda label, errors, mean: (
      f'  {label:<20}' + ''.join(f'{100 * e:7.2f}' for e in errors) + f'{100 * mean:8.2f}'
    )
    mean = values[self.mean_error]
    low, high = (100 * bound for bound in values['interval'])
    subset = f' (of {values["subset_of"]:,}, evenly spaced)' if 'subset_of' in values else ''
    return [
      f'  {"error in %, severity":<20}' + ''.join(f'{severity:7}' for severity in range(1, 6)) + f'{"mean":>8}',
      *(row(name, values['error'][name], values['corruption_error'][name]) for name in self.corruptions),
      row(self.label, values['severity_error'], mean),
      f'  {"":<20} {self.label} {100 * mean:.2f} %, 95 % interval {low:.2f} to {high:.2f}; {values["num_images"]:,} '
      f'images a cell{subset}, {values["origin"]}' + (f'; frost: {values["frost"]}' if values.get('frost') else ''),
    ]


class Cifar10C(CorruptionErrors):
  name, order = 'cifar10_c', 2
  title, meaning = 'corruption errors', 'the 15 corruptions'
  headline = 1, 'mCE, mean corruption error', 'mce'
  corruptions, mean_error, label = metrics.NAMES, 'mce', 'mCE'

  def fields(self):
    from adversarial_augment.config import fields

    return {
      'corrupted_images': fields.Field(
        None,
        fields.optional(fields.integer(1, 10**9)),
        'how many of those cifar10_c and cifar10_c_extra use, evenly spaced among them; None: all',
      ),
      'frost_dir': fields.Field(
        None,
        fields.optional(fields.text('a folder')),
        'frost photographs for corruptions made in memory; None: those of imagecorruptions, or none',
      ),
    }

  def sections(self, runs):
    from adversarial_augment.reporting import results

    return [results.paper_columns(runs), results.by_severity(runs)]


ENTRY = Cifar10C()
