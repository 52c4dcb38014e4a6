"""`audit` on functions of JAX and exported classifiers: its results, what it refuses, and the function in Python."""

import csv
import json
from pathlib import Path
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import adversarial_augment
from adversarial_augment import audit as module
from adversarial_augment import config as configs
from adversarial_augment import datasets, evaluate, export, report, results, train
from adversarial_augment.cli import ways_out
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.evaluation import foreign

MODELS = """
import jax
import jax.numpy as jnp
import numpy as np

W = jnp.asarray(np.load(__file__.replace('models.py', 'weights.npy')))
A = jnp.arange(10)


def logits(images):
  return (images.reshape(len(images), -1) - 0.5) @ W


def make():
  return logits


class Pixels:
  std = (1 / 255,)
  class_names = tuple('0123456789')

  def __call__(self, images):
    return logits(images / 255)


def in_255(images):
  return logits(images / 255)


def flat(images):
  return images.reshape(len(images), -1) @ W


def probabilities(images):
  return jax.nn.softmax(logits(images))


def rotated(images):
  return jnp.roll(logits(images), 3, -1)


def constant(images):
  return jnp.tile(A * 1.0, (len(images), 1))


def first(images):
  return logits(jnp.moveaxis(images, 1, -1))


def large(images):
  assert images.shape[1] == 64, 'it takes 64 pixels'
  return logits(images[:, ::2, ::2])


def of_batch(images):
  found = logits(images)
  return found + jnp.tile(found[:1] / 50, (len(images), 1))


calls = []


def stochastic(images):
  calls.append(0)
  return logits(images) + np.random.default_rng(len(calls)).normal(size=(len(images), 10))


def few(images):
  return logits(images)[:, :5]


def nan(images):
  return logits(images) / 0


def two(images):
  return logits(images), images


def whole(images):
  return logits(images).sum(-1)


def counts(images):
  return logits(images).argsort(-1)


def broken(images):
  return images @ missing


def raises():
  raise RuntimeError('no weights here')


def needs_torch():
  raise ModuleNotFoundError("No module named 'torch.nn'", name='torch.nn')


def leaves():
  raise SystemExit(7)


class Transformed:
  init = apply = None


pair, number, bad_std = Transformed(), 3, Pixels()
bad_std.std = 'wide'
"""
FLAGS = ('--dataset=embedded', '--config.eval_images=64', '--config.batch_size=32')


def write_weights(folder: Path) -> None:
  """Writes weights.npy [3072, 10], a least-squares fit to the embedded images - 0.5."""
  images, labels = datasets.load('embedded', 'train', '').read(np.arange(2000))
  inputs = images.reshape(len(images), -1) / 255 - 0.5
  weights = inputs.T @ np.linalg.solve(inputs @ inputs.T + 30 * np.eye(len(images)), np.eye(10)[labels])
  np.save(folder / 'weights.npy', (20 * weights).astype(np.float32))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
  """A folder with models.py and its weights; its name has a space."""
  path = tmp_path_factory.mktemp('my models')
  write_weights(path)
  (path / 'models.py').write_text(MODELS)
  (path / 'broken.py').write_text('x = (\n')
  (path / 'net.pt').write_bytes(b'PK')
  (path / 'junk.jax_export').write_bytes(b'junk')
  (path / 'empty').mkdir()
  return path


def command(folder: Path, model: str, workdir: Path, *flags: str) -> int | None:
  return module.main([f'--model={folder / model}', f'--workdir={workdir}', *FLAGS, *flags])


def right(folder: Path, number: int = 64) -> np.ndarray:
  """Which of the first test images the plain model classifies correctly."""
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(number))
  logits = (images.reshape(number, -1) / 255 - 0.5) @ np.load(folder / 'weights.npy')
  return logits.argmax(-1) == labels


# ---- What it measures.


@pytest.fixture(scope='module')
def audited(folder, tmp_path_factory) -> Path:
  """The folder of an audit; not to be changed."""
  workdir = tmp_path_factory.mktemp('audits') / 'mine'
  assert command(folder, 'models.py:logits', workdir, '--evals=clean') == 0
  return workdir


