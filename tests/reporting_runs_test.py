"""What is read for a report, what is refused, and the command line."""

import errno
from html import unescape
import os
from pathlib import Path
import shutil

import pytest

from adversarial_augment import cli, report
from adversarial_augment import config as configs
from adversarial_augment.errors import StorageError, UserError
from adversarial_augment.reporting import runs, sources
from tests import reporting_fixtures as fixtures


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
  return fixtures.record_charts(monkeypatch)


@pytest.fixture(scope='module')
def original(tmp_path_factory) -> Path:
  return fixtures.write_run(tmp_path_factory.mktemp('runs') / 'run')


@pytest.fixture
def folder(original, tmp_path) -> Path:
  return Path(shutil.copytree(original, tmp_path / 'run'))


def test_all_parts_are_read(original):
  (run,) = runs.collect([original])
  assert run.label == 'run'
  assert list(run.results) == ['clean', 'ada', 'cifar10_c', 'cifar10_c_extra', 'cifar10_1']
  assert [one['step'] for one in run.between] == [20, 40]
  assert len(run.metrics) == 40
  assert run.examples == fixtures.picture()


def test_evaluations_between_steps_are_in_the_order_of_steps(folder):
  results = folder / 'results'
  shutil.copy(results / 'eval_20.json', results / 'eval_best.json')  # not ours
  shutil.copy(results / 'eval_20.json', results / 'eval_0100.json')
  fixtures.edit(results / 'eval_0100.json', {'step': 100})
  assert [one['step'] for one in runs.collect([folder])[0].between] == [20, 40, 100]


def test_a_page_says_what_is_missing(folder, drawn):
  (folder / 'results' / 'ada.json').unlink()
  text = report.report([folder]).read_text()
  assert text.count('--evals=ada,cifar10_c_bar<') == 1
  assert 'run has not been evaluated for accuracy under AdA, ' in text
  drawn.clear()
  for part in ('results', 'figures'):
    shutil.rmtree(folder / part)
  (folder / 'metrics.jsonl').unlink()
  text = report.report([folder]).read_text()
  evals = 'clean,ada,cifar10_c,cifar10_c_extra,cifar10_c_bar'
  command = f'python -m adversarial_augment.evaluate --workdir=run --evals={evals}'
  assert f'<code>{command}</code>' in text  # CIFAR-10.1 is for classifiers of CIFAR-10
  assert 'No metrics.jsonl in run' in text
  assert drawn == {}
  assert '<img' not in text
  assert 'id="severity"' not in text


def test_log_whose_last_line_was_cut_off_is_read_without_it(folder):
  path = folder / 'metrics.jsonl'
  path.write_text(path.read_text()[:-20])
  assert len(runs.collect([folder])[0].metrics) == 39


