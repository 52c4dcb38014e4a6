"""The reader of pickles: arrays as NumPy reads them, from every protocol, and no constructor of NumPy's own."""

import pickle
import time

import numpy as np
import pytest

from adversarial_augment.storage import pickles

read = pickles.load_numpy


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(
  'values',
  [
    np.arange(12, dtype='<i8').reshape(3, 4),
    np.arange(12, dtype='>i4').reshape(3, 4),
    np.asfortranarray(np.arange(6, dtype='u1').reshape(2, 3)),
    np.linspace(0, 1, 5, dtype='f4'),
    np.array([True, False]),
    np.array(3, 'i2'),
  ],
)
def test_arrays_are_those_that_numpy_pickled(protocol, values):
  found = read(pickle.dumps({'data': values}, protocol))['data'].values
  assert found.dtype == values.dtype
  np.testing.assert_array_equal(found, values)
  assert not found.flags.writeable


def by_python_2(values: np.ndarray) -> bytes:
  """As Python 2's cPickle writes an array in protocol 2, byte by byte: names and bytes are strings."""
  raw = values.tobytes()
  shape = b''.join(b'M' + size.to_bytes(2, 'little') for size in values.shape)
  return (
    b'\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\0\x85U\x01b\x87Rq\x03(K\x01('
    + shape
    + b'tcnumpy\ndtype\nq\x04U\x02u1K\0K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T'
    + len(raw).to_bytes(4, 'little')
    + raw
    + b'tb.'
  )


def test_arrays_of_python_2():
  values = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
  data = by_python_2(values)
  np.testing.assert_array_equal(pickle.loads(data, encoding='bytes'), values)
  np.testing.assert_array_equal(read(data).values, values)


DTYPE = b'cnumpy\ndtype\n(U\x02%sI0\nI1\ntR'


def forged(state: bytes) -> bytes:
  """CIFAR-10's dict with an array whose type has this state; NumPy follows what its fields say are pointers."""
  return (
    b'}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nt'
    + DTYPE % b'V8' + state + b'bI00\nU\x08' + bytes(8) + b'tbU\x06labels]u.'
  )  # fmt: skip


FORGED = {
  'fields to a number': forged(b'(I3\nU\x01|N(U\x01at}U\x01aI99\nsI8\nI1\nI0\nt'),
  'fields to a pair of numbers': forged(b'(I3\nU\x01|N(U\x01at}U\x01a(I1\nI2\ntsI8\nI1\nI0\nt'),
}
HOSTILE = FORGED | {
  # The state of a type of which NumPy would follow the pointers.
  'forged fields': DTYPE % b'V8' + b'(I3\nU\x01|N(U\x01at}U\x01aI99\nsI8\nI1\nI27\ntb.',
  'forged subarray': DTYPE % b'u1' + b'(I3\nU\x01|(' + DTYPE % b'u1' + b'(I99\nttNNI8\nI1\nI0\ntb.',
  'objects': DTYPE % b'O8' + b'.',
  'a type by its code': b'cnumpy\ndtype\n(U\x0bu1,(999,)i8tR.',
  'a type of tuples': b'cnumpy\ndtype\n(' + b'(' * 1000 + b't' * 1000 + b'tR.',
  'an order of tuples': DTYPE % b'u1' + b'(I3\n' + b')q\0' + b'h\0h\0\x86q\0' * 40 + b'NNNtb.',
  'a shape that is huge': by_python_2(np.zeros((2, 3), np.uint8)).replace(b'M\x02\0M\x03\0', b'I999999999999\nI9\n'),
  'a shape below zero': by_python_2(np.zeros((2, 3), np.uint8)).replace(b'M\x02\0M\x03\0', b'I-1\nI6\n'),
  'a function': b'cos\nsystem\n(U\x04truetR.',
  'a constructor': b'cnumpy\nempty\n(I9\ntR.',
  'from a buffer': b'cnumpy.core.numeric\n_frombuffer\n(U\x01aU\x02u1I1\nU\x01CtR.',
  'a class of torch': b'ctorch._utils\n_rebuild_tensor_v2\n.',
  'a state for no object': b'N(I1\ntb(I1\ntb)R.',
  'a class as an argument': b'cnumpy\nndarray\n)R.',
  'a string of arguments': b'cnumpy.core.multiarray\n_reconstruct\nT' + (9).to_bytes(4, 'little') + b'x' * 9 + b'R.',
  'a key of tuples': b'}' + b')q\0' + b'h\0h\0\x86q\0' * 40 + b'Ns.',
  'opcodes without end': b'N' * (pickles.MAX_READS + 1) + b'.',
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_what_asks_for_more_is_refused_at_once(name, monkeypatch):
  made = lambda *_, **__: pytest.fail('NumPy has been asked to make what a pickle describes')
  for function in ('frombuffer', 'empty', 'zeros', 'ndarray'):
    if name != 'a shape that is huge' and name != 'a shape below zero':
      monkeypatch.setattr(pickles.np, function, made)
  start = time.monotonic()
  with pytest.raises(Exception, match='.') as error:
    read(HOSTILE[name])
  assert not isinstance(error.value, MemoryError | RecursionError)
  assert time.monotonic() - start < 3


def test_a_text_that_is_turned_into_bytes_again_and_again_takes_its_place_once():
  text = b'X' + (10**6).to_bytes(4, 'little') + b'x' * 10**6 + b'q\0X\x06\0\0\0latin1q\1c_codecs\nencode\nq\3('
  found = read(text + b'h\3h\0h\1\x86R' * 10**5 + b'l.')
  assert len(found) == 10**5
  assert len({id(content) for content in found}) == 1
