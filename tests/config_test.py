"""The fields of the configs: defaults, overrides, rules, JSON, hashes."""

import hashlib
import json

from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
import pytest

from adversarial_augment import checks
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError

BOTH = pytest.mark.parametrize('make', [configs.base_config, configs.pretrain_config])


def refused(pairs: dict[str, str], base=None) -> str:
  """Returns the one line by which a config with some fields replaced is refused."""
  with pytest.raises(UserError) as error:
    configs.validate(configs.override(base or configs.base_config(), pairs))
  message = str(error.value)
  assert len(message.splitlines()) == 1
  assert len(message) < 900
  return message


@BOTH
def test_defaults_are_valid_locked_and_not_shared(make):
  config = make()
  configs.validate(config)
  assert config.is_locked
  assert config.corruption_net.is_locked
  config.corruption_net.blocks = 3
  assert make().corruption_net.blocks is None


def test_defaults_are_the_papers_full_setting():
  config = configs.base_config()
  assert (config.num_epochs, config.batch_size, config.optimizer.learning_rate) == (300, 256, 0.1)
  assert (config.optimizer.weight_decay, config.optimizer.warmup_epochs) == (1e-4, 5)
  assert (config.attack.nu, config.attack.num_steps, config.attack.step_fraction) == (0.015, 10, 0.25)
  assert (config.attack.min_ssim, config.classifier.depth) == (0.3, 50)


@BOTH
def test_describe_has_every_field_once_aligned_with_its_meaning(make):
  lines = configs.describe(make()).splitlines()
  table = configs.TABLES['train' if make is configs.base_config else 'pretrain']
  assert [line.split()[0] for line in lines] == list(table)
  assert len({line.index(' = ') for line in lines}) == 1
  for line, field in zip(lines, table.values(), strict=True):
    assert field.meaning.strip()
    assert field.meaning in line.partition('  # ')[2]


# -- overrides


@pytest.mark.parametrize(
  'field, text, value',
  [
    ('batch_size', '12', 12), ('num_epochs', '30', 30.0), ('optimizer.learning_rate', '1e-3', 1e-3),
    ('tensorboard', 'True', True), ('tensorboard', '0', False), ('dataset', 'embedded', 'embedded'),
    ('evals', 'clean', ('clean',)), ('evals', '', ()), ('augment.after', ' flip, pad_crop ', ('flip', 'pad_crop')),
    ('num_steps', '7', 7), ('num_steps', 'none', None), ('attack.microbatch', 'null', None),
    ('corruption_net.weights', 'a/b.safetensors', 'a/b.safetensors'), ('init_from', 'None', None),
    ('attack.min_ssim', '-0.5', -0.5), ('attack.nu', '0', 0.0),
  ],
)  # fmt: skip
def test_override_reads_text_by_the_type_of_the_field(field, text, value):
  base = configs.base_config()
  changed = configs.override(base, {field: text})
  configs.validate(changed)
  flat = checks.flatten(changed)
  assert flat[field] == value
  assert type(flat[field]) is type(value)
  assert {name for name in flat if flat[name] != checks.flatten(base)[name]} <= {field}
  assert configs.to_json(base) == configs.to_json(configs.base_config()), 'the argument is not changed'


BAD_VALUES = [
  ('batch_size', ('0', '-5', '2.5', 'abc', '', 'none', '1e3', 'true', '9' * 5000, '1048577')),
  ('num_epochs', ('nan', 'inf', '0', 'True')),
  ('num_steps', ('0', 'many')),
  ('seed', ('-1', '2147483648')),
  ('holdout', ('-1',)),
  ('precision', ('float16',)),
  ('log_every', ('0',)),
  ('checkpoint_every', ('-1',)),
  ('keep_checkpoints', ('1',)),
  ('evals', ('clean,clean', 'claen', 'clean,,ada')),
  ('tensorboard', ('yes',)),
  ('dataset', ('',)),
  ('data_dir', ('a\nb',)),
  ('classifier.depth', ('20',)),
  ('classifier.width', ('4097',)),
  ('classifier.batch_norm_decay', ('1',)),
  ('classifier.name', ('resnets',)),
  ('corruption_net.name', ('esdr',)),
  ('corruption_net.scale', ('3',)),
  ('corruption_net.weights', ('weights.pt',)),
  ('attack.name', ('adda',)),
  ('attack.nu', ('-0.1', '-inf')),
  ('attack.num_steps', ('-1',)),
  ('attack.step_fraction', ('0',)),
  ('attack.min_ssim', ('1.5',)),
  ('attack.root', ('strct',)),
  ('attack.microbatch', ('0', '64')),  # the latter with batch statistics
  ('augment.before', ('crop', 'augmix')),
  ('optimizer.momentum', ('1.0',)),
  ('optimizer.learning_rate', ('1,5',)),
  ('optimizer.weight_decay', ('nan',)),
  ('optimizer.warmup_epochs', ('300',)),
  ('attack.warmup_epochs', ('300',)),
]


