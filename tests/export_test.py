"""Exported classifiers: every file gives the logits of the run's own, loaded by the lines on the card."""

import hashlib
import importlib.util
import json
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from adversarial_augment import cli, export, inference, results
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.exporting import formats
from adversarial_augment.storage import artifact
from tests.checkpoint_cases import files_of, flip
from tests.classifier_cases import card_of, images, load_by_card, random_classifier, save_run
from tests.reporting_fixtures import write_run


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp('run') / 'w'
  save_run(workdir)
  shutil.copytree(write_run(tmp_path_factory.mktemp('other') / 'w') / 'results', workdir / 'results')
  path = workdir / 'results' / 'clean.json'  # the other ones are of another checkpoint
  sha256 = inference.load_classifier(workdir).checkpoint_sha256
  results.write(path, json.loads(path.read_text()) | {'checkpoint_sha256': sha256})
  return workdir


@pytest.fixture(scope='module')
def classify(saved):
  return inference.load_classifier(saved, batch_size=8)


@pytest.fixture(scope='module')
def exported(saved, tmp_path_factory) -> Path:
  output = tmp_path_factory.mktemp('exported') / 'deep' / 'folder'
  export.main([f'--workdir={saved}', f'--output={output}'])
  return output


@pytest.fixture
def copy(saved, tmp_path) -> Path:
  return Path(shutil.copytree(saved, tmp_path / 'w'))


NO_ONNX = 'classifier.onnx needs the package onnx, of the extra [onnx]; install it: pip install onnx.'


# The files.


def test_a_run_is_exported_in_one_command(copy, classify):
  command = [sys.executable, '-m', 'adversarial_augment.export', f'--workdir={copy}']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  has_onnx = importlib.util.find_spec('onnx') is not None
  names = ['classifier.safetensors', 'classifier_torch.py', 'torch_state_dict.safetensors']
  names += (
    ['classifier.onnx', 'classifier.jax_export', 'card.json'] if has_onnx else ['classifier.jax_export', 'card.json']
  )
  assert [line.partition(':')[0] for line in lines[: len(names)]] == [str(copy / 'export' / name) for name in names]
  assert lines[len(names) :] == ([] if has_onnx else [f'not written: classifier.onnx: {NO_ONNX}'])
  assert {path.name for path in files_of(copy / 'export')} == set(names)  # nothing temporary is left
  call = jax.export.deserialize(bytearray((copy / 'export' / 'classifier.jax_export').read_bytes())).call
  np.testing.assert_allclose(call(images(2)), classify(images(2)), rtol=0, atol=1e-6)


def test_jax_layout_gives_the_same_logits(exported, classify, monkeypatch):
  found = load_by_card(exported, 'classifier.safetensors', monkeypatch, images=images(5))
  np.testing.assert_allclose(found['logits'], classify(images(5)), rtol=0, atol=1e-6)


def test_safetensors_carry_the_card(exported):
  with safetensors.safe_open(str(exported / 'classifier.safetensors'), framework='numpy') as file:
    held = json.loads(file.metadata()['card'])
  card = card_of(exported)
  assert held == {name: card[name] for name in card if name not in ('files', 'not_written')}


def test_jax_export_runs_with_any_batch_on_all_platforms(exported, classify, monkeypatch):
  artefact = jax.export.deserialize(bytearray((exported / 'classifier.jax_export').read_bytes()))
  assert (artefact.platforms, artefact.nr_devices) == (('cpu', 'cuda', 'tpu'), 1)
  assert [str(dimension) for dimension in artefact.in_avals[0].shape] == ['b', 'h', 'w', '3']
  call = load_by_card(exported, 'classifier.jax_export', monkeypatch, images=images(1))['classify']
  for n in (1, 3, 7):
    found = call(images(n))
    assert (found.dtype, found.shape) == (jnp.float32, (n, 10))
    np.testing.assert_allclose(found, classify(images(n)), rtol=0, atol=1e-6)
  np.testing.assert_allclose(call(images(2, 25, 30)), classify(images(2, 25, 30)), rtol=0, atol=1e-6)


def test_jax_export_has_gradients(exported, classify):
  artefact = jax.export.deserialize(bytearray((exported / 'classifier.jax_export').read_bytes()))
  assert artefact.has_vjp()
  gradient = lambda function, x: jax.grad(lambda x: function(x)[:, 3].sum())(x)
  for shape in ((2, 16, 16), (1, 9, 14)):
    found, expected = (gradient(function, images(*shape)) for function in (artefact.call, classify.logits_fn))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert np.abs(expected).max() > 1e-4


