"""The experiment of Table 2: what it runs, what it reads, and the paper's numbers beside."""

import csv
import json
from pathlib import Path

import pytest

from adversarial_augment import metrics
from adversarial_augment.errors import StorageError, UserError
from experiments import runs, table2_robustness
from tests import reporting_fixtures as fixtures

EPSILONS = {'l2_0.5': 0.5, 'l2_1': 1.0, 'linf_1-255': 1 / 255, 'linf_2-255': 2 / 255, 'linf_4-255': 4 / 255}
LEFT = {'l2_0.5': 120, 'l2_1': 10, 'linf_1-255': 700, 'linf_2-255': 450, 'linf_4-255': 60}


def write_results(run: Path, *, n: int = 1000, flags: tuple[str, ...] = (), sha: str = fixtures.STATE) -> None:
  """What `evaluate --attack=table2` leaves."""
  clean = json.loads((run / 'results' / 'clean.json').read_text())
  for ball, left in LEFT.items():
    norm, text = ball.replace('-', '/').split('_')
    result = {name: clean[name] for name in ('step', 'split', 'origin', 'provenance')} | {
      'eval': f'robustness_paper_{ball}', 'attack': 'paper', 'norm': norm, 'epsilon': EPSILONS[ball],
      'epsilon_text': text, 'seed': 0,
      'num_images': n, 'num_correct': 900, 'num_robust': left, 'num_robust_uint8': left,
      'clean_accuracy': 900 / n, 'robust_accuracy': left / n, 'robust_accuracy_uint8': left / n,
      'interval': metrics.binomial_interval(left, n),
      'stages': ['apgd-ce'], 'survivors': {'apgd-ce': left}, 'seconds': {'apgd-ce': 1.0}, 'left_out': [],
      'flags': list(flags), 'conditions_sha256': 64 * '7', 'checkpoint_sha256': sha,
    }  # fmt: skip
    fixtures.write(run / 'results' / f'robustness_paper_{ball}.json', result)


@pytest.fixture
def output(tmp_path) -> Path:
  folder = tmp_path / 'out'
  folder.mkdir()
  return folder


@pytest.fixture
def started(monkeypatch) -> list[tuple[str, ...]]:
  """Takes the place of the evaluation."""
  commands: list[tuple[str, ...]] = []

  def start(module, workdir, *flags):
    commands.append((module, workdir, *flags))
    write_results(Path(workdir.removeprefix('--workdir=')))

  monkeypatch.setattr(runs, 'start', start)
  return commands


def cells(output: Path) -> list[list[str]]:
  with open(output / 'table2.csv', newline='') as file:
    return list(csv.reader(file))


def test_runs_are_attacked_and_laid_beside_the_paper(tmp_path, output, started):
  run = fixtures.write_run(tmp_path / 'run')
  table2_robustness.main([f'ada_edsr={run}', '--num_examples=1000', f'--output={output}'])
  assert started == [
    ('adversarial_augment.evaluate', f'--workdir={run}', '--attack=table2', '--allow_suspect', '--num_examples=1000')
  ]
  head, ours, paper = cells(output)
  assert head[3:] == ['clean', 'CIFAR-10.1', 'l_2 0.5', 'l_2 1', 'l_inf 1/255', 'l_inf 2/255', 'l_inf 4/255']
  assert ours[:3] == ['AdA', f'ours: {run}', 'embedded:1.0.0 (embedded), n = 1,000']
  assert ours[3:] == ['90.00', '89.05', '12.00', '1.00', '70.00', '45.00', '6.00']
  assert paper[3:] == ['96.18', '90.50', '8.61', '0.03', '77.78', '44.39', '5.89']
  text = (output / 'table2.md').read_text()
  assert f'| AdA | ours: {run} |' in text
  assert 'arXiv 2104.01086' in text


def test_the_name_of_a_folder_may_hold_what_parts_a_row_from_it(tmp_path, output, started):
  run = fixtures.write_run(tmp_path / 'lr=0.1')
  table2_robustness.main([str(run), f'--output={output}'])
  table2_robustness.main([f'nominal={run}', f'--output={output}'])
  assert [command[1] for command in started] == 2 * [f'--workdir={run}']


def test_a_run_without_a_row_stands_alone_and_joins_the_others(tmp_path, output, started):
  first, second = (fixtures.write_run(tmp_path / name) for name in ('a', 'b'))
  table2_robustness.main([f'nominal={first}', f'--output={output}'])
  table2_robustness.main([str(second), f'--output={output}'])
  assert [row[1] for row in cells(output)[1:]] == [f'ours: {first}', 'paper', f'ours: {second}']


def test_a_suspect_number_is_marked(tmp_path, output, monkeypatch):
  run = fixtures.write_run(tmp_path / 'run')
  monkeypatch.setattr(runs, 'start', lambda *_: write_results(run, flags=('zero_gradients',)))
  table2_robustness.main([str(run), f'--output={output}'])
  assert cells(output)[1][5:] == [f'{left / 10:.2f} UNRELIABLE' for left in LEFT.values()]


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
    (['x', '--num_examples=0'], "--num_examples: '0' must be an integer from 1"),
    (['x', '--num_examples=many'], "--num_examples: 'many' must be an integer from 1"),
  ],
)
def test_bad_arguments_are_refused(arguments, message, output, started):
  with pytest.raises(UserError, match=message):
    table2_robustness.main([f'--output={output}', *arguments])
  assert started == []


@pytest.mark.parametrize('content', ['[]', '{"x": 3}', '{"x": {"num_images": 1, "data": "a", "origin": []}}', None])
def test_what_is_no_table_is_refused_before_an_attack(content, output, started):
  path = output / 'table2.json'
  path.mkdir() if content is None else path.write_text(content)
  with pytest.raises(UserError, match=f"'{path}' is not a table of this experiment"):
    table2_robustness.main(['x', f'--output={output}'])
  assert started == []


def test_a_folder_that_cannot_be_written_is_refused_before_an_attack(started):
  with pytest.raises(StorageError, match="Cannot write in --output='/proc'"):
    table2_robustness.main(['x', '--output=/proc'])
  assert started == []


def test_the_table_has_a_row_for_each_of_the_papers():
  from experiments.table1_corruptions import ROWS

  assert set(table2_robustness.PAPER) == {name for name in ROWS.values() if name}
