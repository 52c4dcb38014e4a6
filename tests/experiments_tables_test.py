"""The experiments of Tables 1 and 2: what they start, what they read of it, and the tables that they write."""

import csv
import json
import math
from pathlib import Path
import re
import subprocess
import sys

import pytest

from adversarial_augment import config as configs
from adversarial_augment import metrics, report
from adversarial_augment.config import command_line
from adversarial_augment.errors import Stopped, StorageError, UserError
from experiments import runs, table1_corruptions, table1_drawing, table2_robustness, table3_perceptual, unseen_attacks
from tests import reporting_fixtures as fixtures

STEPS, BATCH = 7, 20


def write_run(
  workdir, spec='configs/augmix.py:quickstart', flags=(), *, errors=0.3, clean=0.9, sha='a' * 64, steps=STEPS,
  corruptions='c' * 64,
):  # fmt: skip
  """A finished run whose every corruption has the same error."""
  (workdir / 'results').mkdir(parents=True)
  config = configs.override(configs.load(spec), command_line.split_overrides(flags)[0])
  (workdir / 'config.json').write_text(configs.to_json(config))
  provenance = {
    'data': {'test': {'name': 'cifar10', 'origin': 'unverified'}},
    'corruptions': {'seed': 0, 'frost': 'procedural', 'sha256': corruptions},
  }
  names = dict.fromkeys(metrics.NAMES, errors)
  files = {
    'cifar10_c': {
      'mce': errors, 'corruption_error': names, 'checkpoint_sha256': sha, 'num_images': 50,
      'origin': 'generated, in memory', 'provenance': provenance,
    },
    'clean': {'accuracy': clean, 'checkpoint_sha256': sha},
    'train': {'step': steps, 'state_sha256': sha, 'config': {'batch_size': BATCH}, 'command': f'train {workdir.name}'},
  }  # fmt: skip
  for name, content in files.items():
    (workdir / 'results' / f'{name}.json').write_text(json.dumps(content))
  lines = [{'step': 1, 'images_per_second': 1.0}, {'step': 4, 'images_per_second': 10.0}]
  lines += [{'step': steps, 'images_per_second': 30.0}]
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def output(tmp_path):
  folder = tmp_path / 'out'
  folder.mkdir()
  return folder


@pytest.fixture
def started(monkeypatch):
  """Takes the place of training; what was started, as lists of arguments."""
  commands = []

  def start(module, config, workdir, *flags):
    commands.append([module, config, workdir, *flags])
    seed = next(flag for flag in flags if flag.startswith('--config.seed='))[-1]
    row = re.search(r'configs/(\w+)\.py', config)[1]
    mce = {'nominal': 0.40, 'augmix': 0.30}.get(row, 0.35) + 0.02 * int(seed)
    spec, path = config.removeprefix('--config='), Path(workdir.removeprefix('--workdir='))
    write_run(path, spec, flags, errors=mce, clean=0.9 - 0.01 * int(seed))

  monkeypatch.setattr(runs, 'start', start)
  return commands


def run(tmp_path, output, *flags):
  table1_corruptions.main([*flags, f'--workdir={tmp_path / "runs"}', f'--output={output}'])


def test_every_row_starts_from_the_one_nominal_run_of_its_seed(tmp_path, output, started):
  run(tmp_path, output, '--scale=laptop', '--rows=nominal,augmix', '--seeds=0,1', '--config.data_dir=/data')
  configs = [(command[1], command[2].rpartition('runs/')[2]) for command in started]
  assert configs == [
    ('--config=configs/nominal.py:laptop_start', 'laptop/start/seed0'),
    ('--config=configs/nominal.py:laptop', 'laptop/nominal/seed0'),
    ('--config=configs/augmix.py:laptop', 'laptop/augmix/seed0'),
    ('--config=configs/nominal.py:laptop_start', 'laptop/start/seed1'),
    ('--config=configs/nominal.py:laptop', 'laptop/nominal/seed1'),
    ('--config=configs/augmix.py:laptop', 'laptop/augmix/seed1'),
  ]
  assert all('--config.data_dir=/data' in command for command in started)
  starts = [flag for command in started for flag in command if flag.startswith('--config.init_from=')]
  assert [start.rpartition('/')[2] for start in starts] == ['seed0', 'seed0', 'seed1', 'seed1']
  started.clear()
  run(tmp_path, output, '--scale=laptop', '--rows=nominal,augmix', '--seeds=0,1')
  assert started == []  # nothing is trained twice