@pytest.mark.parametrize('field, text', [(field, text) for field, texts in BAD_VALUES for text in texts])
def test_bad_value_is_one_line_that_names_field_and_rule(field, text):
  message = refused({field: text})
  assert message.startswith(f'config.{field}=')
  assert 'must' in message or 'cannot' in message
  assert message.endswith(('.', '?'))


@pytest.mark.parametrize(
  'pairs, words',
  [
    ({'batchsize': '1'}, "'batchsize'. Did you mean 'batch_size'?"),
    ({'attack.num_step': '1'}, "'attack.num_step'. Did you mean 'attack.num_steps'?"),
    ({'learning_rate': '1'}, "'learning_rate'. Did you mean 'optimizer.learning_rate'?"),
    ({'classifer.depth': '1'}, "'classifer.depth'. Did you mean 'classifier.depth'?"),
    ({'attack.seed': '1'}, "'attack.seed'. Did you mean 'seed'?"),
    ({'batch_size.x': '1'}, "'batch_size.x'. Did you mean 'batch_size'?"),
    ({'attack': 'none'}, 'config.attack is a group of fields'),
    ({'attack.root': 'strct'}, "Did you mean 'strict'?"),
    ({'evals': 'claen'}, "Did you mean 'clean'?"),
    ({'attack.batch_norm': 'running', 'attack.microbatch': '100'}, 'microbatch=100 must divide config.batch_size=256; '
     'try 64.'),
    ({'attack.batch_norm': 'batch', 'attack.microbatch': '64'}, 'cannot go with config.attack.batch_norm=batch, '),
    ({'attack.batch_norm': 'device', 'attack.microbatch': '64'}, 'cannot go with config.attack.batch_norm=device, '
     'whose statistics need all images at once; set config.attack.batch_norm=running'),
  ],
)  # fmt: skip
def test_the_message_offers_what_works(pairs, words):
  assert words in refused(pairs)


@pytest.mark.parametrize('after', ['', 'flip', 'flip,augmix', 'augmix,augmix_all_ops'])
def test_the_divergence_needs_augmix_alone(after):
  message = refused({'augment.jsd': '12', 'augment.after': after})
  assert message.startswith('config.augment.jsd=12.0 ')
  assert 'set --config.augment.after=augmix alone' in message


@pytest.mark.parametrize('pairs', [
  {'attack.batch_norm': 'running', 'attack.microbatch': '64'}, {'augment.jsd': '12', 'augment.after': 'augmix'},
  {'augment.jsd': '12', 'augment.after': 'augmix_all_ops'}, {'augment.jsd': '0', 'augment.after': 'flip'},
])  # fmt: skip
def test_what_goes_together_is_accepted(pairs):
  configs.validate(configs.override(configs.base_config(), pairs))


@pytest.mark.parametrize(
  'field, value',
  [('batch_size', None), ('num_steps', True), ('num_steps', 2.0), ('evals', ('clean', 3)), ('seed', True)],
)
def test_validate_sees_values_set_in_python(field, value):
  config = configs.base_config()
  config[field] = value
  with pytest.raises(UserError, match=f'config.{field}='):
    configs.validate(config)