@pytest.mark.parametrize(
  'name, change, message',
  [
    ('config.json', '{"attack": ', "config.json' is damaged"),
    ('config.json', '[]', 'the file must be a JSON object, not []'),
    ('config.json', '[' * 100_000, 'is damaged'),
    ('config.json', {'attack.nu': None}, 'attack.nu is missing; bring it back, or run the training again.'),
    ('results/train.json', {'step': -1}, 'step=-1 must be an integer of at least 0'),
    ('results/train.json', {'evals.ada.accuracy': None}, 'evals.ada.accuracy is missing; remove it, and run the train'),
    ('results/train.json', {'evals.cifar10_c.mce': 0.5}, 'evals.cifar10_c.mce is 0.5, but must be 0.166'),
    ('results/train.json', {'evals': []}, 'evals=[] must be a JSON object'),
    ('results/clean.json', '', "clean.json' is damaged"),
    ('results/clean.json', '{"accuracy": NaN}', 'NaN is not a finite number'),
    ('results/clean.json', '{"accuracy": 1e999}', '1e999 is not a finite number'),
    ('results/clean.json', {'accuracy': 96.0}, 'accuracy=96.0 must be a number of at most 1.0; remove it, and eval'),
    ('results/clean.json', {'accuracy': 0.97}, 'accuracy is 0.97, but must be 0.96 by the other numbers'),
    ('results/clean.json', {'accuracy': True}, 'accuracy=True must be'),
    ('results/clean.json', {'origin': 'good'}, "origin='good' must be one of official, generated"),
    ('results/clean.json', {'eval': 'ada'}, "holds the results of 'ada'"),
    ('results/clean.json', {'seed': 'x'}, "seed='x' must be an integer or null"),
    ('results/clean.json', {'interval': [0.1]}, 'interval=[0.1] must be a list of length 2'),
    ('results/clean.json', {'calibration.count.14': 0}, 'the sum of calibration.count is 1626, but must be 2000'),
    ('results/ada.json', {'ssim_histogram.edges.3': -1}, 'ssim_histogram.edges must rise'),
    ('results/ada.json', {'provenance.config.attack': None}, 'provenance.config.attack is missing'),
    ('results/cifar10_c.json', {'error.fog': None}, 'error.fog is missing'),
    ('results/cifar10_c.json', {'error.fog': [0.1] * 4}, 'error.fog=[0.1, 0.1, 0.1, 0.1] must be a list of length 5'),
    ('results/cifar10_c.json', {'mce': 0.1}, 'mce is 0.1, but must be 0.166 by the other numbers'),
    ('results/cifar10_c.json', {'error.fog.0': 0.9}, 'by the other numbers; remove it, and evaluate again.'),
    ('results/cifar10_c.json', {'severity_error.4': 0.2}, 'severity_error[4] is 0.2'),
    ('results/clean.json', {'correct': 'AAAA'}, 'correct is damaged: it holds 3 bytes, which are not the bits of 2000'),
    ('results/clean.json', {'correct': 7}, 'correct=7 must be a text; remove it'),
    ('results/ada.json', {'correct': 334 * 'A' + '=='}, 'correct has 0 right images, but must have 1800 by'),
    ('results/cifar10_c.json', {'correct.fog.4': 'no'}, 'correct.fog[4] is damaged: it is not base64'),
    ('results/cifar10_c.json', {'correct.fog': None}, 'correct.fog is missing'),
    ('results/cifar10_c.json', {'correct': []}, 'correct=[] must be a JSON object'),
    ('results/cifar10_1.json', {'v4.correct': ''}, 'v4.correct is damaged'),
    ('results/cifar10_c.json', {'num_correct.fog.0': 2001}, 'error.fog[0] is 0.04, but must be -0.0005'),
    ('results/clean.json', {'num_correct': 2001, 'accuracy': 1.0}, 'accuracy is 1.0, but must be 1.0005'),
    ('results/clean.json', {'split': 'te\x1bst'}, "split='te\\x1bst' must be a printable text that is not empty"),
    ('results/cifar10_c_extra.json', {'mean_error': 0.9}, 'mean_error is 0.9'),
    ('results/cifar10_1.json', {'v4': None}, 'v4 is missing'),
    ('results/cifar10_1.json', {'v4.accuracy': 0.5}, 'v4.accuracy is 0.5'),
    ('results/eval_20.json', {'evals.clean.accuracy': 2}, 'evals.clean.accuracy=2 must be'),
    ('metrics.jsonl', 'nonsense\n{"step": 2}\n', "metrics.jsonl' line 1 is damaged"),
    ('metrics.jsonl', '{"step": 2}\n{"loss": 1}\n', 'line 2: step is missing; remove the line.'),
    ('metrics.jsonl', '{"step": 2, "loss": "low"}\n', "loss='low' must be"),
    ('metrics.jsonl', '{"step": 2, "images_per_second": [1]}\n', 'images_per_second=[1] must be'),
  ],
)
def test_damaged_files_are_refused_in_one_line(folder, capsys, name, change, message):
  if isinstance(change, str):
    (folder / name).write_text(change)
  else:
    fixtures.edit(folder / name, change)
  code, said = run([str(folder)], capsys)
  assert code == 2
  assert message in said.err
  assert name in said.err
  assert said.err.count('\n') == 1
  assert said.out == ''
  assert not (folder / 'report.html').exists()


@pytest.mark.parametrize('content', [b'<svg/>', b'', fixtures.picture()[:-30], fixtures.picture()[:40]])
def test_picture_that_is_not_whole_is_named_in_its_place(folder, content):
  path = folder / 'figures' / 'ada_examples.png'
  path.write_bytes(content)
  text = unescape(report.report(folder).read_text())
  assert "'figures/ada_examples.png' is not shown: it is not a complete PNG; remove its folder, and run" in text
  assert '<img' not in text
  path.unlink()
  path.mkdir()
  assert "'figures/ada_examples.png' is not shown: Is a directory" in unescape(report.report(folder).read_text())