def test_the_table_holds_fractions_and_its_drawings_means_over_seeds(tmp_path, output, started):
  run(tmp_path, output, '--scale=quickstart', '--rows=nominal,augmix', '--seeds=0,1')
  table = json.loads((output / 'table1_quickstart.json').read_text())
  entry = table['augmix']['1']
  assert math.isclose(entry['mce'], 0.32)
  assert math.isclose(entry['clean_error'], 0.11)
  assert entry['corruption_error'] == dict.fromkeys(metrics.NAMES, entry['mce'])
  assert entry['images_seen'] == 140
  # 1 step at 1 image a second, 3 at 10, 3 at 30, of 20 images each
  assert entry['minutes'] == round((20 / 1 + 60 / 10 + 60 / 30) / 60, 2)
  assert entry['command'] == 'train seed1'
  text = (output / 'table1_quickstart.md').read_text()
  # Two seeds, 2 points apart: standard error 2 / sqrt(2) / sqrt(2) = 1.
  assert '| nominal | 0, 1 | 10.50 ± 0.50 | 41.00 ± 1.00 | 30.50 ± 0.50 | 4.23 | 25.17 |' in text
  assert '| augmix | 0, 1 | 0.00 ± 0.00 | -10.00 ± 0.00 | -10.00 ± 0.00 | -10.00 ± 0.00 | -10.00 ± 0.00 |' in text
  assert 'cifar10 (unverified)' in text
  assert 'n = 50 images' in text
  rows = list(csv.DictReader((output / 'table1_quickstart.csv').read_text().splitlines()))
  assert [(row['row'], row['source'], row['seed']) for row in rows] == [
    ('nominal', 'ours', '0'), ('nominal', 'ours', '1'), ('nominal', 'paper', ''),
    ('augmix', 'ours', '0'), ('augmix', 'ours', '1'), ('augmix', 'paper', ''),
  ]  # fmt: skip
  assert float(rows[2]['mce']) == 0.2517
  assert (output / 'table1_quickstart.png').read_bytes().startswith(b'\x89PNG')


def test_two_programs_add_to_one_table(output):
  first, second = (runs.Table(str(output), 'table.json', lambda rows, path: {'.md': ' '.join(rows)}) for _ in range(2))
  first.add('a', {'mce': 0.5}, '0')
  second.add('b', {'mce': 0.25})
  first.add('a', {'mce': 0.75}, '1')
  table = {'a': {'0': {'mce': 0.5}, '1': {'mce': 0.75}}, 'b': {'mce': 0.25}}
  assert json.loads((output / 'table.json').read_text()) == first.rows == table
  assert (output / 'table.md').read_text() == 'a b'


def test_pat_by_an_alexnet_of_its_own_is_trained_after_it(tmp_path, output, started):
  here = [f'--workdir={tmp_path / "runs"}', f'--output={output}']
  table3_perceptual.main(['--scale=gpu', '--rows=pat_self,pat_alexnet', *here])
  assert [command[1].removeprefix('--config=configs/') for command in started] == [
    'pat_self.py:gpu', 'alexnet.py:gpu', 'pat_alexnet.py:gpu',
  ]  # fmt: skip
  alexnet = f'--config.attack.distance_from={tmp_path / "runs" / "gpu" / "alexnet" / "seed0"}'
  assert [alexnet in command for command in started] == [False, False, True]
  started.clear()
  table3_perceptual.main(['--scale=quickstart', '--rows=pat_alexnet', *here])
  given = '--config.attack.distance_from=elsewhere'
  table3_perceptual.main(['--scale=gpu', '--rows=pat_alexnet', '--seeds=1', given, *here])
  assert [command[1].removeprefix('--config=configs/') for command in started] == [
    'pat_alexnet.py:quickstart', 'pat_alexnet.py:gpu',
  ]  # fmt: skip
  assert given in started[1]


def test_rows_join_those_that_are_there(tmp_path, output, started):
  run(tmp_path, output, '--scale=quickstart', '--rows=nominal')
  run(tmp_path, output, '--scale=quickstart', '--rows=augmix', '--seeds=1')
  table = json.loads((output / 'table1_quickstart.json').read_text())
  assert {row: list(seeds) for row, seeds in table.items()} == {'augmix': ['1'], 'nominal': ['0']}


