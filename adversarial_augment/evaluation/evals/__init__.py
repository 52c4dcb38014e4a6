"""The evaluations: each module here is one, under the name that `config.evals` has for it, as its `ENTRY`.

To add one, add a file: `registry.evaluations()` finds it, for the config, `evaluate`, `train`, results and reports.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adversarial_augment.types import Dataset, TrainState

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from adversarial_augment.config.fields import Field
  from adversarial_augment.reporting.parts import Section
  from adversarial_augment.reporting.runs import Run

Result = dict[str, Any]
Poll = Callable[[], None]
Outcomes = Mapping[
  str, list[str]
]  # corruption -> the images classified correctly at severity 1, 2, ..., as packed bits
Keep = Callable[[Outcomes], None]


class Evaluation:
  """One evaluation, with all that belongs to it. What is not overridden is that of an accuracy on the test images.

  The config reads an entry before JAX is loaded: a module here imports nothing heavy, and a method imports what it
  needs.
  """

  name: str  # in `config.evals`, and of its files in results/
  order: int  # its place where evaluations are listed
  title: str  # on the terminal and in sentences of a report, such as 'clean accuracy'
  meaning: str  # for --help and --print_config, such as 'clean images'
  headline: tuple[int, str, str] | None = None  # place, heading and field of its number at the top of a report
  under_attack = False  # whether AdA attacks each image
  on_validation = True  # whether it can be made on validation images, between steps
  datasets: tuple[str, ...] = ()  # the data sets that it makes sense for; (): all
  imported_from = ''  # what `prepare` imports the data set of this very name from, such as FOLDER
  parts: tuple[str, ...] = ()  # fields of its result that are accuracies on images of their own
  corruptions: tuple[str, ...] = ()  # what it finds is an error for each of these and each severity; (): an accuracy
  mean_error = ''  # field of the mean of those errors

  def fields(self) -> 'dict[str, Field]':
    """Returns its own config fields, by name."""
    return {}

  def check(self, flat: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong between the fields of a config, {dotted name: value}; each a sentence with the way out."""
    yield from ()

  def open(
    self, config: 'ConfigDict', images: Dataset, relabel: Callable[[Dataset], Dataset], *, prepared: bool = True
  ) -> Any:
    """Returns what it reads beside the images, for `Bench.opened`; called before any device is touched.

    Args:
      config: of the run, with `name` among its evals.
      images: those that the classifier is judged on.
      relabel: gives a data set the labels that the classifier has for its classes.
      prepared: whether sets of `prepare` belong to `images`, as they do to the test images.

    Raises:
      UserError: a set is missing, damaged, or of other images or classes.
    """
    return None

  def origin(self, opened: Any) -> Result:
    """Returns where what `open` gave comes from; goes into the provenance and the conditions of the result."""
    return {}

  # A bench is a `Bench` (evaluation/bench.py), which reads the entries.

  def num_images(self, bench: Any) -> int:
    """Returns how many images are classified, forms of one image each for itself."""
    return bench.images.num_examples

  def num_programs(self, opened: Any) -> int:
    """Returns how many programs are compiled on the way, beside that of the classifier."""
    return 1

  def conditions(self, bench: Any) -> Result:
    """Returns what of the config decides its result, beside `eval_images` and `precision`."""
    return {}

  def measure(self, bench: Any, state: TrainState, poll: Poll, known: Outcomes, keep: Keep) -> Result:
    """Returns what it finds; see `Bench.measure`."""
    return bench.accuracy(state, bench.images, poll, under_attack=self.under_attack)

  def lines(self, values: Result, result: Result) -> list[str]:
    """Returns its lines of the closing table.

    Args:
      values: what was found.
      result: with `split` and `config`.
    """
    return [accuracy_line(self.title, values, f'{result["split"]} images')]

  def sections(self, runs: 'Sequence[Run]') -> 'list[Section]':
    """Returns its sections of a report."""
    return []

  def accuracies(self, result: Result) -> dict[str, Result]:
    """Returns, by heading, the accuracies by which a report compares two runs."""
    return {} if self.corruptions else {self.title[0].upper() + self.title[1:]: result}


def accuracy_line(label: str, values: Result, what: str) -> str:
  return f'  {label:<20} {values["accuracy"]:.4f}  ({values["num_correct"]:,} of {values["num_images"]:,} {what})'
