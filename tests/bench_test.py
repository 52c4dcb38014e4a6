"""The evaluations of a run: equal counts however they are split up, results with their origin, and what is reused."""

import csv
import functools
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import config as configs
from adversarial_augment import corruptions, datasets, evaluate, metrics, results, train
from adversarial_augment.datasets import cifar10_c
from adversarial_augment.errors import ArtifactError, UserError
from adversarial_augment.evaluation import corrupted, reuse, unfinished
from adversarial_augment.evaluation.accuracy import accuracy
from adversarial_augment.evaluation.bench import Bench, Images, open_images
from adversarial_augment.evaluation.corrupted import in_memory
from adversarial_augment.run import summary
from adversarial_augment.storage import outcomes
from adversarial_augment.types import TrainState
from tests import linear_attack, tiny, trainer

pytestmark = pytest.mark.usefixtures('quick_compile')

NUM = 12
EVALS = 'clean,ada,cifar10_c,cifar10_c_extra'
NAMES = ('gaussian_noise', 'fog', 'jpeg_compression')
ignore = lambda *_: None


def some_images():
  return datasets.load('embedded', 'test', '')._replace(num_examples=NUM)


def apply(params, model_state, key, images, *, is_training):
  assert not is_training
  return (images.reshape(images.shape[0], 3072) - 0.5) @ params['w'], model_state


LINEAR = SimpleNamespace(init=None, apply=apply)
WEIGHTS = np.random.default_rng(1).normal(size=(3072, 10)).astype(np.float32)
STATE = TrainState(jnp.zeros((), jnp.int32), {'w': WEIGHTS}, {}, ())


def make_bench(images=None, opened=None, num_devices: int = 1, **overrides: str) -> Bench:
  """A bench for all evaluations that need no files, or with what they have `opened`."""
  config = configs.override(
    configs.base_config(), {'evals': EVALS} | {k.replace('__', '.'): v for k, v in overrides.items()}
  )
  images = some_images() if images is None else images
  found = open_images(config, images, prepared=False) if opened is None else Images(images, opened)
  return Bench(config, LINEAR, tiny.make_mesh(num_devices), found, None, {})


@functools.cache
def expected() -> dict[str, list[str]]:
  """By NumPy, from the corrupted bytes."""
  images, labels = some_images().read(np.arange(NUM))
  found: dict[str, list[str]] = {}
  for name in NAMES:
    for severity in range(1, 6):
      x = corruptions.corrupt(images, name, severity).reshape(NUM, 3072) / 255 - 0.5
      found.setdefault(name, []).append(outcomes.pack((x @ WEIGHTS).argmax(-1) == labels))
  return found


def from_files(folder: Path, test) -> cifar10_c.CorruptionSet:
  images, labels = test.read(np.arange(NUM))
  np.save(folder / 'labels.npy', np.tile(labels, 5))
  for name in NAMES:
    np.save(folder / f'{name}.npy', np.concatenate([corruptions.corrupt(images, name, s) for s in range(1, 6)]))
  return cifar10_c.open_set(folder, NAMES, test)


@pytest.mark.parametrize('prepared', [False, True])
@pytest.mark.parametrize('num_devices, batch_size', [(1, 1), (1, 7), (2, 7), (8, 1), (8, 250)])
def test_outcomes_depend_on_neither_batches_nor_devices_nor_files(num_devices, batch_size, prepared, tmp_path):
  test, measure = some_images(), accuracy(LINEAR, tiny.make_mesh(num_devices), batch_size)
  forms = from_files(tmp_path, test) if prepared else in_memory(test, NAMES)
  found = corrupted.errors(
    lambda dataset: measure(STATE, dataset, ignore), test, forms, NAMES, rows=np.arange(NUM), known={}, keep=ignore
  )['correct']
  assert found == expected()
  assert len({outcomes.count(cell) for row in found.values() for cell in row}) > 1


def test_a_set_of_an_older_version_is_warned_of(capsys):
  warned = in_memory(some_images(), NAMES)._replace(warning=ArtifactError('of an older version', ''))
  make_bench(opened={'cifar10_c': warned})
  assert capsys.readouterr().err.startswith('warning: of an older version')


# Results of a run.


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp('run') / 'w'
  weights = linear_attack.smallest_edsr(tmp_path_factory.mktemp('phi'))
  flags = {'evals': EVALS, 'eval_images': str(NUM), 'num_steps': '1', 'corruption_net.weights': weights}
  flags |= {'corruption_net.blocks': '1', 'corruption_net.features': '4'}
  config = configs.override(configs.load('configs/nominal.py:smoke'), flags)
  splits = {split: datasets.load('embedded', split, '') for split in ('train', 'test')}
  train.train(config, workdir, splits)
  return workdir