def test_rows_on_other_corruptions_are_refused(tmp_path, output, started):
  write_run(tmp_path / 'runs' / 'quickstart' / 'augmix' / 'seed0', corruptions='d' * 64)
  with pytest.raises(UserError, match=r'differ in corruptions: cccccccccccc .*dddddddddddd .augmix, seed 0'):
    run(tmp_path, output, '--scale=quickstart', '--rows=nominal,augmix')


def test_rows_of_different_lengths_are_refused(tmp_path, output, started):
  write_run(tmp_path / 'runs' / 'quickstart' / 'augmix' / 'seed0', steps=STEPS + 1)
  with pytest.raises(UserError, match='differ in images_seen: 140 .*160 .augmix, seed 0'):
    run(tmp_path, output, '--scale=quickstart', '--rows=nominal,augmix')


def test_a_finished_run_of_another_config_is_refused(tmp_path, output, started):
  run(tmp_path, output, '--scale=laptop', '--rows=augmix', '--config.batch_size=50')
  written = (output / 'table1_laptop.json').read_bytes()
  run(tmp_path, output, '--scale=laptop', '--rows=augmix', '--config.batch_size=50', '--config.data_dir=/elsewhere')
  with pytest.raises(UserError, match=r'start/seed0.* holds a finished run with another config .batch_size: 50 -> 128'):
    run(tmp_path, output, '--scale=laptop', '--rows=augmix')
  assert len(started) == 2
  assert (output / 'table1_laptop.json').read_bytes() == written


def test_table_3_shares_runs_with_table_1_and_has_its_own_rows(tmp_path, output, started):
  flags = [f'--workdir={tmp_path / "runs"}', f'--output={output}']
  run(tmp_path, output, '--scale=laptop', '--rows=nominal')
  started.clear()
  table3_perceptual.main(['--scale=laptop', '--rows=nominal,rlat,nominal_pat', *flags])
  assert [command[1] for command in started] == [
    '--config=configs/rlat.py:laptop', '--config=configs/nominal_pat.py:laptop',
  ]  # fmt: skip
  assert json.loads((output / 'table3_laptop.json').read_text()).keys() == {'nominal', 'rlat', 'nominal_pat'}
  text = (output / 'table3_laptop.md').read_text()
  assert '| nominal_pat | 0 | 10.00 | 35.00 | 25.00 | 5.20 | 25.80 |' in text
  assert '| rlat | 0 | 10.00 | 35.00 | 25.00 |  |  |' in text
  assert '140 training images seen by every row' in text


@pytest.mark.parametrize('scale', ['full', 'gpu'])
def test_rows_of_table_3_saw_different_numbers_of_images_in_their_published_settings_alone(
  tmp_path, output, started, scale
):
  variant = '' if scale == 'full' else f':{scale}'
  longer = {'spec': f'configs/rlat.py{variant}', 'flags': ['--config.seed=0'], 'steps': STEPS + 1}
  write_run(tmp_path / 'runs' / scale / 'rlat' / 'seed0', **longer)
  flags = [f'--scale={scale}', '--rows=nominal,rlat', f'--workdir={tmp_path / "runs"}', f'--output={output}']
  if scale == 'full':
    table3_perceptual.main(flags)
    assert '140 to 160 training images seen by every row' in (output / 'table3_full.md').read_text()
  else:
    with pytest.raises(UserError, match='differ in images_seen: 140 .*160 .rlat, seed 0'):
      table3_perceptual.main(flags)


def test_results_of_another_checkpoint_are_refused(tmp_path):
  write_run(tmp_path / 'run')
  clean = tmp_path / 'run' / 'results' / 'clean.json'
  clean.write_text(json.dumps({'accuracy': 0.5, 'checkpoint_sha256': 'b' * 64}))
  with pytest.raises(UserError, match='from several checkpoints'):
    table1_corruptions.entry(tmp_path / 'run')


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--scale=labtop'], "Unknown --scale 'labtop'.*Did you mean 'laptop'"),
    (['--scale=smoke', '--rows=ada'], "Unknown row 'ada'"),
    (['--scale=smoke', '--seeds=one'], "--seeds='one' must be whole numbers"),
    (['--scale=smoke', '--output=/nowhere/at/all'], "--output='/nowhere/at/all' must be an existing folder"),
    (['--rows=nominal'], 'required: --scale'),
    (['--scale=smoke', '--config.seed=7'], "--config.seed='7': config.seed is set by the .*; set seeds with --seeds"),
    (['--scale=smoke', '--config.init_from=x'], "--config.init_from='x': config.init_from is set by the experiment"),
    (['--scale=laptop', '--config.holdout=9'], "--config.holdout='9': config.holdout is set by the experiment"),
  ],
)
def test_wrong_flags_are_one_line(tmp_path, output, nothing_starts, flags, said):
  given = flags if any('--output' in flag for flag in flags) else [*flags, f'--output={output}']
  with pytest.raises(UserError, match=said):
    table1_corruptions.main([*given, f'--workdir={tmp_path}'])