def test_results_are_those_of_a_run_with_the_hashes_of_file_and_weights(folder, audited):
  found = results.load(audited, 'clean')
  assert found['num_correct'] == right(folder).sum() > 20
  about = found['provenance']['model']
  assert about == json.loads((audited / 'audit.json').read_text())
  assert about['model'] == 'models.py:logits'
  assert about['file_sha256'] == foreign._sha256_of(folder / 'models.py')
  assert len(about['weights_sha256']) == 64
  assert found['provenance']['doubts'] == []
  assert 'classifier' not in found['provenance']['config']
  assert 'my models' not in json.dumps(found)  # a path of this machine
  with (audited / 'results' / 'clean.csv').open() as file:
    assert [line['num_correct'] for line in csv.DictReader(file)] == [str(found['num_correct'])]


def test_results_are_shown_again_and_another_model_is_refused(folder, audited, tmp_path, capsys):
  workdir = Path(shutil.copytree(audited, tmp_path / 'w'))
  before = (workdir / 'results' / 'clean.json').read_bytes()
  assert command(folder, 'models.py:logits', workdir, '--evals=clean') == 0
  assert (workdir / 'results' / 'clean.json').read_bytes() == before
  with pytest.raises(ArtifactError, match='other images, settings or versions'):
    command(folder, 'models.py:logits', workdir, '--evals=clean', '--config.eval_images=60')
  other = Path(shutil.copytree(folder, tmp_path / 'other'))
  np.save(other / 'weights.npy', 2 * np.load(folder / 'weights.npy'))
  with pytest.raises(UserError, match='another model .weights_sha256') as refused:
    command(other, 'models.py:logits', workdir, '--evals=clean')
  assert refused.value.remedy == 'workdir'
  with pytest.raises(UserError, match='another model .*mean'):
    command(folder, 'models.py:logits', workdir, '--evals=clean', '--mean=0.01')
  with pytest.raises(UserError, match='only adversarial_augment.audit'):
    evaluate.main([f'--workdir={workdir}'])


@pytest.mark.parametrize(
  'model, flags, words',
  [('make', [], 'model: .models.py:logits. -> .models.py:make.'), ('logits', ['--layout=nchw'], 'layout: .nhwc. ->')],
)
def test_another_model_is_refused_before_it_is_loaded(folder, audited, monkeypatch, model, flags, words):
  monkeypatch.setattr(foreign, 'load', lambda *_: pytest.fail('the model was loaded'))
  with pytest.raises(UserError, match=words) as refused:
    command(folder, f'models.py:{model}', audited, '--evals=clean', *flags)
  assert refused.value.remedy == 'workdir'


def test_a_distance_that_is_not_there_is_refused_before_any_evaluation(folder, tmp_path):
  flags = ['--attack=perceptual', '--distance=alexnet', '--distance_from=/nowhere', '--epsilon=0.5']
  with pytest.raises(UserError, match="--distance_from='/nowhere' does not exist"):
    command(folder, 'models.py:logits', tmp_path / 'w', '--evals=clean', *flags)
  assert not (tmp_path / 'w' / 'results').exists()


def test_a_changed_file_is_refused_before_it_runs(folder, audited, tmp_path, monkeypatch):
  monkeypatch.setattr(foreign, 'load', lambda *_: pytest.fail('the model was loaded'))
  changed = Path(shutil.copytree(folder, tmp_path / 'changed'))
  (changed / 'models.py').write_text(MODELS + '# changed')
  with pytest.raises(UserError, match='file_sha256'):
    command(changed, 'models.py:logits', audited, '--evals=clean')


def test_what_a_file_raises_has_its_line_and_the_way_to_its_traceback(folder):
  line = MODELS.splitlines().index("  raise RuntimeError('no weights here')") + 1
  with pytest.raises(UserError, match=f'models.py:{line}: RuntimeError') as refused:
    foreign.load(f'{folder}/models.py:raises', {}, (32, 32, 3))
  assert ways_out.describe(refused.value).endswith('no weights here; mend it, or see its traceback with --debug.')


def test_a_function_of_pytorch_is_told_to_be_a_module(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', SimpleNamespace(nn=SimpleNamespace(Module=type('Module', (), {}))))
  with pytest.raises(UserError, match=r'and make a function of PyTorch a torch\.nn\.Module'):
    adversarial_augment.audit(lambda images: images.softmax(-1), np.zeros((4, 32, 32, 3), np.uint8), np.arange(4))


def test_the_bridge_without_pytorch_says_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  monkeypatch.delitem(sys.modules, 'adversarial_augment.pytorch', raising=False)  # if another test has imported it
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'adversarial-augment\[torch\]'"):
    runpy.run_module('adversarial_augment.pytorch')


def test_another_order_is_not_to_be_named_where_the_labels_have_no_names(folder):
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(200))
  weights = np.load(folder / 'weights.npy')
  rotated = lambda images: jnp.roll((images.reshape(len(images), -1) - 0.5) @ weights, 3, -1)
  with pytest.raises(UserError, match='arrays has no names to match them by; put the outputs in the order'):
    adversarial_augment.audit(rotated, images, labels)


