"""The notebook runs from top to bottom, and what it prints and draws is tidy, in the stored file too.

`python -m tests.notebook_test` runs it, and stores what it prints and draws.
"""

from collections.abc import Mapping
import json
from pathlib import Path
import re
import shlex
import tempfile
from typing import Any

import pytest

from adversarial_augment.config import command_line
from adversarial_augment.training import recipe

NOTEBOOK = Path(__file__).parent.parent / 'notebooks' / 'adversarial_augment.ipynb'


def code_of(notebook: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']


def printed(notebook: Mapping[str, Any]) -> str:
  """Returns what the cells print; nothing may be a warning, a redrawn progress bar, or half a line."""
  outputs = [output for cell in code_of(notebook) for output in cell['outputs']]
  assert {output.get('name', 'stdout') for output in outputs} == {'stdout'}
  texts = [''.join(output['text']) for output in outputs if output['output_type'] == 'stream']
  assert not [text for text in texts if not text.endswith('\n') or re.search(r'[^\n -~]|[Ww]arning|fork|it/s', text)]
  return ''.join(texts)


def pictures(notebook: Mapping[str, Any]) -> int:
  return sum('image/png' in output.get('data', {}) for cell in code_of(notebook) for output in cell['outputs'])


def test_the_stored_outputs_are_tidy_and_of_one_run():
  notebook = json.loads(NOTEBOOK.read_text())
  numbers = [cell['execution_count'] for cell in code_of(notebook)]
  assert numbers == list(range(1, 1 + len(numbers)))
  assert 'mCE' in printed(notebook)
  assert pictures(notebook) == 2
  assert NOTEBOOK.stat().st_size < 300_000


def images_seen(*flags: str) -> int:
  """How many images a training command sees, on the embedded data set or one of as many images."""
  config = command_line.resolve_config(command_line.parse_train(list(flags)))
  num_examples = 50_000 if config.dataset == 'cifar10' else 12_000
  return recipe.num_steps_of(config, num_examples) * config.batch_size


def test_the_runs_of_the_notebook_s_report_see_equally_many_images():
  code = '\n'.join(''.join(cell['source']) for cell in code_of(json.loads(NOTEBOOK.read_text())))
  commands = [shlex.split(flags) for flags in re.findall(r"adversarial_augment\.train ([^']*)", code)]
  (compared,) = re.findall(r'report\(\[([^]]*)\]', code)
  trained = {flag.removeprefix('--workdir='): flags for flags in commands for flag in flags if 'workdir' in flag}
  folders = re.findall(r"'([^']*)'", compared)
  assert len(folders) == 2
  assert len({images_seen(*trained[folder]) for folder in folders}) == 1


def executed(folder: Path) -> Any:
  """Returns the notebook after a run in a folder."""
  nbclient = pytest.importorskip('nbclient', reason='nbclient runs the notebook')
  import nbformat

  notebook = nbformat.read(NOTEBOOK, as_version=4)
  resources = {'metadata': {'path': str(folder)}}
  nbclient.NotebookClient(notebook, timeout=2400, record_timing=False, resources=resources).execute()
  return notebook


def store() -> None:
  """Runs the notebook, and stores its text and pictures; the report is too large."""
  import nbformat

  with tempfile.TemporaryDirectory() as folder:
    notebook = executed(Path(folder))
  for cell in code_of(notebook):
    outputs, cell['outputs'] = cell['outputs'], []
    for output in outputs:
      if output['output_type'] == 'stream' and cell['outputs']:
        cell['outputs'][-1]['text'] += output['text']
      elif 'text/html' not in output.get('data', {}):
        cell['outputs'].append(output)
  nbformat.write(notebook, NOTEBOOK)


@pytest.mark.slow
@pytest.mark.filterwarnings('default')  # of the Jupyter packages
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
  pytest.importorskip('ipykernel', reason='a kernel is needed to run the notebook')
  notebook = executed(tmp_path)
  assert 'mCE' in printed(notebook)
  assert pictures(notebook) == 2
  results = json.loads((tmp_path / 'runs' / 'quickstart' / 'results' / 'cifar10_c.json').read_text())
  assert 0 < results['mce'] < 0.5
  assert (tmp_path / 'report.html').stat().st_size > 100_000


if __name__ == '__main__':
  store()