def test_a_table_that_cannot_be_written_is_one_line(tmp_path, output, started):
  (output / 'table1_quickstart.csv').mkdir()
  with pytest.raises(StorageError, match='Cannot write .*table1_quickstart.json'):
    run(tmp_path, output, '--scale=quickstart', '--rows=nominal')


def test_a_stopped_or_failed_run_ends_the_experiment(monkeypatch):
  def ends_with(code):
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: subprocess.CompletedProcess(a, code))

  ends_with(75)
  with pytest.raises(Stopped, match='repeat this command to resume'):
    runs.start('adversarial_augment.train')
  ends_with(2)
  with pytest.raises(UserError, match='exit code 2'):
    runs.start('adversarial_augment.train')


def test_the_mean_of_one_seed_has_no_error():
  assert str(table1_drawing.estimate([0.25])) == '25.00'


@pytest.mark.slow
@pytest.mark.parametrize('config', [*table1_corruptions.ROWS, 'augmix_jsd_resnext', 'augmix_jsd_wrn'])
def test_two_steps_of_every_row(config, tmp_path, monkeypatch):
  monkeypatch.chdir(Path(__file__).parent.parent)
  command = [sys.executable, '-m', 'adversarial_augment.train', f'--config=configs/{config}.py:smoke']
  command += [f'--workdir={tmp_path}/w', f'--config.data_dir={tmp_path}', '--config.evals=clean']
  subprocess.run(command, check=True)
  lines = [json.loads(line) for line in (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [1, 2]
  assert all(math.isfinite(line['loss']) for line in lines)
  assert ('attack_loss_end' in lines[0]) == config.startswith('ada_')


@pytest.mark.slow
def test_two_rows_are_trained_and_drawn(tmp_path, output):
  command = [sys.executable, '-m', 'experiments.table1_corruptions', '--scale=smoke', '--rows=nominal,ada_edsr']
  command += [f'--workdir={tmp_path}', f'--output={output}']
  subprocess.run(command, check=True)
  table = json.loads((output / 'table1_smoke.json').read_text())
  assert {row: entry['0']['images_seen'] for row, entry in table.items()} == {'nominal': 16, 'ada_edsr': 16}


def test_every_config_has_a_variant_for_one_gpu():
  for path in sorted(Path('configs').glob('*.py')):
    if path.stem.startswith('pretrain'):
      continue
    config = configs.load(f'{path}:gpu')
    configs.validate(config)
    assert (config.dataset, config.num_epochs, config.batch_size) == ('cifar10', 24.0, 256), path
    assert config.precision == 'bfloat16'


@pytest.mark.slow
def test_the_scale_of_one_gpu_runs_at_a_hundredth_of_its_length(tmp_path, output):
  """On the embedded images, and with few test images: only that it works can be seen on a CPU."""
  flags = ['--config.dataset=embedded', '--config.num_epochs=0.24', '--config.optimizer.warmup_epochs=0.02']
  run(tmp_path, output, '--scale=gpu', '--rows=ada_augmix', *flags, '--config.eval_images=20')
  table = json.loads((output / 'table1_gpu.json').read_text())
  assert table['ada_augmix']['0']['images_seen'] == 11 * 256


# Both.

TABLE_1 = (table1_corruptions.main, ['--scale=smoke', '--rows=nominal'], 'table1_smoke.json')
TABLE_2 = (table2_robustness.main, ['x'], 'table2.json')


@pytest.fixture
def nothing_starts(monkeypatch):
  monkeypatch.setattr(runs, 'start', lambda *_: pytest.fail('it started'))


@pytest.mark.parametrize(
  'table, content',
  [
    *((TABLE_1, text) for text in ('', '[]', 'null', '{"nominal": 3}', '{"nominal": {}}', '[' * 10**5, b'\xff', None)),
    (TABLE_1, '{"nominal": {"1": {"mce": 1}}}'),
    *((TABLE_2, text) for text in ('[]', '{"x": 3}', '{"x": {"num_images": 1, "data": "a", "origin": []}}', None)),
  ],
)
def test_what_is_no_table_is_refused_before_anything_starts(output, nothing_starts, table, content):
  main, flags, name = table
  path = output / name
  path.mkdir() if content is None else path.write_bytes(content if isinstance(content, bytes) else content.encode())
  said = f"'{path}' is not a table of this experiment; remove it, or name another --output"
  with pytest.raises(UserError, match=said):
    main([*flags, f'--output={output}'])


@pytest.mark.parametrize('main, flags, _', [TABLE_1, TABLE_2])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(nothing_starts, main, flags, _):
  with pytest.raises(StorageError, match="Cannot write in --output='/proc'"):
    main([*flags, '--output=/proc'])


# Table 2.

EPSILONS = {'l2_0.5': 0.5, 'l2_1': 1.0, 'linf_1-255': 1 / 255, 'linf_2-255': 2 / 255, 'linf_4-255': 4 / 255}
LEFT = {'l2_0.5': 120, 'l2_1': 10, 'linf_1-255': 700, 'linf_2-255': 450, 'linf_4-255': 60}


def write_results(
  run: Path, *, n: int = 1000, flags: tuple[str, ...] = (), sha: str = fixtures.STATE, suite: str = 'paper'
) -> None:
  """What the attacks of Table 2 leave."""
  clean = json.loads((run / 'results' / 'clean.json').read_text())
  for ball, left in LEFT.items():
    norm, text = ball.replace('-', '/').split('_')
    result = {name: clean[name] for name in ('step', 'split', 'origin', 'provenance')} | {
      'eval': f'robustness_{suite}_{ball}', 'attack': suite, 'norm': norm, 'epsilon': EPSILONS[ball],
      'epsilon_text': text, 'seed': 0,
      'num_images': n, 'num_correct': 900, 'num_robust': left, 'num_robust_uint8': left,
      'clean_accuracy': 900 / n, 'robust_accuracy': left / n, 'robust_accuracy_uint8': left / n,
      'interval': metrics.binomial_interval(left, n),
      'stages': ['apgd-ce'], 'survivors': {'apgd-ce': left}, 'seconds': {'apgd-ce': 1.0}, 'left_out': [],
      'flags': list(flags), 'conditions_sha256': 64 * '7', 'checkpoint_sha256': sha,
    }  # fmt: skip
    fixtures.write(run / 'results' / f'robustness_{suite}_{ball}.json', result)


@pytest.fixture
def attacked(monkeypatch) -> list[tuple[str, ...]]:
  """Takes the place of the evaluation."""
  commands: list[tuple[str, ...]] = []

  def start(module, workdir, *flags):
    commands.append((module, workdir, *flags))
    suite = 'autoattack' if '--attack=autoattack' in flags else 'paper'
    write_results(Path(workdir.removeprefix('--workdir=')), suite=suite)

  monkeypatch.setattr(runs, 'start', start)
  return commands


def cells_of(output) -> list[list[str]]:
  with open(output / 'table2.csv', newline='') as file:
    return list(csv.reader(file))


def test_runs_are_attacked_and_laid_beside_the_paper(tmp_path, output, attacked):
  run = fixtures.write_run(tmp_path / 'run')
  table2_robustness.main([f'ada_edsr={run}', '--num_examples=1000', f'--output={output}'])
  assert attacked == [
    ('adversarial_augment.evaluate', f'--workdir={run}', '--attack=table2', '--allow_suspect', '--num_examples=1000')
  ]
  head, ours, paper = cells_of(output)
  assert head[3:] == ['clean', 'CIFAR-10.1', 'l_2 0.5', 'l_2 1', 'l_inf 1/255', 'l_inf 2/255', 'l_inf 4/255']
  assert ours[:3] == ['AdA', f'ours: {run}', 'embedded:1.0.0 (embedded), n = 1,000']
  assert ours[3:] == ['90.00', '89.05', '12.00', '1.00', '70.00', '45.00', '6.00']
  assert paper[3:] == ['96.18', '90.50', '8.61', '0.03', '77.78', '44.39', '5.89']
  text = (output / 'table2.md').read_text()
  assert f'| AdA | ours: {run} |' in text
  assert 'arXiv 2104.01086' in text


def test_the_standard_autoattack_takes_the_place_of_the_papers_suite(tmp_path, output, attacked):
  run = fixtures.write_run(tmp_path / 'run')
  table2_robustness.main([f'ada_edsr={run}', '--suite=autoattack', f'--output={output}'])
  asked = {(flags[1], radius) for _, _, *flags in attacked for radius in flags[2].removeprefix('--epsilon=').split(',')}
  assert asked == {(f'--norm={ball.split("_")[0]}', ball.split('_')[1]) for ball in table2_robustness.COLUMNS}
  assert cells_of(output)[1][5:] == ['12.00', '1.00', '70.00', '45.00', '6.00']
  assert 'under the standard AutoAttack (suite `autoattack`)' in (output / 'table2.md').read_text()
  with pytest.raises(UserError, match='differ in suite: autoattack .*; paper'):
    table2_robustness.main([str(fixtures.write_run(tmp_path / 'other')), f'--output={output}'])


def test_the_name_of_a_folder_may_hold_what_parts_a_row_from_it(tmp_path, output, attacked):
  run = fixtures.write_run(tmp_path / 'lr=0.1')
  table2_robustness.main([str(run), f'--output={output}'])
  table2_robustness.main([f'nominal={run}', f'--output={output}'])
  assert [command[1] for command in attacked] == 2 * [f'--workdir={run}']


def test_a_run_without_a_row_stands_alone_and_joins_the_others(tmp_path, output, attacked):
  first, second = (fixtures.write_run(tmp_path / name) for name in ('a', 'b'))
  table2_robustness.main([f'nominal={first}', f'--output={output}'])
  table2_robustness.main([str(second), f'--output={output}'])
  assert [row[1] for row in cells_of(output)[1:]] == [f'ours: {first}', 'paper', f'ours: {second}']


def test_a_suspect_number_is_marked(tmp_path, output, monkeypatch):
  run = fixtures.write_run(tmp_path / 'run')
  monkeypatch.setattr(runs, 'start', lambda *_: write_results(run, flags=('zero_gradients',)))
  table2_robustness.main([str(run), f'--output={output}'])
  assert cells_of(output)[1][5:] == [f'{left / 10:.2f} UNRELIABLE' for left in LEFT.values()]


def test_runs_that_do_not_compare_are_refused(tmp_path, output, monkeypatch):
  first, second = (fixtures.write_run(tmp_path / name) for name in ('a', 'b'))
  sizes = {str(first): 1000, str(second): 2000}
  monkeypatch.setattr(
    runs, 'start', lambda _, workdir, *flags: write_results(Path(workdir[10:]), n=sizes[workdir[10:]])
  )
  with pytest.raises(UserError, match='differ in num_images: 1000 .*; 2000'):
    table2_robustness.main([str(first), str(second), f'--output={output}'])


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['ada=x'], "Unknown row 'ada'"),
    (['x', '--output=/nowhere/at/all'], 'must be an existing folder'),
    ([], 'required'),
    (['x', '--suite=pgd'], "--suite 'pgd'"),
    (['x', '--num_examples=0'], "--num_examples: '0' must be an integer from 1"),
    (['x', '--num_examples=many'], "--num_examples: 'many' must be an integer from 1"),
  ],
)
def test_bad_arguments_are_refused(arguments, message, output, nothing_starts):
  with pytest.raises(UserError, match=message):
    table2_robustness.main([f'--output={output}', *arguments])


