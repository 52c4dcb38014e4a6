"""Hostile files, each given to the command that reads it: one line, the right exit code, soon, and in little memory."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from tests import hostile_archives, hostile_datasets, hostile_runs  # noqa: F401
from tests.hostile_base import CASES, Base, payload

ROOT = Path(__file__).parent.parent
SECONDS, BYTES = 10, 2 << 30


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory) -> dict:
  root = tmp_path_factory.mktemp('hostile')
  base = Base(root / 'base')
  work = {}
  for name, (make, _) in CASES.items():
    folder = root / name.replace(' ', '_').replace('/', '_')
    folder.mkdir()
    payload(folder)
    work[name] = make(folder, base), str(folder)
  done = subprocess.run(
    [sys.executable, '-m', 'tests.hostile_worker'],
    input=json.dumps(work), capture_output=True, text=True, cwd=ROOT,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  outcomes = json.loads(done.stdout)
  for name, (_, folder) in work.items():
    outcomes[name]['ran'] = (Path(folder) / 'ran').exists()
  return outcomes


def test_there_are_many():
  assert len(CASES) >= 60


@pytest.mark.parametrize('name', CASES)
def test_one_line_soon_and_in_little_memory(outcomes, name):
  outcome, (_, code) = outcomes[name], CASES[name]
  said = [line for line in outcome['said'].splitlines() if not line.startswith(('note: ', 'checkpoint '))]
  lines = [line for line in said if not line.endswith('...')]  # a busy machine says what it is doing
  assert not outcome['ran']
  assert (outcome['code'], len(lines)) == (code, 1), outcome['said'][-1500:]
  assert len(lines[0]) < 1000
  assert outcome['seconds'] < SECONDS
  assert outcome['bytes'] < BYTES
