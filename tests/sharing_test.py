"""What is made to be shared names nothing of the machine that made it."""

import os
from pathlib import Path
import re
import shutil
import socket
import sys

import pytest

from adversarial_augment import corruption_nets, evaluate, export, report, train
from adversarial_augment.exporting import formats
from adversarial_augment.storage import sharing
from tests.checkpoint_cases import ROOT, files_of

# These stay on the machine: what a resume compares, and who held a lock or made which steps.
OWN = ('config.json', 'environment.json', 'segments.json')


@pytest.mark.parametrize(
  'value, expected',
  [
    ('/home/ann/runs/a', '.'),
    ('/home/ann/runs/a/', '.'),
    ('/home/ann/runs/a/results/train.json', 'results/train.json'),
    ('/home/ann/runs/b', 'b'),
    ('/home/ann/runs/abc', 'abc'),
    ('/home/ann/my photos', 'my photos'),
    ('../../ann/data', 'data'),
    ('runs/b', 'runs/b'),
    ('~/tensorflow_datasets', '~/tensorflow_datasets'),
    ('8/255', '8/255'),
    ('and/or, 1 / 2', 'and/or, 1 / 2'),
    ('https://zenodo.org/records/2535967', 'https://zenodo.org/records/2535967'),
    ('--xla_dump_to=/home/ann/dump --xla_cpu=1', '--xla_dump_to=dump --xla_cpu=1'),
    ("'/home/ann/runs/a/figures/x.png' is not shown", "'figures/x.png' is not shown"),
    (3, 3),
    (None, None),
    ({'a': ['/home/ann/x', 1], 'b': ('/home/ann/runs/a',)}, {'a': ['x', 1], 'b': ('.',)}),
  ],
)
def test_paths_become_relative_and_other_text_stays(value, expected):
  assert sharing.relative(value, Path('/home/ann/runs/a')) == expected


def test_commands_keep_what_is_not_of_the_machine():
  arguments = [
    '--config=/srv/clone/configs/ada_edsr.py:smoke', '--workdir', '/home/ann/runs/a', '--config.seed=1',
    '--epsilon=8/255', '--config.data_dir=/mnt/my data', 'ada=/home/ann/runs/b',
  ]  # fmt: skip
  assert sharing.command('adversarial_augment.train', arguments, Path('/home/ann/runs/a')) == (
    'python -m adversarial_augment.train --config=ada_edsr.py:smoke --workdir . --config.seed=1 --epsilon=8/255 '
    "'--config.data_dir=my data' ada=b"
  )


def assert_nothing_of_the_machine(folder: Path, secrets: tuple[str, ...]) -> int:
  """No file below `folder` names a place, a user or, but for segments, a host of this machine; returns their number."""
  paths = [path for path in files_of(folder) if path.name not in OWN and not path.name.endswith('.lock')]
  for path in paths:
    content = re.sub(rb'"host": ".*"', b'', path.read_bytes())  # of `segments` in train.json
    for secret in secrets:
      assert secret.encode() not in content, (path, secret)
  return len(paths)


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> tuple[Path, Path]:
  """Two runs with all that can be made of them, every flag of which is an absolute path."""
  home = tmp_path_factory.mktemp('secret_home')
  weights = Path(shutil.copy(corruption_nets.find('edsr_4x16_x1'), home / 'own.safetensors'))

  def call(main, *flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sys, 'argv', ['/secret_home/program', *flags])
      main(list(flags))

  first, second = home / 'first', home / 'second'
  here = (f'--config.data_dir={home}/data', '--config.evals=clean,ada', '--config.eval_images=8')
  smoke = f'--config={ROOT}/configs/ada_edsr.py:smoke'
  call(train.main, smoke, *here, f'--workdir={first}', f'--config.corruption_net.weights={weights}')
  call(train.main, smoke, *here, f'--workdir={second}', f'--config.init_from={first}', '--config.attack.name=none')
  call(evaluate.main, f'--workdir={second}', '--attack=pgd', '--norm=linf', '--epsilon=8/255', '--num_examples=8')
  call(export.main, f'--workdir={second}')
  report.report([first, second], home / 'both.html')
  return first, second


@pytest.mark.slow
def test_runs_results_reports_exports_and_cards(runs, monkeypatch):
  home = runs[0].parent
  secrets = (
    'secret_home',
    str(ROOT),
    str(Path.home()) + os.sep,
    socket.getfqdn() if len(socket.getfqdn()) > 6 else '/dev/shm',
  )
  assert assert_nothing_of_the_machine(home, secrets) > 40
  names = {path.name for path in files_of(home)}
  assert {'both.html', 'report.html', 'card.json', 'classifier.jax_export', 'classifier.safetensors'} <= names
  assert {'train.json', 'ada.json', 'robustness_pgd_linf_8-255.json', 'MANIFEST.json', 'ada_examples.png'} <= names
  assert '--config.corruption_net.weights=own.safetensors' in (runs[0] / 'results' / 'train.json').read_text()


@pytest.mark.slow
def test_reports_of_results_of_older_versions(runs, tmp_path):
  """Their files have whole paths."""
  copies = [Path(shutil.copytree(run, tmp_path / str(i) / 'seed0')) for i, run in enumerate(runs)]
  for copy in copies:
    for path in (copy / 'results').glob('*.json'):
      text = path.read_text().replace(
        'python -m adversarial_augment.train ', f'python -m adversarial_augment.train --x={ROOT}/y '
      )
      path.write_text(text)
  (tmp_path / 'page').mkdir()
  report.report(copies, tmp_path / 'page' / 'both.html')
  export.main([f'--workdir={copies[1]}', '--overwrite', f'--output={tmp_path / "page"}'])
  assert assert_nothing_of_the_machine(tmp_path / 'page', (str(ROOT), str(tmp_path), 'secret_home')) >= 4
  page = (tmp_path / 'page' / 'both.html').read_text()
  assert '0/seed0' in page
  assert '1/seed0' in page


def test_an_exported_program_has_no_source_files():
  exported = formats.serialize(lambda images: images.mean((1, 2)))
  assert b'.py' not in exported