def test_the_table_has_a_row_for_each_of_the_papers():
  assert set(table2_robustness.PAPER) == {name for name in table1_corruptions.ROWS.values() if name}


# The matrix of adversaries.

MATRIX_LEFT = {
  'autoattack_linf_2-255': 700, 'autoattack_linf_8-255': 100, 'autoattack_l2_0.5': 600, 'autoattack_l2_1': 200,
  'perceptual_alexnet_0.2': 400, 'perceptual_alexnet_0.5': 300,
}  # fmt: skip


def write_robust(run: Path, n: int) -> None:
  """What attacks leave, beside the results of a run."""
  clean = json.loads((run / 'results' / 'clean.json').read_text())
  for name, left in MATRIX_LEFT.items():
    attack, norm, text = name.replace('-', '/').split('_')
    above, _, below = text.partition('/')
    result = {field: clean[field] for field in ('step', 'split', 'origin', 'checkpoint_sha256')} | {
      'provenance': clean['provenance'] | {'command': f'attack {name}'},
      'eval': f'robustness_{name}', 'attack': attack, 'norm': norm, 'epsilon_text': text, 'seed': 0,
      'epsilon': float(above) / float(below or 1), 'num_images': n, 'num_correct': 900,
      'num_robust': left, 'num_robust_uint8': left, 'clean_accuracy': 900 / n, 'robust_accuracy': left / n,
      'robust_accuracy_uint8': left / n, 'interval': metrics.binomial_interval(left, n), 'stages': ['apgd-ce'],
      'survivors': {'apgd-ce': left}, 'seconds': {'apgd-ce': 1.0}, 'left_out': [],
      'flags': ['square'] if name == 'autoattack_l2_1' else [], 'conditions_sha256': 64 * '7',
    }  # fmt: skip
    if attack == 'perceptual':
      result['distance'] = {'network': norm, 'self_bounded': False, 'file': 'a.safetensors', 'sha256': 64 * 'd'}
    fixtures.write(run / 'results' / f'robustness_{name}.json', result)


