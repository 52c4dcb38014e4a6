"""The notebook runs from top to bottom."""

import json
from pathlib import Path
import shutil

import pytest

NOTEBOOK = Path(__file__).parent.parent / 'notebooks' / 'adversarial_augment.ipynb'


def test_the_notebook_is_stored_without_outputs():
  cells = json.loads(NOTEBOOK.read_text())['cells']
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  assert len(code) >= 6
  assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in code)


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