@given(name=st.one_of(st.sampled_from(list(configs.TABLES['train'])), st.text(max_size=30)), text=st.text(max_size=40))
@example(name='num_epochs', text='٣')
@example(name='batch_size', text='１２')
@example(name='optimizer.learning_rate', text='1_0')
@example(name='data_dir', text='\udcff')
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_override_is_valid_or_one_line(name, text):
  try:
    config = configs.override(configs.base_config(), {name: text})
    configs.validate(config)
  except UserError as error:
    assert len(str(error).splitlines()) == 1  # noqa: PT017
  else:
    assert configs.from_json(configs.to_json(config)) == config


# -- JSON, hashes, differences


@BOTH
def test_json_round_trip(make):
  config = make()
  assert configs.from_json(configs.to_json(config)) == config
  assert checks.flatten(json.loads(configs.to_json(config))).keys() == checks.flatten(config).keys()


def test_json_numbers_written_by_hand_get_the_type_of_the_field():
  text = configs.to_json(configs.base_config()).replace('"num_epochs": 300.0', '"num_epochs": 300')
  assert configs.to_json(configs.from_json(text)) == configs.to_json(configs.base_config())


@pytest.mark.parametrize(
  'change, names',
  [
    (lambda text: '', 'not JSON'),
    (lambda text: text[:100], 'not JSON'),
    (lambda text: '[' * 100_000, 'not JSON'),
    (lambda text: '3', 'object'),
    (lambda text: text.replace('"seed"', '"sede"'), "'sede'"),
    (lambda text: text.replace('  "seed": 0,\n', ''), "'seed'"),
    (lambda text: text.replace('"seed": 0', '"seed": NaN'), 'seed'),
    (lambda text: text.replace('"seed": 0', '"seed": {"a": 1}'), 'seed'),
    (lambda text: text.replace('"nu": 0.015', '"nu": true'), 'attack.nu'),
    (lambda text: text.replace('"nu": 0.015', '"nu": 1' + '0' * 400), 'attack.nu'),
  ],
)
def test_bad_json_is_one_line_with_its_source(change, names):
  with pytest.raises(UserError) as error:
    configs.from_json(change(configs.to_json(configs.base_config())), 'run/config.json')
  assert str(error.value).startswith('run/config.json')
  assert names in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_hash_changes_exactly_with_what_a_resume_refuses():
  base = configs.base_config()
  texts = {'evals': 'clean', 'data_dir': 'x', 'log_every': '3', 'eval_every': '3', 'checkpoint_every': '3'}
  pretraining = {'accept_ssim': '0.5', 'accept_psnr': '9', 'output': 'x.safetensors'}
  assert texts.keys() | pretraining.keys() == set(configs.RESUMABLE)
  begun = configs.pretrain_config()
  for field, text in pretraining.items():
    assert configs.differences(begun, configs.override(begun, {field: text})) == []
  for field, text in texts.items() | {('seed', '1'), ('attack.nu', '0.02'), ('augment.after', 'flip')}:
    other = configs.override(base, {field: text})
    same = field in configs.RESUMABLE
    assert (configs.sha256(other) == configs.sha256(base)) == same
    assert (configs.differences(base, other) == []) == same
  assert len(configs.sha256(base)) == hashlib.sha256().digest_size * 2


def test_differences_names_both_values_and_takes_json():
  base = configs.base_config()
  other = configs.override(base, {'attack.nu': '0.02', 'num_steps': '5', 'evals': 'clean', 'augment.before': 'flip'})
  old = json.loads(configs.to_json(base))
  assert configs.differences(old, base) == []
  assert configs.differences(old, other) == [
    'num_steps: None -> 5',
    'attack.nu: 0.015 -> 0.02',
    "augment.before: ['pad_crop', 'flip'] -> ['flip']",
  ]
  del old['seed']
  assert configs.differences(old, base) == ['seed: (absent) -> 0']


def test_config_dict_keeps_its_types():
  config = configs.base_config()
  config.num_epochs = 3
  assert isinstance(config.num_epochs, float)
  with pytest.raises(TypeError, match='num_epochs'):
    config.num_epochs = True
  with pytest.raises(AttributeError):
    config.attack.nuu = 1.0
  assert isinstance(config, ConfigDict)