@pytest.fixture
def trained(tmp_path, monkeypatch):
  """Two finished runs, whose attacks are written and not run; what is started."""
  commands = []
  for row in ('nominal', 'rlat'):
    for seed in (0, 1):
      folder = tmp_path / 'runs' / 'smoke' / row / f'seed{seed}'
      fixtures.write_run(folder, factor=1 + seed / 2)
      (folder / 'config.json').write_text(configs.to_json(configs.load(f'configs/{row}.py:smoke')))
      write_robust(folder, 1000)
  monkeypatch.setattr(runs, 'start', lambda *command: commands.append([*command]))
  return commands


def matrix(tmp_path, output, *flags):
  unseen_attacks.main(['--scale=smoke', f'--workdir={tmp_path}/runs', f'--output={output}', *flags])


def test_the_matrix_has_every_finished_run_under_the_same_attacks(tmp_path, output, trained):
  matrix(tmp_path, output)
  folders = [tmp_path / 'runs' / 'smoke' / row / f'seed{seed}' for row in ('rlat', 'nominal') for seed in (0, 1)]
  assert [command[1] for command in trained] == [f'--workdir={folder}' for folder in folders for _ in MATRIX_LEFT]
  assert all('--allow_suspect' in command for command in trained)
  assert trained[5][2:5] == ['--attack=perceptual', '--distance=alexnet', '--epsilon=0.5']
  text = (output / 'unseen_smoke.md').read_text()
  # Clean errors of 4 and 6 %, 10 and 15 % under AdA: standard errors of two seeds are half of their difference.
  robust = '70.00 ± 0.00 | 10.00 ± 0.00 | 60.00 ± 0.00 | 20.00 ± 0.00 ? | 40.00 ± 0.00 | 30.00 ± 0.00 |'
  numbers = f'95.00 ± 1.00 | 87.50 ± 2.50 † | {robust}'
  assert f'| rlat | 0, 1 | {numbers}' in text
  assert f'| nominal | 0, 1 | {numbers}' in text
  assert 'AdA: nu 0.015, 2 steps; l_p: AutoAttack; perceptual: LPA and PPGD, AlexNet dddddddddddd.' in text
  table = json.loads((output / 'unseen_smoke.json').read_text())
  assert table['rlat']['1']['mce'] == pytest.approx(1.5 * table['rlat']['0']['mce'])
  assert table['rlat']['1']['command']['l_2 1'] == 'attack autoattack_l2_1'
  assert (output / 'unseen_smoke.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('row', 'columns'),
  [
    ('nominal', []),
    ('rlat', []),
    ('pat_self', []),
    ('ada_augmix', ['AdA']),
    ('linf_adversarial_pat', ['l_inf 2/255', 'l_inf 8/255']),
    ('l2_adversarial_pat', ['l_2 0.5', 'l_2 1']),
    ('pat_alexnet', ['perceptual 0.2', 'perceptual 0.5']),
  ],
)
def test_the_matrix_tells_the_adversary_of_the_training(row, columns):
  assert unseen_attacks.trained_against(configs.load(f'configs/{row}.py:laptop').attack) == columns


