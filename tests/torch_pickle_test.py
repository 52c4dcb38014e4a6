"""Hostile pickles in PyTorch checkpoints: refused in a time, and a memory, in proportion to their length."""

import pickle
import time

import numpy as np
import pytest

from adversarial_augment import cli, convert
from adversarial_augment.corruption_nets import torch_checkpoint
from adversarial_augment.errors import Stopped
from adversarial_augment.storage import pickles
from tests.torch_checkpoint_test import refused
from tests.torch_state import integer, mapping, tensor, text, tuple_of, write

DUPLICATED = b')' + b'2\x86' * 40  # a tuple of 2**40 parts, by DUP
SHARED = b')q\x00' + b'h\x00h\x00\x86q\x00' * 40  # ... by the memo
WIDE = b')q\x00' + (b'(' + b'h\x00' * 1000 + b'tq\x00') * 4  # few levels, 10**12 parts
LISTS = b']q\x00' + b'](h\x00h\x00eq\x00' * 40
GROWN = b']q\x00'
for level in range(40):  # lists that are remembered while they are empty
  GROWN = b']q%c(' % (level + 1) + GROWN + b'h%ce' % level
BOMBS = {'dup': DUPLICATED, 'memo': SHARED, 'wide': WIDE, 'lists': LISTS, 'grown': GROWN}

TENSOR = b'ctorch._utils\n_rebuild_tensor_v2\n'
STORAGE = tuple_of(text('storage'), b'ctorch\nFloatStorage\n', text('0'), text('cpu'), integer(1)) + b'Q'


def rebuilt(values: bytes = STORAGE, offset: bytes = integer(0), size: bytes = b')', stride: bytes = b')') -> bytes:
  return TENSOR + tuple_of(values, offset, size, stride, b'\x89', b'}') + b'R'


@pytest.mark.parametrize('bomb', BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize(
  'around',
  [
    lambda bomb: b'}' + bomb + b'Ns',
    lambda bomb: b'}(' + bomb + b'Nu',
    lambda bomb: b'(' + bomb + b'Nd',
    lambda bomb: b'ccollections\nOrderedDict\n)R' + bomb + b'Ns',
    lambda bomb: b'ccollections\nOrderedDict\n' + tuple_of(b']' + tuple_of(bomb, b'N') + b'a') + b'R',
    lambda bomb: b'}ctorch._utils\n_rebuild_parameter\n' + tuple_of(bomb, b'N', b'N') + b'RNs',
    lambda bomb: bomb + b'\x8f',
    lambda bomb: b'(' + bomb + b'\x91',
    lambda bomb: bomb + bomb + b'\x93',
    lambda bomb: bomb + b'Q',
    lambda bomb: tuple_of(text('storage'), text('<f4'), bomb, text('cpu'), integer(1)) + b'Q',
    lambda bomb: tuple_of(text('storage'), bomb, text('0'), text('cpu'), integer(1)) + b'Q',
    lambda bomb: rebuilt(values=bomb),
    lambda bomb: rebuilt(offset=bomb),
    lambda bomb: rebuilt(size=bomb, stride=bomb),
    lambda bomb: rebuilt(size=tuple_of(bomb, bomb), stride=tuple_of(bomb, bomb)),
    lambda bomb: STORAGE + integer(0) + bomb + b's',
    lambda bomb: mapping({'x': bomb}),
    lambda bomb: bomb,
    lambda bomb: bomb + b')R',
  ],
)
def test_nested_values_are_refused_at_once(tmp_path, bomb, around):
  path = write(tmp_path / 'c.pt', around(bomb), {'0': bytes(4)})
  start = time.monotonic()
  assert len(refused(path)) < len(str(path)) + 300
  assert time.monotonic() - start < 2


def test_convert_refuses_the_shortest_bomb(tmp_path, capsys):
  path = write(tmp_path / 'c.pt', b'})' + b'2\x86' * 40 + b'Ns', {})
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, [str(path), str(tmp_path / 'out.safetensors')])
  assert exit_.value.code == 2
  said = capsys.readouterr().err
  assert 'DUP' in said
  assert said.count('\n') == 1


def test_numbers_that_collide_are_refused(tmp_path):
  keys = b''.join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] + b'N' for k in range(1, 9))
  assert 'small number' in refused(write(tmp_path / 'c.pt', b'}(' + keys + b'u', {}))


def test_a_long_key_or_name_is_shortened(tmp_path):
  for body in (mapping({'k' * 10**5: integer(3)}), f'c{"m" * 10**5}\nname\n'.encode()):
    assert len(refused(write(tmp_path / 'c.pt', body, {}))) < 300 + len(str(tmp_path))


def test_a_view_is_no_storage(tmp_path):
  """Else a tensor without elements, but with a length, would give memory that is not the file's."""
  empty = tensor('0', (2**20, 0), count=1)
  view = rebuilt(empty, size=tuple_of(integer(2**20)), stride=tuple_of(integer(1)))
  assert 'no storage' in refused(write(tmp_path / 'c.pt', mapping({'x': view}), {'0': bytes(4)}))


def test_many_factors_of_a_size_are_refused(tmp_path):
  many = tuple_of(*[integer(2**30)] * 10**5)
  assert 'impossible' in refused(
    write(tmp_path / 'c.pt', mapping({'x': rebuilt(size=many, stride=many)}), {'0': bytes(4)})
  )


def test_a_stop_is_no_damage(tmp_path, monkeypatch):
  def stop(unpickler):
    raise Stopped('stopped')

  monkeypatch.setattr(pickles._Unpickler, 'load', stop)
  with pytest.raises(Stopped):
    torch_checkpoint.read(write(tmp_path / 'c.pt', mapping({}), {}))


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_other_protocols_and_what_training_adds_are_read(tmp_path, protocol: int):
  """What torch.save adds to a state dict: numbers, lists and dicts with numbers as keys."""
  extra = {
    'epoch': 3, 'loss': [0.5, -1e300], 'best': None, 'amsgrad': False, 'betas': (0.9, 0.999, 1, 2), 'seed': 2**40,
    'state': {0: {'step': 70000}, 1: {'step': -1}}, 'unit': (1,), 'groups': [{'params': [0, 1]}], 'one': [2],
  }  # fmt: skip
  raw = pickle.dumps(extra, protocol)
  assert pickles.load(raw, {}.__getitem__, lambda _: np.zeros(1)) == extra
