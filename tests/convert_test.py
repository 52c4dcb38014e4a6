"""The converter: its file, its one line for bad input, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import cli, convert, corruption_nets
from adversarial_augment.corruption_nets import weights
from tests.torch_state import cae_state, edsr_state, mapping, tensor, write, write_legacy_state, write_state


def run(*arguments) -> int:
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, [str(argument) for argument in arguments])
  return exit_.value.code


def refusal(capsys, tmp_path, *arguments) -> str:
  """The one line of a refusal, after which there is no weight file."""
  assert run(*arguments) == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert not (tmp_path / 'out.safetensors').exists()
  return said


@pytest.mark.parametrize('form', [write_state, write_legacy_state])
@pytest.mark.parametrize(
  'net, state, said, key, expected',
  [
    (
      'edsr',
      edsr_state(blocks=1, features=4, scale=2),
      'edsr, blocks 1, features 4, scale 2.',
      'edsr/head',
      lambda state: state['head.0.weight'].transpose(2, 3, 1, 0),
    ),
    (
      'cae',
      cae_state(),
      'cae, features 4.',
      'cae/d_up_conv_1/up',
      lambda state: state['d_up_conv_1.3.weight'].transpose(2, 3, 0, 1),
    ),
  ],
)
def test_writes_a_file_that_load_takes(tmp_path, capsys, form, net, state, said, key, expected):
  source, target = form(tmp_path / 'some.pt', state), tmp_path / 'out.safetensors'
  assert run(f'--net={net}', source, target) == 0
  use = f' Use it with --config.corruption_net.name={net} --config.corruption_net.weights={target}'
  assert f'{said}{use}' in capsys.readouterr().out
  metadata = weights.load(target)[1]
  assert metadata['source'] == 'some.pt'
  assert len(metadata['source_sha256']) == 64
  network, phi = corruption_nets.load(net, target)
  np.testing.assert_array_equal(phi[key]['w'], expected(state))
  images = jnp.full((1, 8, 8, 3), 0.5)
  assert jax.eval_shape(network.apply, phi, images, jax.random.key(0)).shape == images.shape


@pytest.mark.parametrize('dtype', ['HalfStorage', 'BFloat16Storage'])
def test_edsr_in_half_precision_is_converted(tmp_path, dtype):
  """Its mean colour is off by up to half a grey level then."""
  state = edsr_state()
  half = lambda x: x.astype('<f2') if dtype == 'HalfStorage' else ((x.view('<u4') + 0x8000) >> 16).astype('<u2')
  body = mapping({key: tensor(str(i), value.shape, kind=dtype) for i, (key, value) in enumerate(state.items())})
  stored = {str(i): half(value).tobytes() for i, value in enumerate(state.values())}
  source = write(tmp_path / 'half.pt', body, stored)
  assert run(source, tmp_path / 'out.safetensors') == 0
  params, _ = weights.load(tmp_path / 'out.safetensors')
  np.testing.assert_allclose(params['edsr/head']['w'], state['head.0.weight'].transpose(2, 3, 1, 0), rtol=2**-8)


@pytest.mark.parametrize(
  'arguments, said',
  [
    (['missing.pt', 'out.safetensors'], 'No such file'),
    (['missing.pt', 'out.txt'], 'must end in .safetensors'),
    (['only_one'], 'required'),
    (['', 'out.safetensors'], 'CHECKPOINT.pt is empty'),
  ],
)
def test_bad_arguments_are_refused_on_one_line(tmp_path, capsys, arguments, said):
  assert said in refusal(capsys, tmp_path, *arguments)


def test_other_checkpoints_are_refused_on_one_line_with_their_name(tmp_path, capsys):
  state = edsr_state(scale=2)
  lacking = {key: value for key, value in state.items() if key != 'head.0.bias'}
  triple = {'tail.0.0.weight': np.zeros((36, 4, 3, 3)), 'tail.0.0.bias': np.zeros(36)}  # pixel shuffle of 3
  for changed, word in (
    (lacking, "lacks 'head.0.bias'"),
    (state | {'x' * 5000: np.zeros(3, np.float32)}, 'does not have'),
    (state | triple, 'scale=3, which must be one of 1, 2, 4'),
    (cae_state(), "is not EDSR's"),
  ):
    for form in (write_state, write_legacy_state):
      source = form(tmp_path / 'some.pt', changed)
      said = refusal(capsys, tmp_path, source, tmp_path / 'out.safetensors')
      assert f"Cannot convert '{source}': " in said
      assert word in said
      assert 'take another checkpoint' in said or 'convert another one' in said
      assert len(said) < 400 + len(str(source))


def test_files_that_are_cut_off_or_too_large_are_refused_on_one_line(tmp_path, capsys):
  for form in (write_state, write_legacy_state):
    source = form(tmp_path / 'c.pt', cae_state())
    source.write_bytes(source.read_bytes()[:-1])
    assert 'cut off' in refusal(capsys, tmp_path, '--net=cae', source, tmp_path / 'out.safetensors')
  values = cae_state() | {'e_conv_3.0.bias': np.full(32, 1e39)}
  body = mapping({key: tensor(key, value.shape, kind='DoubleStorage') for key, value in values.items()})
  source = write(tmp_path / 'c.pt', body, {key: value.astype('<f8').tobytes() for key, value in values.items()})
  said = refusal(capsys, tmp_path, '--net=cae', source, tmp_path / 'out.safetensors')
  assert 'not finite in float32' in said


def test_the_source_is_left_alone(tmp_path, capsys):
  source = write_state(tmp_path / 'a.safetensors', cae_state())
  held, link = source.read_bytes(), tmp_path / 'link.safetensors'
  link.symlink_to(source)
  for target in (source, link):
    said = refusal(capsys, tmp_path, '--net=cae', source, target)
    assert f"OUT.safetensors='{target}' is the checkpoint itself" in said
  assert source.read_bytes() == held