def test_cells_of_the_own_adversary_are_marked(tmp_path, output, trained):
  path = tmp_path / 'runs' / 'smoke' / 'rlat' / 'seed1' / 'results' / 'cifar10_c.json'
  result = json.loads(path.read_text())
  result['provenance']['config']['attack'] = dict(configs.load('configs/l2_adversarial.py:smoke').attack)
  path.write_text(json.dumps(result))
  matrix(tmp_path, output, '--rows=rlat')
  text = (output / 'unseen_smoke.md').read_text()
  assert '| 60.00 ± 0.00 † | 20.00 ± 0.00 †? | 40.00 ± 0.00 |' in text


def test_seeds_can_be_chosen(tmp_path, output, trained):
  matrix(tmp_path, output, '--seeds=1')
  table = json.loads((output / 'unseen_smoke.json').read_text())
  assert {row: list(seeds) for row, seeds in table.items()} == {'nominal': ['1'], 'rlat': ['1']}
  with pytest.raises(UserError, match='holds no finished run'):
    matrix(tmp_path, output, '--seeds=7')


def test_results_of_different_networks_are_different_lines_of_a_report(tmp_path):
  run = fixtures.write_run(tmp_path / 'run')
  write_robust(run, 1000)
  path = run / 'results' / 'robustness_perceptual_alexnet_0.2.json'
  result = json.loads(path.read_text())
  result['distance']['sha256'] = 64 * 'e'
  path.write_text(json.dumps(result))
  page = report.report([run]).read_text()
  for network in ('dddddddd', 'eeeeeeee'):
    assert f'run, perceptual AlexNet distance {network}: 90.0, ' in page


