"""Accuracy on CIFAR-10.1, new test images for CIFAR-10 (arXiv 1806.00451): versions v6, the main one, and v4."""

from collections.abc import Callable
from typing import Any

from adversarial_augment.errors import UserError
from adversarial_augment.evaluation.evals import Evaluation, Keep, Outcomes, Poll, Result, accuracy_line
from adversarial_augment.types import Dataset, TrainState

_MAIN = 'v6'  # the recommended version, and that of arXiv 2104.01086
# Accuracies in % on v6 that Table 2 of arXiv 2104.01086 has, by the names of `reporting.published.MODELS`.
_PUBLISHED = {
  'AdA + DeepAugment (10×) + AugMix': 87.35, 'AdA + DeepAugment + AugMix': 88.20, 'AdA + AugMix': 91.05, 'AdA': 90.50,
  'DeepAugment': 87.10, 'DeepAugment + AugMix': 87.60, 'DeepAugment (10×)': 88.75, 'DeepAugment (10×) + AugMix': 89.35,
  'AugMix': 90.40, 'Nominal': 89.65,
}  # fmt: skip


class Cifar101(Evaluation):
  name, order = 'cifar10_1', 4
  title = meaning = 'CIFAR-10.1'
  headline = 3, 'CIFAR-10.1 v6 accuracy', 'accuracy'
  on_validation = False  # its images are test images, all of them
  datasets = ('cifar10',)
  imported_from = 'FOLDER'
  parts = ('v6', 'v4')

  def open(
    self, config: Any, images: Dataset, relabel: Callable[[Dataset], Dataset], *, prepared: bool = True
  ) -> dict[str, Dataset]:
    from adversarial_augment.config import rules
    from adversarial_augment.datasets import cifar10, classes, source

    if config.dataset.partition(':')[0] not in self.datasets:
      raise UserError(rules.other_classes(self.name, 'CIFAR-10', config.dataset))
    known = classes.Classes(images.num_classes, images.class_names)
    opened = {}
    for version in self.parts:
      dataset = source.load(f'{self.name}/{version}', 'test', config.data_dir)
      if dataset.class_names == tuple('0123456789'):  # as TFDS has it, in CIFAR-10's order
        dataset = dataset._replace(class_names=cifar10.CLASS_NAMES)
      opened[version] = relabel(classes.in_order(dataset, known, f"The data set '{images.name}'"))
    return opened

  def origin(self, opened: dict[str, Dataset]) -> Result:
    return {self.name: {version: dataset.provenance for version, dataset in opened.items()}}

  def num_images(self, bench: Any) -> int:
    return sum(dataset.num_examples for dataset in self._first(bench).values())

  def measure(self, bench: Any, state: TrainState, poll: Poll, known: Outcomes, keep: Keep) -> Result:
    found = {version: bench.accuracy(state, dataset, poll) for version, dataset in self._first(bench).items()}
    return found[_MAIN] | found

  def _first(self, bench: Any) -> dict[str, Dataset]:
    return {version: bench.first(dataset) for version, dataset in bench.opened[self.name].items()}

  def lines(self, values: Result, result: Result) -> list[str]:
    return [accuracy_line(f'{self.title} {version}', values[version], 'images') for version in self.parts]

  def accuracies(self, result: Result) -> dict[str, Result]:
    return {f'{self.title} {version} accuracy': result[version] for version in self.parts}

  def sections(self, runs):
    from adversarial_augment.reporting import published, sources
    from adversarial_augment.reporting.parts import section
    from adversarial_augment.reporting.tables import NONE, Row, Table, percent

    found = sources.having(runs, self.name)
    if not found:
      return []
    rows = [
      Row((run.label, version, percent(result[version]['accuracy']), *map(percent, result[version]['interval'])))
      for _, run, result in found
      for version in self.parts
    ]
    if any(sources.data_set(run, result) in self.datasets for _, run, result in found):
      rows += [
        Row((f'{name} ({published.PAPER})', _MAIN, f'{accuracy:.2f}', NONE, NONE), 'published')
        for name, accuracy in _PUBLISHED.items()
      ]
    columns = ('setup', 'version', 'accuracy', '95 % from', 'to')
    return [section(self.name, self.title, Table('Accuracy in %', columns, rows, words=2))]


ENTRY = Cifar101()
