"""Runs whose config.json was written before some fields were there."""

import hashlib
import json
from pathlib import Path

import pytest

from adversarial_augment import checks, evaluate, export, inference
from adversarial_augment import config as configs
from adversarial_augment.config.tables import ADDED, RESUMABLE, TABLES
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import devices
from adversarial_augment.reporting import training
from adversarial_augment.run import opening
from adversarial_augment.storage import checkpoints
from tests.classifier_cases import card_of, make_config, random_state

# The fields of the first runs. This list stays: a field that is not in it belongs into config.tables.ADDED.
FIRST = {
  'train': """
    dataset data_dir batch_size num_epochs num_steps seed init_from holdout precision log_every checkpoint_every
    eval_every keep_checkpoints evals eval_images tensorboard classifier.name classifier.depth classifier.width
    classifier.batch_norm_decay classifier.shortcut classifier.padding corruption_net.name corruption_net.blocks
    corruption_net.features corruption_net.scale corruption_net.weights corruption_net.perturb_mean_shift attack.name
    attack.nu attack.num_steps attack.step attack.step_fraction attack.init attack.keep_best attack.batch_norm
    attack.min_ssim attack.root attack.warmup_epochs attack.microbatch augment.before augment.after
    optimizer.learning_rate optimizer.momentum optimizer.nesterov optimizer.weight_decay optimizer.decay_batch_norm
    optimizer.warmup_epochs""",
  'pretrain': """
    dataset data_dir batch_size num_steps seed learning_rate log_every checkpoint_every eval_every patch
    reconstruction_weight accept_ssim output corruption_net.name corruption_net.blocks corruption_net.features
    corruption_net.scale""",
}
TRAIN_ADDED = [name for name in ADDED if name in TABLES['train']]


def without(config, names) -> dict:
  """A config as the version without some fields wrote it."""
  return checks.nest({name: value for name, value in checks.flatten(config).items() if name not in names})


def hash_of(tree: dict) -> str:
  """The hash that such a version wrote."""
  flat = {name: value for name, value in checks.flatten(tree).items() if name not in RESUMABLE}
  return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def save_run(workdir: Path, names=tuple(TRAIN_ADDED)) -> str:
  """A run of a version without some fields; returns the hash of its config."""
  config = make_config()
  old = without(config, names)
  workdir.mkdir()
  (workdir / 'config.json').write_text(json.dumps(old))
  checkpoints.save(workdir / 'checkpoints', 2, random_state(config, 2), config_sha256=hash_of(old))
  return hash_of(old)


@pytest.mark.parametrize('program', TABLES)
def test_every_field_since_the_first_runs_says_what_its_absence_means(program):
  first, table = set(FIRST[program].split()), TABLES[program]
  assert first <= table.keys()
  assert table.keys() - first == ADDED.keys() & table.keys()
  for name in ADDED.keys() & table.keys():
    assert table[name].kind.accepts(ADDED[name])


@pytest.mark.parametrize('count', range(len(TRAIN_ADDED) + 1))
def test_fields_that_were_not_there_are_filled_in_and_hashes_of_then_are_known(count):
  config, names = make_config(), TRAIN_ADDED[count:]
  old = without(config, names)
  assert configs.unknown_to(old) == {name: ADDED[name] for name in names}
  read = configs.from_json(json.dumps(old))
  assert configs.to_json(read) == configs.to_json(config)
  assert configs.sha256(read) == configs.sha256(config)
  assert hash_of(old) in configs.all_sha256(config) & configs.all_sha256(read)


def test_a_config_that_an_older_version_could_not_have_had_has_none_of_its_hashes():
  config = configs.override(make_config(), {'attack.fraction': '0.5'})
  later = TRAIN_ADDED[TRAIN_ADDED.index('attack.fraction') + 1 :]
  assert hash_of(without(config, later)) in configs.all_sha256(config)
  assert hash_of(without(config, TRAIN_ADDED)) not in configs.all_sha256(config)
  assert hash_of(without(make_config(), TRAIN_ADDED)) not in configs.all_sha256(config)


def test_other_missing_fields_are_damage():
  with pytest.raises(UserError, match="the field 'attack.nu' is missing"):
    configs.from_json(json.dumps(without(make_config(), [*TRAIN_ADDED, 'attack.nu'])))


def test_an_older_run_is_evaluated_and_exported(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(devices, 'compilation_cache', lambda: None)
  sha256 = save_run(tmp_path / 'w')
  classify = inference.load_classifier(tmp_path / 'w')
  assert (classify.config_sha256, classify.step) == (sha256, 2)
  export.main([f'--workdir={tmp_path}/w', '--formats=safetensors'])
  said = capsys.readouterr()
  assert said.err.count('\n') == 1
  assert "/config.json' is of an older version, which did not know some fields; they are taken as frost_dir" in said.err
  assert 'attack.fraction=1.0' in said.err
  assert card_of(tmp_path / 'w' / 'export')['training']['config_sha256'] == sha256
  evaluate.main([f'--workdir={tmp_path}/w', '--evals=clean', '--config.eval_images=16', '--config.batch_size=8'])
  assert capsys.readouterr().err.count('is of an older version') == 1
  found = json.loads((tmp_path / 'w' / 'results' / 'clean.json').read_text())
  assert found['provenance']['config_sha256'] == sha256
  assert found['num_images'] == 16


def test_an_older_run_goes_on_if_it_is_the_same(tmp_path, capsys):
  sha256 = save_run(tmp_path / 'w')
  before = (tmp_path / 'w' / 'config.json').read_text()
  other = configs.override(make_config(), {'attack.fraction': '0.5'})
  with (
    pytest.raises(UserError, match=r'another config \(attack.fraction: 1.0 -> 0.5\)'),
    opening.open_run(tmp_path / 'w', other),
  ):
    pass
  assert (tmp_path / 'w' / 'config.json').read_text() == before
  with opening.open_run(tmp_path / 'w', make_config()):
    pass
  assert capsys.readouterr().err.count('is of an older version') == 1
  assert json.loads((tmp_path / 'w' / 'config.json').read_text()) == json.loads(configs.to_json(make_config()))
  with opening.open_run(tmp_path / 'w', make_config()):
    pass
  assert capsys.readouterr().err == ''
  assert inference.load_classifier(tmp_path / 'w').config_sha256 == sha256  # the checkpoint of then is still the run's


def test_reports_do_not_call_a_field_different_that_one_run_did_not_have():
  new = make_config().to_dict()
  old = without(make_config(), TRAIN_ADDED)
  run = lambda config: training.Run(None, '', config)
  assert 'Settings that differ' not in repr(training.what_was_run([run(new), run(old)]))