def test_a_report_has_it_beside_others(audited, tmp_path):
  workdir = Path(shutil.copytree(audited, tmp_path / 'other'))
  page = report.report([audited, workdir], tmp_path / 'page.html').read_text()
  for text in ('models.py:logits (a function of JAX)', 'elsewhere, not known', 'repeat its audit with --evals='):
    assert text in page
  assert 'preact_resnet' not in page


def test_the_function_gives_the_numbers_of_the_command(folder, audited):
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(400))
  weights = np.load(folder / 'weights.npy')
  logits_fn = lambda images: (images.reshape(len(images), -1) - 0.5) @ weights
  options = {'batch_size': 32, 'eval_images': 64}
  found = adversarial_augment.audit(logits_fn, images, labels, config=options)
  again = adversarial_augment.audit(logits_fn, images / np.float32(255), labels, evals='clean', config=options)
  assert found['clean'].accuracy == again['clean'].accuracy == results.load(audited, 'clean')['accuracy']
  assert found['clean'].interval == tuple(results.load(audited, 'clean')['interval'])


@pytest.mark.slow
def test_attacks_and_evaluations_go_together(folder, tmp_path):
  flags = (
    '--evals=clean,cifar10_c,cifar10_c_extra,ada',
    '--config.eval_images=8',
    '--config.batch_size=8',
    '--config.attack.num_steps=1',
  )
  net = ('--config.corruption_net.blocks=4', '--config.corruption_net.features=16', '--config.corruption_net.scale=1')
  ball = ('--attack=pgd', '--norm=linf', '--epsilon=1/255', '--num_examples=16', '--allow_suspect')
  assert command(folder, 'models.py:Pixels', tmp_path / 'w', *flags, *net, *ball) == 0
  attacked = results.load(tmp_path / 'w', 'robustness_pgd_linf_1-255')
  assert attacked['num_correct'] == right(folder, 16).sum()
  assert results.load(tmp_path / 'w', 'ada')['num_images'] == 8
  with (tmp_path / 'w' / 'results' / 'cifar10_c.csv').open() as file:
    assert len(list(csv.DictReader(file))) == 75
  assert attacked['checkpoint_sha256'] == results.load(tmp_path / 'w', 'clean')['checkpoint_sha256']


@pytest.mark.parametrize('model, flags', [('make', ()), ('in_255', ['--std=1/255']), ('first', ['--layout=nchw'])])
def test_flags_say_what_a_model_takes(folder, tmp_path, model, flags):
  assert command(folder, f'models.py:{model}', tmp_path / 'w', *flags) == 0
  assert results.load(tmp_path / 'w', 'clean')['num_correct'] == right(folder).sum()


def test_the_order_of_the_classes_is_matched_by_name(folder, tmp_path):
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(400))
  weights = np.load(folder / 'weights.npy')

  class Rotated:
    class_names = tuple('7890123456')

    def __call__(self, images):
      return jnp.roll((images.reshape(len(images), -1) - 0.5) @ weights, 3, -1)

  found = adversarial_augment.audit(Rotated(), images, labels, class_names=tuple('0123456789'))
  assert found['clean'].num_correct == right(folder, 400).sum()


# ---- What it refuses.


def test_names_of_classes_must_be_as_many_as_the_outputs(folder):
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(100))
  weights = np.load(folder / 'weights.npy')

  class Named:
    class_names = ('a', 'b')

    def __call__(self, images):
      return (images.reshape(len(images), -1) - 0.5) @ weights

  with pytest.raises(UserError, match='has 10 outputs, but --classes, or its attribute class_names, names 2 classes'):
    adversarial_augment.audit(Named(), images, labels)  # without names of the labels
  with pytest.raises(UserError, match='class_names has 2 names, but <lambda> has 10 outputs'):
    adversarial_augment.audit(lambda images: Named()(images), images, labels, class_names=('a', 'b'))
  with pytest.raises(UserError, match='evals=3 must be names'):
    adversarial_augment.audit(Named(), images, labels, evals=3)


