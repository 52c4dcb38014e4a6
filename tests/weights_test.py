"""Weight files: what is written is what is read, and nothing damaged is read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from adversarial_augment.corruption_nets import weights
from adversarial_augment.errors import StorageError, UserError

METADATA = {'data': 'photographs', 'steps': 7, 'ssim': 0.99, 'nested': {'seed': [1, 2]}}


def params(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'edsr/head': {'w': rng.normal(size=(3, 3, 3, 8)).astype(np.float32), 'b': rng.normal(size=8).astype(np.float32)},
    'edsr/block_0/conv_0': {'w': rng.normal(size=(3, 3, 8, 8)).astype(np.float32)},
  }


def refused(path):
  """The message of the refusal, which is one line and names the file."""
  with pytest.raises(UserError) as error:
    weights.load(path)
  message = str(error.value)
  assert '\n' not in message
  assert str(path) in message
  return message


@pytest.mark.parametrize('convert', [np.asarray, jnp.asarray, lambda array: np.asarray(array.T, order='C').T])
def test_float32_round_trip_is_exact(tmp_path, convert):
  weights.save(tmp_path / 'w.safetensors', jax.tree.map(convert, params()), METADATA, dtype='float32')
  loaded, metadata = weights.load(tmp_path / 'w.safetensors')
  jax.tree.map(np.testing.assert_array_equal, loaded, params())
  assert metadata == METADATA
  assert [entry.name for entry in tmp_path.iterdir()] == ['w.safetensors']


def test_half_precision_is_the_default_and_is_half_as_large(tmp_path):
  big = {'net/conv': {'w': np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)}}
  weights.save(tmp_path / 'half', big, METADATA)
  weights.save(tmp_path / 'full', big, METADATA, dtype='float32')
  assert (tmp_path / 'half').stat().st_size < 0.55 * (tmp_path / 'full').stat().st_size
  value = weights.load(tmp_path / 'half')[0]['net/conv']['w']
  assert value.dtype == np.float32
  np.testing.assert_array_equal(value, big['net/conv']['w'].astype(np.float16).astype(np.float32))


def test_keys_and_header_are_readable_by_safetensors_alone(tmp_path):
  weights.save(tmp_path / 'w', params(), METADATA)
  raw = (tmp_path / 'w').read_bytes()
  assert set(from_bytes(raw)) == {'edsr/head/w', 'edsr/head/b', 'edsr/block_0/conv_0/w'}
  header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], 'little')])
  assert json.loads(header['__metadata__']['provenance']) == METADATA


@pytest.mark.parametrize('value, dtype', [(np.nan, 'float32'), (1e6, 'float16')])
def test_values_that_do_not_fit_are_not_written(tmp_path, value, dtype):
  with pytest.raises(UserError, match='net/b'):
    weights.save(tmp_path / 'w', {'net': {'b': np.array([value], np.float32)}}, {}, dtype=dtype)
  assert not list(tmp_path.iterdir())


def test_unwritable_place_is_a_storage_error(tmp_path):
  (tmp_path / 'file').write_text('')
  for folder in ('no_such_folder', 'file'):
    with pytest.raises(StorageError, match=folder):
      weights.save(tmp_path / folder / 'w', params(), {})


def test_every_flipped_byte_is_noticed(tmp_path):
  path = tmp_path / 'w'
  weights.save(path, params(), METADATA)
  raw = path.read_bytes()
  header_length = 8 + int.from_bytes(raw[:8], 'little')
  rng = np.random.default_rng(0)
  for position in [*range(header_length, len(raw), 97), *rng.integers(header_length, len(raw), 20)]:
    damaged = bytearray(raw)
    damaged[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    refused(path)


@pytest.mark.parametrize('keep', [0, 5, 100, 0.5, -1])
def test_truncated_files_are_refused(tmp_path, keep):
  path = tmp_path / 'w'
  weights.save(path, params(), METADATA)
  raw = path.read_bytes()
  path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
  refused(path)


def test_other_files_are_refused(tmp_path):
  assert 'No weight file' in refused(tmp_path / 'missing')
  (tmp_path / 'text').write_text('not weights at all, but long enough to hold a header length\n' * 20)
  refused(tmp_path / 'text')
  refused(tmp_path)  # a folder
  (tmp_path / 'foreign').write_bytes(to_bytes({'w': np.ones(3, np.float32)}))
  assert "lacks 'format'" in refused(tmp_path / 'foreign')


@pytest.mark.parametrize(
  'change, word',
  [
    ({'format': 'something.else'}, 'something.else'),
    ({'sha256': '0' * 64}, 'SHA-256'),
    ({'provenance': '[1'}, 'provenance'),
    ({'provenance': '3'}, 'provenance'),
    ({'provenance': '[' * 100_000}, 'provenance'),
    ({'format': 'two\nlines'}, 'adversarial_augment.pretrain'),
  ],
)
def test_forged_headers_are_refused(tmp_path, change, word):
  path = tmp_path / 'w'
  weights.save(path, params(), METADATA)
  raw = path.read_bytes()
  header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], 'little')])['__metadata__']
  path.write_bytes(to_bytes(from_bytes(raw), metadata={**header, **change}))
  assert word in refused(path)


@pytest.mark.parametrize('tag, size', [('F8_E4M3', 4), ('F8_E8M0', 4), ('F4', 2), ('BF16', 8), ('F64', 32), ('I8', 4)])
def test_other_dtypes_are_refused_even_those_that_numpy_does_not_know(tmp_path, tag, size):
  metadata = {'format': weights.FORMAT, 'sha256': '0' * 64, 'provenance': '{}'}
  tensor = {'dtype': tag, 'shape': [4], 'data_offsets': [0, size]}
  header = json.dumps({'__metadata__': metadata, 'net/w': tensor}).encode()
  header += b' ' * (-len(header) % 8)
  (tmp_path / 'w').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(size))
  assert f"'net/w' has dtype {tag}; a weight file holds float16 or float32" in refused(tmp_path / 'w')


NETWORK = {'name': 'edsr', 'blocks': 4, 'features': 16, 'scale': 1}


def test_the_network_of_a_header_is_its_name_and_sizes():
  sizes = {'blocks': 4, 'features': 16, 'scale': 1}
  assert weights.network_of({'network': NETWORK, 'steps': 7}, 'w') == ('edsr', sizes)


@pytest.mark.parametrize(
  'network, word',
  [
    (None, 'None'),
    ('edsr', "'edsr'"),
    (['a'], "['a']"),
    ({}, '{}'),
    ({'name': 'edsr'}, 'must have exactly name, blocks, features, scale'),
    (NETWORK | {'native': 1}, 'must have exactly name, blocks, features, scale'),
    (NETWORK | {'name': ['edsr']}, 'must have exactly name, the sizes of that network'),
    (NETWORK | {'scale': 3}, 'scale=3, which must be one of 1, 2, 4'),
    (NETWORK | {'scale': [1]}, 'scale=[1]'),
    (NETWORK | {'scale': True}, 'scale=True'),
    (NETWORK | {'blocks': 0}, 'blocks=0, which must be an integer from 1 to 64'),
    (NETWORK | {'blocks': 10**9}, 'blocks=1000000000'),
    (NETWORK | {'blocks': 4.0}, 'blocks=4.0'),
    (NETWORK | {'features': '16'}, "features='16', which must be an integer from 1 to 512"),
    (NETWORK | {'features': 10**999}, 'features=1000'),
  ],
)
def test_other_networks_in_a_header_are_refused(network, word):
  with pytest.raises(UserError) as error:
    weights.network_of({'network': network}, 'file.safetensors')
  message = str(error.value)
  assert word in message
  assert message.startswith("'file.safetensors'")
  assert message.endswith('give a file that adversarial_augment.pretrain or adversarial_augment.convert wrote.')
  assert len(message) < 400
  assert '\n' not in message


def test_nan_inside_is_refused(tmp_path, monkeypatch):
  path = tmp_path / 'w'
  monkeypatch.setattr(weights.np, 'isfinite', lambda value: np.ones(np.shape(value), bool))
  weights.save(path, {'net': {'w': np.array([1.0, np.nan], np.float32)}}, {})
  monkeypatch.undo()
  assert "'net/w' holds NaN" in refused(path)


def test_check_accepts_the_right_network_only():
  good = params()
  shapes = jax.tree.map(np.shape, good)
  weights.check(good, shapes, 'w')
  weights.check(good, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, good)), 'w')

  def message(changed):
    with pytest.raises(UserError) as error:
      weights.check(changed, shapes, 'file.safetensors')
    assert 'file.safetensors' in str(error.value)
    return str(error.value)

  missing = {'edsr/head': good['edsr/head']}
  assert "'edsr/block_0/conv_0/w', which must have shape [3, 3, 8, 8]" in message(missing)
  assert "'edsr/tail/w' of shape [2]" in message({**good, 'edsr/tail': {'w': np.zeros(2)}})
  wrong = message({**good, 'edsr/head': {'w': np.zeros((3, 3, 3, 4)), 'b': np.zeros(8)}})
  assert 'has shape [3, 3, 3, 4] and must have [3, 3, 3, 8]' in wrong