def test_jax_export_needs_nothing_but_jax(exported, classify):
  code = card_of(exported)['files']['classifier.jax_export']['load']
  program = f'import numpy as np, sys\nimages = np.full((3, 32, 32, 3), 0.25, np.float32)\n{code}\n'
  program += "print(bool({'haiku', 'adversarial_augment'} & sys.modules.keys()), *np.asarray(logits).ravel())"
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True, cwd=exported)
  foreign, *values = done.stdout.split()
  assert foreign == 'False'
  expected = classify(np.full((3, 32, 32, 3), 0.25, np.float32))
  np.testing.assert_allclose(np.array(values, float).reshape(3, 10), expected, rtol=0, atol=1e-6)


def test_padding_of_xla_is_exported_for_even_sizes(tmp_path):
  classifier = random_classifier(10, width=4, padding='same')
  export.export(classifier, tmp_path, tmp_path / 'out', ['jax_export'])
  artefact = jax.export.deserialize(bytearray((tmp_path / 'out' / 'classifier.jax_export').read_bytes()))
  for shape in ((3, 32, 32), (1, 40, 24)):
    np.testing.assert_allclose(artefact.call(images(*shape)), classifier(images(*shape)), rtol=0, atol=1e-5)
  with pytest.raises(ValueError, match=r'8\*h'):
    artefact.call(images(1, 31, 32))
  assert 'multiples of 8' in card_of(tmp_path / 'out')['files']['classifier.jax_export']['load']


def test_jax_export_asks_for_flatbuffers(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install flatbuffers'):
    formats.serialize(lambda x: x)


def test_claims_for_robustbench_have_the_numbers_of_the_run(saved, tmp_path, capsys):
  export.main([f'--workdir={saved}', f'--output={tmp_path}', '--to=robustbench'])
  names = {'card.json', 'classifier_torch.py', 'torch_state_dict.safetensors', 'robustbench_corruptions.json'}
  assert {path.name for path in files_of(tmp_path)} == names
  claim = json.loads((tmp_path / 'robustbench_corruptions.json').read_text())
  assert (claim['clean_acc'], claim['reported'], claim['corruptions_acc']) == ('96.00', None, None)
  made = claim['made']['numbers']['clean_acc']
  assert (made['origin'], made['seed']) == ('embedded', 0)
  assert made['command'].startswith('python -m adversarial_augment.train')
  assert str(saved) not in json.dumps(claim)


# The card.


def test_card_says_what_it_is_and_what_was_measured(saved, exported, classify):
  card = card_of(exported)
  assert card['title'] == 'preact_resnet-10, width 4, trained on embedded without an adversary'
  assert card['checkpoint'] == {'step': 2, 'sha256': classify.checkpoint_sha256}
  assert card['architecture']['num_parameters'] == sum(leaf.size for leaf in jax.tree.leaves(classify.params))
  assert card['input']['normalisation']['mean'] == [0.4914, 0.4822, 0.4465]
  assert card['output'] == {'logits': ['n', 10], 'class_names': list('0123456789')}
  assert card['batch_norm']['epsilon'] == 1e-5
  assert card['training']['config'] == json.loads((saved / 'config.json').read_text())
  assert card['training']['data']['train']['origin'] == 'embedded'
  assert card['results'].keys() == {'clean'}  # what was measured of another checkpoint is left out
  assert card['results']['clean']['accuracy'] == 0.96
  assert 'calibration' not in card['results']['clean']
  assert card['versions']['jax'] == jax.__version__
  assert card['license'].startswith('not chosen')
  assert card['not_written'].keys() <= {'classifier.onnx'}
  for name, described in card['files'].items():
    data = (exported / name).read_bytes()
    assert (described['bytes'], described['sha256']) == (len(data), hashlib.sha256(data).hexdigest())
    assert described['layout'] == ('nhwc' if name in ('classifier.safetensors', 'classifier.jax_export') else 'nchw')
  assert card['files']['classifier_torch.py']['audit_model'] == 'classifier_torch.py:load'


def test_card_of_a_run_without_results_has_the_hashes_of_its_data(tmp_path):
  artifact.write_json(tmp_path / 'data.json', {'train': 'abc', 'image_shape': [48, 40, 3], 'class_names': []})
  export.export(random_classifier(10, width=4), tmp_path, tmp_path / 'out', ['safetensors'])
  card = card_of(tmp_path / 'out')
  assert card['training']['data'] == {'train': {'name': 'embedded', 'origin': 'unknown', 'sha256': 'abc'}}
  assert card['results'] == {}
  assert card['input']['size'] == 'that of the training images (48x40)'


@pytest.mark.parametrize(
  'name, old, new, words',
  [
    ('clean', '"accuracy": 0.96', '"accuracy": NaN', "clean.json' is damaged (NaN is not a finite number); remove it"),
    (
      'clean',
      '"accuracy": 0.96',
      '"accuracy": 3',
      "clean.json': accuracy=3 must be a number of at most 1.0; remove it",
    ),
    ('ada', '"nu"', '"mu"', "ada.json': provenance.config.attack.nu is missing; remove it, and evaluate again"),
    ('train', '"data"', '"date"', "train.json': data is missing; remove it, and run the training command again."),
  ],
)
def test_card_refuses_results_that_were_spoilt(copy, name, old, new, words):
  export.main([f'--workdir={copy}', '--to=safetensors'])
  before = (copy / 'export' / 'card.json').read_bytes()
  path = copy / 'results' / f'{name}.json'
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))
  with pytest.raises(UserError) as error:
    export.main([f'--workdir={copy}', '--to=safetensors', '--overwrite'])
  assert words in str(error.value)
  assert '\n' not in str(error.value)
  assert (copy / 'export' / 'card.json').read_bytes() == before