def result(workdir: Path, name: str) -> dict:
  return json.loads((workdir / 'results' / f'{name}.json').read_text())


def test_every_evaluation_has_its_file_with_its_origin(run):
  closing, test = result(run, 'train'), datasets.load('embedded', 'test', '')
  assert set(closing['evals']) == set(EVALS.split(','))
  for name in EVALS.split(','):
    found = result(run, name)
    assert (found['eval'], found['split'], found['step'], found['seed']) == (name, 'test', 1, 0)
    assert found['checkpoint_sha256'] == closing['state_sha256']
    assert found['num_images'] == NUM
    assert found['seconds'] > 0
    low, high = found['interval']
    assert 0 <= low < high <= 1
    about = found['provenance']
    assert about['data']['test']['sha256'] == test.provenance['sha256']
    assert about['config']['eval_images'] == NUM
    assert {'versions', 'devices', 'command', 'git', 'config_sha256', 'weights', 'seed'} <= about.keys()
    assert closing['evals'][name]['interval'] == found['interval']
    assert 'provenance' not in closing['evals'][name]
  assert result(run, 'clean')['origin'] == result(run, 'ada')['origin'] == 'embedded'
  assert sum(result(run, 'ada')['ssim_histogram']['count']) == NUM
  assert sum(result(run, 'clean')['calibration']['count']) == NUM
  assert (run / 'report.html').stat().st_size > 10_000


