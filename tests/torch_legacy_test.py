"""PyTorch's files from before 1.6, as the published networks are: read like zip checkpoints, and refused like them."""

import struct

import jax
import numpy as np
import pytest

from adversarial_augment import cli, convert
from adversarial_augment.corruption_nets import torch_checkpoint, torch_layouts, weights
from tests.torch_checkpoint_test import refused
from tests.torch_layouts_test import cae_state
from tests.torch_state import (
  edsr_state,
  integer,
  mapping,
  tensor,
  text,
  tuple_of,
  write_legacy,
  write_legacy_state,
  write_state,
)

STATES = {'edsr': edsr_state, 'cae': cae_state}
NUMBERS = {'0': np.arange(6, dtype='<f4')}


def one(shape=(2, 3), **options):
  return mapping({'x': tensor('0', shape, view=b'N', **options)})


@pytest.mark.parametrize('net', STATES)
def test_both_forms_hold_the_same_and_become_the_same_weights(tmp_path, net, capsys):
  state = STATES[net]()
  legacy, modern = write_legacy_state(tmp_path / 'old.pt', state), write_state(tmp_path / 'new.pt', state)
  found = torch_checkpoint.read(legacy)
  assert list(found) == list(state)
  for key, value in state.items():
    np.testing.assert_array_equal(found[key], value)
    assert not found[key].flags.writeable
  for path in (legacy, modern):
    convert.main([str(path), str(path.with_suffix('.safetensors')), f'--net={net}'])
  (old, about), (new, _) = (weights.load(path.with_suffix('.safetensors')) for path in (legacy, modern))
  jax.tree.map(np.testing.assert_array_equal, old, new)
  assert about['source'] == 'old.pt'
  assert 'Wrote' in capsys.readouterr().out


def test_the_magic_number_is_that_of_pytorch():
  assert torch_checkpoint._LEGACY[4:-1] == (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')


@pytest.mark.parametrize('net', STATES)
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, net, capsys):
  whole = write_legacy_state(tmp_path / 'whole.pt', STATES[net]()).read_bytes()
  ends = [0, 1, 2, 5, 14, 15, 16, 40, *np.random.default_rng(0).integers(0, len(whole), 40), len(whole) - 1]
  for end in ends:
    (tmp_path / 'cut.pt').write_bytes(whole[:end])
    said = refused(tmp_path / 'cut.pt')
    assert any(word in said for word in ('cut off', 'damaged', 'empty'))
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, [str(tmp_path / 'cut.pt'), str(tmp_path / 'out.safetensors'), f'--net={net}'])
  assert exit_.value.code == 2
  said = capsys.readouterr().err
  assert 'cut off' in said
  assert said.count('\n') == 1
  assert not (tmp_path / 'out.safetensors').exists()


@pytest.mark.parametrize('blocks, features, scale', [(1, 4, 1), (3, 8, 2), (2, 4, 4)])
def test_sizes_are_found_from_keys_and_shapes(tmp_path, blocks, features, scale):
  state = edsr_state(blocks=blocks, features=features, scale=scale)
  _, sizes = torch_layouts.edsr_from_torch(torch_checkpoint.read(write_legacy_state(tmp_path / 'a.pt', state)))
  assert sizes == {'blocks': blocks, 'features': features, 'scale': scale}


def test_another_scale_is_named(tmp_path, capsys):
  state = edsr_state(scale=2, features=4)
  state['tail.0.0.weight'], state['tail.0.0.bias'] = np.zeros((36, 4, 3, 3)), np.zeros(36)  # pixel shuffle of 3
  path = write_legacy_state(tmp_path / 'edsr_baseline.pt', state)
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, [str(path), str(tmp_path / 'out.safetensors')])
  assert exit_.value.code == 2
  assert 'scale=3, which must be one of 1, 2, 4' in capsys.readouterr().err