@pytest.mark.parametrize('text', ['{"train": ', '["abc"]', '{"train": 3}', '{"image_shape": [0, 1, 3]}'])
def test_card_refuses_damaged_hashes_of_the_data(tmp_path, text):
  (tmp_path / 'data.json').write_text(text)
  with pytest.raises(UserError, match="data.json'.*bring it back, or remove it"):
    export.export(random_classifier(10, width=4), tmp_path, tmp_path / 'out', ['safetensors'])


# The command line.


def test_earlier_export_is_replaced_only_when_asked(copy):
  export.main([f'--workdir={copy}', '--to=safetensors'])
  (copy / 'export' / 'torch_state_dict.safetensors').write_text('of another classifier')
  (copy / 'export' / 'notes.txt').write_text('mine')
  before = {path: path.read_bytes() for path in files_of(copy / 'export')}
  with pytest.raises(UserError, match='already holds card.json; replace it with --overwrite'):
    export.main([f'--workdir={copy}', '--to=safetensors'])
  assert {path: path.read_bytes() for path in files_of(copy / 'export')} == before
  export.main([f'--workdir={copy}', '--to=jax_export', '--overwrite'])
  assert {path.name for path in files_of(copy / 'export')} == {'card.json', 'classifier.jax_export', 'notes.txt'}


def test_damaged_checkpoint_is_named_and_the_one_before_exported(copy, capsys):
  flip(copy / 'checkpoints' / '2' / 'MANIFEST.json', copy)
  export.main([f'--workdir={copy}', '--to=safetensors'])
  assert 'checkpoint 2 rejected' in capsys.readouterr().err
  assert card_of(copy / 'export')['checkpoint']['step'] == 1


@pytest.mark.parametrize(
  'flags, code, words',
  [
    ([], 2, '--workdir'),
    (['--workdir={run}/none'], 2, 'it has no config.json'),
    (
      ['--workdir={run}', '--to=onxx'],
      2,
      "Unknown --to 'onxx'; known: jax_export, onnx, robustbench, safetensors, torch. Did you mean 'onnx'?",
    ),
    (['--workdir={run}', '--to='], 2, "Unknown --to ''"),
    (['--workdir={run}', '--formats=pickle'], 2, "Unknown --to 'pickle'"),
    (['--workdir={run}', '--format=torch'], 2, '--format=torch'),
    (['--workdir={run}', '--output={run}/config.json'], 2, 'is a file'),
    (['--workdir={run}', '--output={run}/config.json/x'], 2, "/config.json' is a file; name a folder in another one"),
    (['--workdir={run}/config.json/x'], 2, "No run in '"),
    (['--workdir={run}', '--output=/proc/none'], 5, 'Cannot'),
  ],
)
def test_bad_input_is_one_line(saved, capsys, flags, code, words):
  with pytest.raises(SystemExit) as end:
    cli.run(export.main, [flag.format(run=saved) for flag in flags])
  assert end.value.code == code
  said = capsys.readouterr()
  assert words in said.err
  assert len([line for line in said.err.splitlines() if not line.endswith('...')]) == 1  # beside what takes a while
  assert not said.out
  assert not (saved / 'export').exists()


def test_missing_package_is_one_line_before_anything_is_read(saved, monkeypatch):
  monkeypatch.setattr(inference, 'load_classifier', None)
  find = importlib.util.find_spec
  monkeypatch.setattr('importlib.util.find_spec', lambda name, *more: None if name == 'onnx' else find(name, *more))
  with pytest.raises(UserError) as error:
    export.main([f'--workdir={saved}', '--to=torch,onnx'])
  assert str(error.value) == NO_ONNX
  assert not (saved / 'export').exists()


def test_the_older_name_of_the_flag_is_still_taken(copy, capsys):
  export.main([f'--workdir={copy}', '--formats=safetensors'])
  assert {path.name for path in files_of(copy / 'export')} == {'card.json', 'classifier.safetensors'}


def test_help_names_the_formats(capsys):
  with pytest.raises(SystemExit) as end:
    export.main(['--help'])
  assert end.value.code == 0
  said = capsys.readouterr().out
  assert all(name in said for name in export.FORMATS)


def test_full_disk_leaves_no_half_written_file(saved, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(StorageError, match='No space left'):
    export.main([f'--workdir={saved}', f'--output={tmp_path}', '--to=safetensors'])
  assert not files_of(tmp_path)
