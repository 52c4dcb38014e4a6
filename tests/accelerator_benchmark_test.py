"""benchmarks.accelerator in its reduced form, as it runs on a CPU."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.per_example_conv import conv
from benchmarks import accelerator
from tests import trainer


def run(folder, *flags):
  command = [sys.executable, '-m', 'benchmarks.accelerator', f'--output={folder}', *flags]
  return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def test_measurements_are_written_and_what_was_left_out_is_named(tmp_path):
  done = run(tmp_path, '--only=nominal float32 8,ceilings', '--minutes=5')
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'accelerator.json').read_text())
  assert found['about']['platform'] == 'cpu'
  step = found['measured']['nominal float32 8']
  assert step['finite']
  assert step['images/s'] == pytest.approx(8 / (step['ms'] / 1e3))
  assert all(value > 0 for value in found['measured']['ceilings'].values())
  assert '| nominal | float32 | 8 |' in (tmp_path / 'accelerator.md').read_text()
  done = run(tmp_path, '--minutes=0', '--only=ceilings')
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / 'accelerator.json').read_text())['left_out'] == ['ceilings']
  assert 'Left out for lack of time: ceilings.' in (tmp_path / 'accelerator.md').read_text()


@pytest.mark.parametrize(
  'flags, said',
  [
    (
      ['--only=nominal float16 8'],
      "--only names 'nominal float16 8', which is not a measurement; choose from: ceilings, ",
    ),
    (['--minutes=x'], "argument --minutes: invalid float value: 'x'"),
    (['--output=/nowhere/at/all'], "--output='/nowhere/at/all' must be an existing folder"),
  ],
)
def test_wrong_use_is_one_line(tmp_path, flags, said):
  done = run(tmp_path, *flags)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert said in line


@pytest.mark.parametrize('form', ['vmap', 'im2col', 'triton'])
def test_each_form_is_the_convolution(form):
  rng = np.random.default_rng(0)
  images, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1, 8, 8, 16), (3, 3, 16, 16)))
  expected = jax.lax.conv_general_dilated(images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  np.testing.assert_allclose(accelerator.FORMS[form](images, kernel), expected, rtol=1e-4, atol=1e-4)
  program = str(jax.make_jaxpr(accelerator.FORMS[form])(images, kernel))
  words = {'vmap': 'conv_general_dilated', 'im2col': 'dot_general', 'triton': 'pallas_call'}
  assert words[form] in program
  assert 'conv_general_dilated' not in program or form == 'vmap'


@pytest.mark.slow
def test_a_step_takes_the_form_that_is_asked_for(monkeypatch):
  seen = []
  monkeypatch.chdir(trainer.ROOT)
  monkeypatch.setitem(accelerator.FORMS, 'vmap', lambda *args, **options: seen.append(1) or conv(*args, **options))
  monkeypatch.setattr(accelerator, 'seconds_of', lambda run, calls: 1.0)
  row = accelerator.step('ada_edsr', 'float32', 8, form='vmap')
  assert row['finite']
  assert seen
  assert row['TFLOP'] > 0
  assert row['estimate, GB'] > 0


@pytest.mark.slow
def test_everything_can_be_measured(tmp_path):
  done = run(tmp_path, '--minutes=14')
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'accelerator.json').read_text())
  assert found['left_out'] == []
  steps = [result for result in found['measured'].values() if isinstance(result, dict) and 'step' in result]
  assert len(steps) == 9
  assert all(step['finite'] for step in steps)
  layers = [row for result in found['measured'].values() if isinstance(result, list) for row in result]
  forms = {row['form'] for row in layers if 'failed' not in row}
  assert {'im2col', 'vmap', 'triton', 'shifted', 'patches'} <= forms