def test_nothing_is_said_of_a_folder_that_is_not_kept_and_records_say_which_model(folder, capsys):
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(100))
  weights = np.load(folder / 'weights.npy')
  net = lambda images: (images.reshape(len(images), -1) - 0.5) @ weights
  found = adversarial_augment.audit(net, images, labels)
  assert '/' not in capsys.readouterr().out.replace(' of ', '')
  model = found['clean'].provenance.model
  assert model['kind'] == 'a function of JAX'
  assert len(model['weights_sha256']) == 64


WRONG = [  # flags after a right --model and --workdir, and words of the line
  (['--model='], "there is no ''"),
  (['--model=nowhere.py:net'], "there is no 'nowhere.py'"),
  (['--model={}/models.py'], 'must be FILE.py:NAME'),
  (['--model={}/models.py:'], 'such as W, A, logits, make'),
  (['--model={}/models.py:a.b'], 'must be FILE.py:NAME'),
  (['--model={}/net.pt'], 'is a file of PyTorch, which does not say how to run it'),
  (['--workdir='], '--workdir is empty'),
  (['--workdir={}/models.py'], 'is a file; name a folder'),
  (['--mean=a'], "--mean='a' must be one number or three"),
  (['--mean=0.1,0.2'], 'one number or three'),
  (['--std=0'], "--std='0' must be above 0"),
  (['--std=nan'], 'one number or three'),
  (['--layout=hwc'], 'must be nchw or nhwc'),
  (['--size=0'], 'must be pixels a side'),
  (['--size=3x3x3'], 'must be pixels a side'),
  (['--classes=a'], 'at least two names, each once'),
  (['--classes=a,b,a'], 'at least two names, each once'),
  (['--evals='], '--evals names no evaluation'),
  (['--evals=claen'], "Did you mean 'clean'"),
  (['--evals=cifar10_1'], 'cifar10_1 has the classes of cifar10'),
  (['--dataset=nowhere'], "No data set 'nowhere'"),
  (['--batch_size=0'], 'config.batch_size=0 must be'),
  (['--norm=linf'], '--norm needs --attack'),
  (['--attack=autoatack', '--norm=linf', '--epsilon=1/255'], "Did you mean 'autoattack'"),
  (['--attack=pgd', '--norm=linf', '--epsilon=8'], 'did you mean 8/255'),
  (['--attack=pgd', '--norm=linf', '--epsilon=1/255', '--num_examples=9999999'], 'must be at most'),
  (['--config.seed=1'], 'config.seed has no effect on an audit'),
  (['--config.classifier.width=3'], 'has no effect on an audit'),
  (['--config.attack.name=lp'], 'has no effect on an audit'),
  (['--config.nu=1'], "Did you mean 'attack.nu'"),
  (['--modle=x'], '--modle'),
]


@pytest.mark.parametrize('flags, words', WRONG)
def test_wrong_flags_are_one_line_before_a_model_runs(folder, tmp_path, monkeypatch, flags, words):
  monkeypatch.setattr(foreign, '_execute', lambda *_: pytest.fail('the file was run'))
  with pytest.raises(UserError) as refused:
    command(folder, 'models.py:logits', tmp_path / 'w', *(flag.replace('{}', str(folder)) for flag in flags))
  assert words in str(refused.value)
  assert len(str(refused.value).splitlines()) == 1
  assert not (tmp_path / 'w').exists()


REFUSED = [  # model, flags, words of the line
  ('broken.py:net', [], 'broken.py:1: SyntaxError'),
  ('models.py:logit', [], "there is no 'logit' in it. Did you mean 'logits'?"),
  ('models.py:raises', [], 'RuntimeError: no weights here'),
  ('models.py:needs_torch', [], "pip install 'adversarial-augment[torch]', or run Python where it is"),
  ('models.py:leaves', [], 'SystemExit: 7'),
  ('models.py:pair', [], 'name a function such as lambda images: model.apply(variables, images)'),
  ('models.py:number', [], 'is of type int; it must be a torch.nn.Module or a function of JAX'),
  ('models.py:bad_std', [], "the attribute std='wide' must be one number or three"),
  ('models.py:broken', [], "NameError: name 'missing' is not defined (models.py:"),
  ('models.py:two', [], 'gives a tuple for 50 images; it must give logits'),
  ('models.py:whole', [], 'float32 of shape [50] for 50 images'),
  ('models.py:counts', [], 'int32 of shape [50, 10]'),
  ('models.py:few', [], 'has 5 outputs, but embedded has 10 classes'),
  ('models.py:nan', [], 'gives NaN or infinite logits for 200 of 200 images'),
  ('models.py:large', [], 'AssertionError: it takes 64 pixels (models.py:'),
  ('models.py:large', [], 'it runs with --size=64'),
  ('models.py:first', [], '% with --layout=nchw; give that'),
  ('models.py:in_255', [], 'with --std=1/255 (images in 0..255); give that'),
  ('models.py:rotated', [], 'if its classes had another order; name them in its order with --classes'),
  ('models.py:logits', ['--classes=0,1,2,3,4,5,6,7,8,nine'], 'have different classes'),
  ('models.py:constant', [], 'which is not above guessing; check --mean'),
  ('models.py:probabilities', [], 'gives probabilities, not logits; return what it has before its softmax'),
  ('models.py:of_batch', [], 'logits of an image change with the others of its batch'),
  ('models.py:stochastic', [], 'the same images get other logits at the next call'),
  ('junk.jax_export', [], 'is no artefact of jax.export'),
  ('empty', [], 'holds no classifier.safetensors or classifier.jax_export'),
]


