"""The evaluations: one entry of `EVALUATIONS` declares all that tells one from another.

Config fields, shapes of results, measuring, the closing table and reports all follow from an entry. There are three
kinds: accuracy on the test images, on data sets of their own (`parts`), and errors under corruptions (`corruptions`).
`tables.register` adds an entry from outside.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from adversarial_augment import metrics
from adversarial_augment.config import fields
from adversarial_augment.config.fields import Field
from adversarial_augment.types import Dataset

GROUPS = ('attack', 'corruption_net')  # of config fields that evaluations under attack read


def fields_read() -> tuple[str, ...]:
  """Returns the config fields outside of `GROUPS` that evaluations read, beside the classifier."""
  own = (field for entry in EVALUATIONS.values() for field in entry.fields)
  return ('batch_size', 'data_dir', 'dataset', 'precision', 'evals', 'eval_images', *own)


def are_read(name: str) -> bool:
  """Returns whether evaluations read a config field, beside the classifier."""
  return name in fields_read() or name.partition('.')[0] in GROUPS


class Evaluation(NamedTuple):
  """One evaluation. A `config` below has the fields of the run as attributes, a `flat` by their dotted names."""

  title: str  # on the terminal and in sentences of a report, such as 'clean accuracy'
  meaning: str  # in the help of `evals`, such as 'clean images'
  headline: tuple[int, str] | None = None  # place and heading of its number at the top of a report
  section: str = ''  # heading of its section in a report; without one it has none
  published: Mapping[str, float] = {}  # accuracies in percent for that section, by the names of published models
  under_attack: bool = False  # whether AdA attacks each image
  on_validation: bool = True  # whether it can be made on validation images, between steps
  datasets: tuple[str, ...] = ()  # the data sets that it makes sense for; (): all
  imported_from: str = ''  # what `prepare` imports the data set of this very name from, such as FOLDER
  parts: tuple[str, ...] = ()  # versions of a data set of this very name that it measures, the main one first
  corruptions: tuple[str, ...] = ()  # it measures the error under each of these at each severity
  mean_error: str = ''  # field of the mean of those errors
  mean_label: str = ''
  fields: Mapping[str, Field] = {}  # its own config fields
  broken_rules: Callable[[Mapping[str, Any]], Iterator[str]] = lambda flat: iter(())  # flat -> what is wrong, to set
  images: Callable[[Any, Dataset], Dataset] = lambda config, images: images  # those that it classifies
  conditions: tuple[str, ...] = ()  # config fields and groups that decide its result, beside those of all evaluations

  @property
  def number(self) -> str:
    """The field of its headline number."""
    return self.mean_error or 'accuracy'


EVALUATIONS: dict[str, Evaluation] = {
  'clean': Evaluation(title='clean accuracy', meaning='clean images', headline=(0, 'Clean accuracy')),
  'ada': Evaluation(
    title='accuracy under AdA',
    meaning='under AdA',
    headline=(2, 'Accuracy under AdA'),
    under_attack=True,
    conditions=('attack', 'corruption_net'),
  ),
  'cifar10_c': Evaluation(
    title='corruption errors',
    meaning='the 15 corruptions',
    headline=(1, 'mCE, mean corruption error'),
    section='Corruption errors',
    corruptions=metrics.NAMES,
    mean_error='mce',
    mean_label='mCE',
    fields={
      'corrupted_images': Field(
        None,
        fields.optional(fields.integer(1, 10**9)),
        'how many of those the evaluations of corruptions use, evenly spaced among them; None: all',
      ),
      'frost_dir': Field(
        None,
        fields.optional(fields.text('a folder')),
        'frost photographs for corruptions made in memory; None: those of imagecorruptions, or none',
      ),
    },
  ),
  'cifar10_c_extra': Evaluation(
    title='extra corruptions',
    meaning='the 4 extra corruptions',
    section='Extra corruptions',
    corruptions=metrics.EXTRA_NAMES,
    mean_error='mean_error',
    mean_label='mean',
  ),
  'cifar10_1': Evaluation(  # new test images for CIFAR-10 (arXiv 1806.00451)
    title='CIFAR-10.1',
    meaning='CIFAR-10.1',
    headline=(3, 'CIFAR-10.1 v6 accuracy'),
    section='CIFAR-10.1',
    published={  # on v6, from Table 2 of arXiv 2104.01086
      'AdA + DeepAugment (10×) + AugMix': 87.35, 'AdA + DeepAugment + AugMix': 88.20, 'AdA + AugMix': 91.05,
      'AdA': 90.50, 'DeepAugment': 87.10, 'DeepAugment + AugMix': 87.60, 'DeepAugment (10×)': 88.75,
      'DeepAugment (10×) + AugMix': 89.35, 'AugMix': 90.40, 'Nominal': 89.65,
    },
    on_validation=False,  # its images are test images, all of them
    datasets=('cifar10',),
    imported_from='FOLDER',
    parts=('v6', 'v4'),  # v6 is the recommended version, and that of the paper
  ),
  'cifar10_c_bar': Evaluation(  # generalisation to corruptions unlike those of CIFAR-10-C (arXiv 2102.11273)
    title='errors on CIFAR-10-C-bar',
    meaning='the 10 corruptions of CIFAR-10-C-bar, unlike the other ones',
    headline=(4, 'Mean error on CIFAR-10-C-bar'),
    section='CIFAR-10-C-bar',
    corruptions=metrics.BAR_NAMES,
    mean_error='mean_error',
    mean_label='mean',
  ),
}  # fmt: skip
