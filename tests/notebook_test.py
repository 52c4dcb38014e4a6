"""The notebook runs from top to bottom."""

import json
from pathlib import Path
import re
import shlex
import shutil

import pytest

from adversarial_augment.config import command_line
from adversarial_augment.training import recipe

NOTEBOOK = Path(__file__).parent.parent / 'notebooks' / 'adversarial_augment.ipynb'


def test_the_notebook_is_stored_without_outputs():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  assert len(code) >= 6
  assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)


def images_seen(*flags: str) -> int:
  """How many images a training command sees, on the embedded data set or one of as many images."""
  config = command_line.resolve_config(command_line.parse_train(list(flags)))
  num_examples = 50_000 if config.dataset == 'cifar10' else 12_000
  return recipe.num_steps_of(config, num_examples) * config.batch_size


def test_the_runs_of_the_notebook_s_report_see_equally_many_images():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  code = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
  commands = [shlex.split(flags) for flags in re.findall(r'adversarial_augment\.train (.*)', code)]
  (compared,) = re.findall(r'report\(\[([^]]*)\]', code)
  trained = {flag.removeprefix('--workdir='): flags for flags in commands for flag in flags if 'workdir' in flag}
  folders = re.findall(r"'([^']*)'", compared)
  assert len(folders) == 2
  assert len({images_seen(*trained[folder]) for folder in folders}) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings('default')  # of the Jupyter packages
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
  pytest.importorskip('ipykernel', reason='a kernel is needed to run the notebook')
  nbclient = pytest.importorskip('nbclient', reason='nbclient runs the notebook')
  import nbformat

  shutil.copy(NOTEBOOK, tmp_path)
  notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
  nbclient.NotebookClient(notebook, timeout=1200, resources={'metadata': {'path': str(tmp_path)}}).execute()
  printed = ''.join(
    output.get('text', '') for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs
  )
  assert 'mCE' in printed
  pictures = [
    output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs
    if 'image/png' in output.get('data', {})
  ]  # fmt: skip
  assert len(pictures) == 2
  results = json.loads((tmp_path / 'runs' / 'quickstart' / 'results' / 'cifar10_c.json').read_text())
  assert 0 < results['mce'] < 0.5
  assert (tmp_path / 'report.html').stat().st_size > 100_000