@pytest.mark.parametrize(
  'content, message',
  [
    (configs.to_json(configs.pretrain_config()).encode(), 'holds a run of pretrain, which has no classifier'),
    (b'\xff\xfe', 'is damaged'),  # bytes that are no text
  ],
)
def test_configs_of_no_run_are_refused(folder, content, message):
  (folder / 'config.json').write_bytes(content)
  with pytest.raises(UserError, match=message):
    runs.collect([folder])


def run(argv: list[str], capsys):
  with pytest.raises(SystemExit) as ended:
    cli.run(report.main, argv)
  return ended.value.code, capsys.readouterr()


@pytest.mark.parametrize(
  'folders, message',
  [
    (['missing'], "'missing' does not exist; name the workdir of a run."),
    (['file'], "'file' is a file"),
    (['empty'], "'empty' is not a run: it has no config.json"),
    (['run', './run'], 'is given twice'),
    (['a\0b'], 'cannot be the name of a file or folder'),
    ([], 'at least one run'),
    (None, "DIR='None' cannot be the name of a file or folder"),
    (3, "DIR='3' cannot be"),
    (['run', None], "DIR='None' cannot be"),
  ],
)
def test_folders_that_are_no_runs_are_refused(folder, monkeypatch, folders, message):
  monkeypatch.chdir(folder.parent)
  Path('file').write_text('')
  Path('empty').mkdir()
  with pytest.raises(UserError) as error:
    report.report(folders)
  assert message in str(error.value)


def test_page_of_one_run_lies_in_its_folder_and_of_several_here(folder, monkeypatch, capsys):
  monkeypatch.chdir(folder.parent)
  shutil.copytree('run', 'other')
  code, said = run(['run'], capsys)
  assert (code, said.out) == (0, f'Wrote {Path("run", "report.html")}\n')
  assert Path('run', 'report.html').read_text().startswith('<!DOCTYPE html>')
  code, said = run(['run', 'other'], capsys)
  assert (code, said.out) == (0, 'Wrote report.html\n')
  assert 'run, other' in Path('report.html').read_text()
  assert run(['run', '--output=mine.html'], capsys)[1].out == 'Wrote mine.html\n'
  assert Path('mine.html').read_bytes() == Path('run', 'report.html').read_bytes()


@pytest.mark.parametrize('output', ['.', 'missing/page.html', '', 'pipe', 'link', 'loose', 3])
def test_output_that_is_no_file_is_refused(folder, monkeypatch, output):
  monkeypatch.chdir(folder.parent)
  os.mkfifo('pipe')
  Path('mine').write_text('mine')
  Path('link').symlink_to('mine')
  Path('loose').symlink_to('nowhere')
  before = sorted(Path().iterdir())
  with pytest.raises(UserError, match='--output='):
    report.report(['run'], output=output)
  assert sorted(Path().iterdir()) == before
  assert Path('pipe').is_fifo()
  assert Path('mine').read_text() == 'mine'


def test_disk_that_fails_leaves_the_old_page(folder, monkeypatch):
  target = report.report([folder])
  before = target.read_bytes()
  (folder / 'metrics.jsonl').unlink()

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(StorageError, match='No space left'):
    report.report([folder])
  assert target.read_bytes() == before
  assert [path.name for path in folder.iterdir() if 'report' in path.name] == ['report.html']


def test_help_and_unknown_flags(capsys):
  code, said = run(['--help'], capsys)
  assert code == 0
  assert 'report.html' in said.out
  assert run(['run', '--out=x'], capsys)[0] == 2


@pytest.mark.parametrize('origin, made_with, said', [
  ('generated, in memory', {'jax': '1'}, 'generated, in memory, version 1, seed 0, n = 9 per cell'),
  ('generated, in memory', {'jax': '1', 'corruptions': '2'}, 'generated, in memory, seed 0, n = 9 per cell'),
  ('generated, version 1', {'jax': '1'}, 'generated, version 1, seed 0, n = 9 per cell'),
  ('official', None, 'official, seed 0, n = 9 per cell'),
])  # fmt: skip
def test_corruptions_of_an_older_version_are_told_apart(origin, made_with, said):
  about = {'corruptions': {'seed': 0, 'made_with': made_with}}
  result = {'origin': origin, 'num_images': 9, 'error': {'snow': []}, 'provenance': about}
  assert sources.images(result) == said
