"""The rows of Table 1 with DeepAugment: in what their configs differ from those of the rows without."""

import pytest

from adversarial_augment import config as configs
from adversarial_augment import registry

SETS = ('edsr', 'cae')
AUGMIX = {'augment.after': ('augmix',)}
ONE = {'deepaugment.sets': SETS, 'deepaugment.copies': 1}
TEN = {'deepaugment.sets': SETS, 'deepaugment.copies': 10}
ROWS = {  # the row without, and what is different
  'deepaugment': ('nominal', ONE),
  'deepaugment10x': ('nominal', TEN),
  'deepaugment_augmix': ('nominal', ONE | AUGMIX),
  'deepaugment10x_augmix': ('nominal', TEN | AUGMIX),
  'ada_deepaugment_augmix': ('ada_edsr', ONE | AUGMIX),
  'ada_deepaugment10x_augmix': ('ada_edsr', TEN | AUGMIX),
}


@pytest.mark.parametrize('variant', ['', 'quickstart', 'laptop', 'smoke'])
@pytest.mark.parametrize('row', ROWS)
def test_what_a_row_changes(row, variant):
  base, changes = ROWS[row]
  config = configs.load(f'configs/{row}.py:{variant}')
  configs.validate(config)
  found, before = (registry.flatten(each) for each in (config, configs.load(f'configs/{base}.py:{variant}')))
  if changes['deepaugment.copies'] == 10 and variant in ('quickstart', 'smoke'):
    changes = changes | {'deepaugment.copies': 2}
  assert {name: value for name, value in found.items() if value != before[name]} == changes
  assert found['deepaugment.mix'] == 'concat'