def test_runs_on_other_corruptions_are_not_compared(tmp_path, output, trained):
  path = tmp_path / 'runs' / 'smoke' / 'rlat' / 'seed1' / 'results' / 'cifar10_c.json'
  result = json.loads(path.read_text())
  result['provenance']['corruptions']['sha256'] = 64 * '9'
  path.write_text(json.dumps(result))
  with pytest.raises(UserError, match='differ in corruptions: .*999999999999'):
    matrix(tmp_path, output)


def test_another_number_of_images_is_asked_of_every_attack(tmp_path, output, trained):
  matrix(tmp_path, output, '--rows=rlat', '--num_examples=100')
  ada = [command for command in trained if '--evals=ada' in command]
  assert [command[2:] for command in ada] == [['--evals=ada', '--config.eval_images=100', '--overwrite']] * 2
  assert all('--num_examples=100' in command for command in trained if command not in ada)


@pytest.mark.parametrize('row', ['rlat', 'l2_adversarial', 'trades', 'augmix', 'rlat_augmix'])
def test_ada_is_the_same_for_every_run(row):
  found, wanted = configs.load(f'configs/{row}.py:quickstart'), configs.load('configs/ada_edsr.py:smoke')
  flags = unseen_attacks.ada_flags(found, wanted, None)
  evaluated = configs.override(found, command_line.split_overrides(flags)[0])
  configs.validate(evaluated)
  assert all(evaluated.attack[name] == wanted.attack[name] for name in unseen_attacks.ADA_FIELDS)
  assert evaluated.corruption_net == wanted.corruption_net
  assert unseen_attacks.ada_flags(evaluated, wanted, None) == []


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--scale=labtop'], "Unknown --scale 'labtop'"),
    (['--scale=smoke', '--rows=nominall'], "Unknown row 'nominall'.*Did you mean 'nominal'"),
    (['--scale=smoke', '--rows=nominal,augmix'], "smoke/augmix' holds no finished run; train it with"),
    (['--scale=gpu'], "runs/gpu' holds no finished run"),
    (['--scale=smoke', '--rows='], "Unknown row ''"),
  ],
)
def test_wrong_flags_of_the_matrix_are_one_line(tmp_path, output, trained, flags, said):
  with pytest.raises(UserError, match=said):
    unseen_attacks.main([*flags, f'--workdir={tmp_path}/runs', f'--output={output}'])
  assert trained == []


@pytest.mark.slow
def test_a_trained_run_is_attacked_and_drawn(tmp_path, output):
  here = [f'--workdir={tmp_path}', f'--output={output}']
  flags = ['--scale=smoke', '--rows=rlat', *here]
  subprocess.run([sys.executable, '-m', 'experiments.table3_perceptual', *flags], check=True)
  flags = ['--scale=smoke', '--num_examples=16', *here]
  subprocess.run([sys.executable, '-m', 'experiments.unseen_attacks', *flags], check=True)
  entry = json.loads((output / 'unseen_smoke.json').read_text())['rlat']['0']
  assert entry['accuracy'].keys() == set(unseen_attacks.COLUMNS)
  assert entry['num_images'] == 16
