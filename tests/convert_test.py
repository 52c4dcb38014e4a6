"""The converter: its file, its one line for bad input, and what it leaves alone."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import cli, convert, corruption_nets
from adversarial_augment.corruption_nets import weights
from tests.torch_state import edsr_state, write_state


def test_convert_writes_a_file_that_load_takes(tmp_path, capsys):
  state = edsr_state(blocks=1, features=4, scale=2)
  source, target = write_state(tmp_path / 'edsr.pt', state), tmp_path / 'edsr.safetensors'
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, [str(source), str(target)])
  assert exit_.value.code == 0
  assert 'blocks 1, features 4, scale 2' in capsys.readouterr().out
  _, metadata = weights.load(target)
  assert metadata['source'] == 'edsr.pt'
  assert len(metadata['source_sha256']) == 64
  network, phi = corruption_nets.load('edsr', target)
  np.testing.assert_array_equal(phi['edsr/head']['w'], state['head.0.weight'].transpose(2, 3, 1, 0))
  images = jnp.full((1, 8, 8, 3), 0.5)
  assert network.apply(phi, images).shape == images.shape


def test_convert_reports_bad_input_on_one_line(tmp_path, capsys):
  for arguments in (['missing.pt', 'out.safetensors'], ['missing.pt', 'out.txt'], ['only_one']):
    with pytest.raises(SystemExit) as exit_:
      cli.run(convert.main, arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_convert_names_the_file_that_does_not_fit_and_writes_none(tmp_path, capsys):
  fitting = edsr_state(blocks=1, features=4, scale=2)
  extra = fitting | {'x' * 5000: np.zeros(3, np.float32)}
  lacking = {key: value for key, value in fitting.items() if key != 'head.0.bias'}
  for state, said in ((extra, 'does not have'), (lacking, "lacks 'head.0.bias'")):
    source, target = write_state(tmp_path / 'some.pt', state), tmp_path / 'out.safetensors'
    with pytest.raises(SystemExit) as exit_:
      cli.run(convert.main, [str(source), str(target)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert re.search("Cannot convert '.*some.pt': ", error)
    assert 'take another checkpoint' in error
    assert said in error
    assert len(error) < 600
    assert not target.exists()


def test_convert_does_not_overwrite_its_source(tmp_path, capsys):
  path = write_state(tmp_path / 'x.safetensors', edsr_state(blocks=1, features=4, scale=2))
  before = path.read_bytes()
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, [str(path), str(path)])
  assert exit_.value.code == 2
  assert 'is the checkpoint itself; name another file' in capsys.readouterr().err
  assert path.read_bytes() == before