def test_types_views_and_the_tensors_of_older_versions(tmp_path):
  for kind, dtype in (
    ('HalfStorage', '<f2'),
    ('LongStorage', '<i8'),
    ('ByteStorage', '|u1'),
    ('BFloat16Storage', '<u2'),
  ):
    values = np.arange(6).astype(dtype)
    found = torch_checkpoint.read(write_legacy(tmp_path / 'a', one(kind=kind), {'0': values}))['x']
    expected = (values.astype('<u4') << 16).view('<f4') if kind == 'BFloat16Storage' else values
    np.testing.assert_array_equal(found, expected.reshape(2, 3))
  body = one((3, 2), stride=(1, 3), count=6)
  np.testing.assert_array_equal(
    torch_checkpoint.read(write_legacy(tmp_path / 'a', body, NUMBERS))['x'], NUMBERS['0'].reshape(2, 3).T
  )
  storage = tuple_of(text('storage'), b'ctorch\nFloatStorage\n', text('0'), text('cuda:0'), integer(6), b'N') + b'Q'
  first = tuple_of(storage, integer(2), tuple_of(integer(3)), tuple_of(integer(1)))
  body = mapping({'x': b'ctorch._utils\n_rebuild_tensor\n' + first + b'R'})
  np.testing.assert_array_equal(torch_checkpoint.read(write_legacy(tmp_path / 'a', body, NUMBERS))['x'], [2, 3, 4])


HOSTILE = {
  'a function': lambda p: write_legacy(p, b'cposix\nsystem\n' + tuple_of(text('true')) + b'R', {}),
  'a function in the keys': lambda p: write_legacy(p, one(), NUMBERS, keys=[])
  and p.write_bytes(p.read_bytes().replace(b'](e.', b'cposix\nsystem\n(X\4\0\0\0truetR.')),
  'a function in the machine': lambda p: write_legacy(p, one(), NUMBERS, machine=b'cbuiltins\neval\n(X\1\0\0\0001tR'),
  'a key of tuples': lambda p: write_legacy(p, b'})' + b'q\0h\0h\0\x86' * 40 + b'Ns', {}),
  'a storage that is huge': lambda p: write_legacy(p, one(count=2**31 - 1), NUMBERS),
  'a storage below zero': lambda p: write_legacy(p, one(count=-1), NUMBERS),
  'many storages that are huge': lambda p: write_legacy(
    p,
    mapping({str(i): tensor(str(i), (1,), count=2**31 - 1, kind='DoubleStorage', view=b'N') for i in range(1000)}),
    {str(i): np.zeros(0) for i in range(1000)},
  ),
  'a length that is another': lambda p: write_legacy(p, one(), NUMBERS)
  and p.write_bytes(p.read_bytes()[:-32] + struct.pack('<q', 2**40) + bytes(24)),
  'a storage of two kinds': lambda p: write_legacy(
    p, mapping({'x': tensor('0', (6,), view=b'N'), 'y': tensor('0', (6,), kind='LongStorage', view=b'N')}), NUMBERS
  ),
  'a part of a storage': lambda p: write_legacy(
    p, mapping({'x': tensor('0', (2, 3), view=tuple_of(text('0'), integer(0), integer(9)))}), NUMBERS
  ),
  'other keys': lambda p: write_legacy(p, one(), NUMBERS, keys=['1']),
  'a key twice': lambda p: write_legacy(p, one(), NUMBERS, keys=['0', '0']),
  'another version': lambda p: write_legacy(p, one(), NUMBERS, version=1002),
  'another machine': lambda p: write_legacy(p, one(), NUMBERS, machine=b'}(X\r\0\0\0little_endian\x89u'),
  'a module': lambda p: write_legacy(
    p, tuple_of(text('module'), b'ctorch.nn\nLinear\n', text('a.py'), text('import os')) + b'Q', {}
  ),
  'no tensors': lambda p: write_legacy(p, b'}', {}),
  'a tensor that leaves its storage': lambda p: write_legacy(p, one((3, 3), count=6), NUMBERS),
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_what_is_no_state_dict_is_refused(tmp_path, name):
  HOSTILE[name](tmp_path / 'c.pt')
  refused(tmp_path / 'c.pt')