@pytest.mark.parametrize('model, flags, words', REFUSED)
def test_wrong_models_are_one_line_before_anything_long(folder, tmp_path, model, flags, words):
  with pytest.raises(UserError) as refused:
    command(folder, model, tmp_path / 'w', *flags)
  assert words in str(refused.value)
  assert len(str(refused.value).splitlines()) == 1
  assert not (tmp_path / 'w' / 'results').exists()


def test_a_doubtful_model_can_be_audited_and_is_marked(folder, tmp_path, capsys):
  assert command(folder, 'models.py:constant', tmp_path / 'w', '--allow_suspect') == 0
  assert 'warning: models.py:constant classifies' in capsys.readouterr().err
  assert results.load(tmp_path / 'w', 'clean')['provenance']['doubts'] == ['chance']
  assert 'DOUBTFUL: chance' in report.report(tmp_path / 'w', tmp_path / 'page.html').read_text()


@pytest.mark.parametrize(
  'change, words',
  [
    ({'evals': 'cifar10_1'}, 'cifar10_1 has images of its own'),
    ({'images': np.zeros((4, 32, 32, 1), np.uint8)}, 'they must be uint8 or floats [n, h, w, 3]'),
    ({'images': np.full((4, 32, 32, 3), 2.0)}, 'they must lie in [0, 1]'),
    ({'labels': np.array([0, 1, 2, 10])}, 'labels hold 10; with 10 logits'),
    ({'labels': np.zeros(4)}, 'they must be integers [4]'),
    ({'logits_fn': 3}, 'is of type int'),
    ({'std': 0}, 'std=0 must be above 0'),
    ({'attack': 'pgd'}, 'needs --norm'),
    ({'config': {'seed': 1}}, 'config.seed has no effect'),
  ],
)
def test_wrong_arguments_of_the_function(change, words):
  right = {'logits_fn': lambda x: x.mean((1, 2)) @ jnp.ones((3, 10)), 'images': np.zeros((4, 32, 32, 3), np.uint8)}
  with pytest.raises(UserError) as refused:
    adversarial_augment.audit(**{**right, 'labels': np.arange(4), **change})
  assert words in str(refused.value)


def test_the_module_can_be_called_whichever_way_it_is_imported():
  for way in (
    'import adversarial_augment',
    'import adversarial_augment.audit',
    'from adversarial_augment import audit; import adversarial_augment',
  ):
    code = f'import sys; {way}; assert "jax" not in sys.modules; print(callable(adversarial_augment.audit))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'True\n'
  assert adversarial_augment.audit is module
  with pytest.raises(AttributeError, match="no attribute 'audits'"):
    _ = adversarial_augment.audits


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> Path:
  """A run of a few steps with its export; not to be changed."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  config = configs.override(configs.load('configs/nominal.py:smoke'), {'evals': 'clean', 'eval_images': '64'})
  train.train(config, workdir, {split: datasets.load('embedded', split, '') for split in ('train', 'test')})
  export.main([f'--workdir={workdir}', '--formats=safetensors,jax_export'])
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('file', ['', '/classifier.safetensors', '/classifier.jax_export'])
def test_an_export_has_the_accuracy_of_its_run(exported, tmp_path, file):
  pytest.importorskip('flatbuffers')
  assert command(exported, f'export{file}', tmp_path / 'w', '--allow_suspect') == 0
  found, closing = results.load(tmp_path / 'w', 'clean'), results.load(exported, 'clean')
  assert found['num_correct'] == closing['num_correct']
  with pytest.raises(UserError, match='holds a run; an audit needs a folder of its own'):
    command(exported, 'export', exported)