@pytest.mark.parametrize('name, names', [('cifar10_c', metrics.NAMES), ('cifar10_c_extra', metrics.EXTRA_NAMES)])
def test_corruption_errors_come_from_the_counts(run, name, names):
  found = results.load(run, name)  # which checks errors and means against the counts
  assert found['origin'] == 'generated, in memory'
  assert {'seed': 0, 'frost': found['frost']}.items() <= found['provenance']['corruptions'].items()
  table = np.array([found['num_correct'][corruption] for corruption in names])
  assert table.shape == (len(names), 5)
  expected_interval = metrics.binomial_interval(NUM * (1 - table / NUM).mean(), NUM)  # as if of NUM images
  assert found['interval'] == pytest.approx(expected_interval)
  with open(run / 'results' / f'{name}.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [(row['corruption'], int(row['severity'])) for row in rows] == [(c, s) for c in names for s in range(1, 6)]
  assert [int(row['num_correct']) for row in rows] == table.ravel().tolist()
  about = {(row['num_images'], row['data'], row['origin'], row['step'], row['checkpoint_sha256']) for row in rows}
  assert about == {(str(NUM), 'embedded', 'generated, in memory', '1', found['checkpoint_sha256'])}


def conditions(name='cifar10_c', images=None, opened=None, **overrides) -> str:
  return json.dumps(make_bench(images, opened, **overrides).conditions(name), sort_keys=True)


def test_whatever_determines_a_result_is_among_its_conditions():
  test = some_images()
  other = test._replace(provenance=test.provenance | {'sha256': 'f' * 64})
  changed = [{}, {'images': other}, {'precision': 'bfloat16'}, {'eval_images': '5'}, {'corrupted_images': '4'}]
  assert len({conditions(**change) for change in changed}) == len(changed)
  assert conditions() == conditions(attack__nu='0.5', seed='3')
  changed = [{}, {'attack__nu': '0.5'}, {'attack__moved': 'tail'}, {'corruption_net__perturb_mean_shift': 'true'}]
  assert len({conditions('ada', **change) for change in changed}) == len(changed)


def test_where_prepared_images_come_from_is_among_the_conditions():
  test = some_images()
  made = {'seed': 0, 'frost': 'procedural', 'made_with': {'jax': '1'}, 'sha256': 'a'}

  def prepared(name, clean=test, origin='generated', archive='c', **changes) -> str:
    forms = cifar10_c.CorruptionSet(metrics.NAMES, origin, made | changes, ignore)
    newer = {'v6': test._replace(provenance={'archive_sha256': archive}), 'v4': test}
    return conditions(name, clean, {'clean': None, 'cifar10_c': forms, 'cifar10_1': newer})

  with_archive = lambda sha256: test._replace(provenance=test.provenance | {'archive_sha256': sha256})
  assert prepared('clean', clean=with_archive(None)) == prepared('clean')  # older results have no such field
  others = (
    {}, {'seed': 1}, {'frost': 'photographs'}, {'made_with': {'jax': '2'}}, {'sha256': 'b'}, {'origin': 'official'},
    {'clean': with_archive('d')},
  )  # fmt: skip
  assert len({prepared('cifar10_c', **other) for other in others}) == len(others)
  assert len({prepared('clean', **other) for other in others}) == 2  # the last one has other clean images
  assert prepared('cifar10_1') != prepared('cifar10_1', archive='e')


def test_a_stop_within_an_evaluation_loses_no_count(tmp_path, run, monkeypatch):
  monkeypatch.setattr(unfinished, '_SECONDS', 0)
  monkeypatch.setattr(unfinished, '_SHARE', 1e9)
  about = {name: result(run, 'cifar10_c')[name] for name in ('step', 'checkpoint_sha256', 'provenance')}

  def find(folder: str, most: int = 1000, **overrides: str) -> tuple[dict, int]:
    asked = []

    def poll() -> None:
      if len(asked) == most:
        raise KeyboardInterrupt
      asked.append(1)

    (tmp_path / folder).mkdir(exist_ok=True)
    bench = make_bench(batch_size='6', **overrides)
    return reuse.measure_once(bench, 'cifar10_c', STATE, tmp_path / folder, about, poll)['num_correct'], len(asked)

  counts, batches = find('straight')
  assert batches == 75 * NUM // 6
  partial = tmp_path / 'stopped' / 'results' / 'cifar10_c.partial'
  for cells in (3, 12):  # within the first corruption, and after the third
    with pytest.raises(KeyboardInterrupt):
      find('stopped', 2 * cells - 1 + (cells > 3))
    assert partial.exists()
  shutil.copytree(tmp_path / 'stopped', tmp_path / 'other')
  assert find('other', eval_images='6')[1] == 75  # of other conditions
  found, left = find('stopped')
  assert found == counts
  assert left == batches - 2 * sum((2, 12))
  assert sorted(path.name for path in partial.parent.iterdir()) == ['cifar10_c.csv', 'cifar10_c.json']


def test_of_cifar10_1_version_6_is_the_main_one():
  test = some_images()
  four, six = test._replace(num_examples=5), test._replace(num_examples=9)
  bench = make_bench(test, {'cifar10_1': {'v6': six, 'v4': four}}, batch_size='4')
  found = bench.measure('cifar10_1', STATE, ignore)
  assert (found['v4']['num_images'], found['v6']['num_images'], found['num_images']) == (5, 9, 9)
  assert found['num_correct'] == found['v6']['num_correct']


def command(run: Path, *flags: str) -> None:
  evaluate.main([f'--workdir={run}', *flags])


def test_what_is_known_is_shown_again_in_the_papers_order(run, monkeypatch, capsys):
  monkeypatch.setattr(Bench, 'measure', lambda *_: pytest.fail('it measured'))
  before = {path: path.read_bytes() for path in (run / 'results').iterdir()}
  command(run, '--config.batch_size=7')
  assert {path: path.read_bytes() for path in (run / 'results').iterdir()} == before
  out = capsys.readouterr().out
  lines = out.splitlines()
  assert [line.split()[0] for line in lines if line.split()[0] in metrics.ALL_NAMES] == list(metrics.ALL_NAMES)
  assert f'mCE {100 * result(run, "cifar10_c")["mce"]:.2f} %' in out
  for changed in ('clean', 'ada --config.attack.nu=0.02', 'cifar10_c --config.eval_images=5'):
    with pytest.raises(pytest.fail.Exception, match='it measured'):
      command(run, *f'--evals={changed} --overwrite'.split())


def test_other_images_are_measured_and_replace_the_result(run, tmp_path):
  command(run, '--evals=clean', '--config.eval_images=40', '--config.batch_size=7', '--overwrite')
  found = result(run, 'clean')
  assert found['num_images'] == 40
  assert found['provenance']['command'].startswith('python -m adversarial_augment.evaluate')
  assert result(run, 'train')['evals']['clean']['num_images'] == NUM  # the closing table stays


@pytest.mark.parametrize('flags, message', [
  ('--evals=clan', "Did you mean 'clean'"),
  ('--evals=cifar10_1', 'cifar10_1 has the classes of cifar10; leave it out'),
  ('--evals=', 'names no evaluation'),
  ('--config.seed=5', 'config.seed says how the classifier was trained'),
  ('--config.classifier.padding=same', 'config.classifier.padding says how'),
  ('--evals=clean --config.eval_images=3', "clean.json' has a result of this checkpoint for other"),
  ('--config.dataset=cifar', "No data set 'cifar'"),
  ('--config.eval_images=0', 'config.eval_images'),
  ('--config.frost_dir=/nowhere/at/all --evals=cifar10_c', '/nowhere/at/all'),
  ('--config.nonsense=1', 'nonsense'),
  ('--process_id=0', 'go together'),
])  # fmt: skip
def test_bad_flags_are_refused(run, flags, message, tmp_path):
  with pytest.raises(UserError, match=message) as caught:
    command(run, f'--config.data_dir={tmp_path}', *flags.split())
  assert '\n' not in str(caught.value)


def test_a_test_set_that_has_changed_is_refused(run, tmp_path):
  copied = Path(shutil.copytree(run, tmp_path / 'w'))
  (copied / 'data.json').write_text(json.dumps({'test': 'f' * 64}))
  with pytest.raises(UserError, match="is not the one of the run .*data.json'.*trained on"):
    command(copied, '--evals=clean')


def test_images_too_small_for_corruptions_are_refused():
  with pytest.raises(UserError, match='28x28, but the evaluation cifar10_c needs at least 32'):
    make_bench(some_images()._replace(image_shape=(28, 28, 3)))


# A part of the test images.


def test_a_subset_is_evenly_spaced_and_says_so():
  test = some_images()
  by_class = test._replace(read=lambda index: test.read(np.argsort(test.read(np.arange(NUM)).labels)[index]))

  def measure(images, name='cifar10_c', **overrides):
    bench = make_bench(images, num_devices=2, batch_size='5', **overrides)
    return bench.measure(name, STATE, ignore), json.dumps(bench.conditions(name), sort_keys=True)

  for images in (test, by_class):
    found, _ = measure(images, corrupted_images='4')
    assert (found['num_images'], found['subset_of']) == (4, NUM)
    clean, labels = images.read(np.arange(NUM))
    for name in ('fog', 'jpeg_compression'):
      for severity, right in enumerate(found['num_correct'][name], 1):
        x = corruptions.corrupt(clean, name, severity)[::3].reshape(4, 3072) / 255 - 0.5
        assert right == ((x @ WEIGHTS).argmax(-1) == labels[::3]).sum()
  assert '4 images a cell (of 12, evenly spaced), generated' in '\n'.join(summary.evaluation('cifar10_c', found, {}))

  first, all_of_first = measure(test, eval_images='4'), measure(test, eval_images='4', corrupted_images='9')
  assert 'subset_of' not in first[0]
  assert first == (all_of_first[0] | {'seconds': first[0]['seconds']}, all_of_first[1])
  assert first[1] != measure(test, corrupted_images='4')[1]  # as many images, and others
  assert measure(test, 'clean', corrupted_images='4')[0]['num_images'] == NUM
  assert measure(test, 'clean')[1] == measure(test, 'clean', corrupted_images='4')[1]


@pytest.mark.parametrize('path', ['ada_edsr', 'nominal', 'linf_adversarial', 'augmix'])
def test_every_quickstart_corrupts_the_same_part_and_a_flag_takes_all(path):
  config = configs.load(f'configs/{path}.py:quickstart')
  assert config.corrupted_images == 400
  assert config.eval_images is None
  assert configs.override(config, {'corrupted_images': 'none'}).corrupted_images is None
  assert configs.load(f'configs/{path}.py').corrupted_images is None


@pytest.mark.slow
def test_two_processes_find_the_same(run):
  """And agree on what an earlier start has found, which the file of process 0 tells."""
  flags = [sys.executable, '-m', 'adversarial_augment.evaluate', f'--workdir={run}', '--evals=clean,cifar10_c']
  flags += ['--config.eval_images=31', '--config.batch_size=6', '--overwrite']
  found = []
  for count in (1, 2):
    several = [f'--coordinator_address=localhost:{trainer.free_port()}', '--num_processes=2'] if count == 2 else []
    own = [[*several, f'--process_id={i}'] if several else [] for i in range(count)]
    env = os.environ | {'PYTHONPATH': str(trainer.ROOT)}
    started = [subprocess.Popen([*flags, *more], env=env) for more in own]
    assert [process.wait(600) for process in started] == [0] * count
    found.append([result(run, name)['correct'] for name in ('clean', 'cifar10_c')])
    known = {'fog': found[0][1]['fog'], 'snow': found[0][1]['snow'][:2]}
    conditions = result(run, 'cifar10_c')['conditions_sha256']
    (run / 'results' / 'cifar10_c.partial').write_text(json.dumps({'conditions_sha256': conditions, 'correct': known}))
    assert result(run, 'clean')['provenance']['devices']['processes'] == count
  assert found[0] == found[1]
