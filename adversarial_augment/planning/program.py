"""Parses a compiled program of one device: its kernels, their bytes and FLOP, its loops and collectives.

The text is that of `jax.stages.Compiled.as_text()`: XLA's HLO after all passes. Costs are added over the call graph:
the body of a loop counts once per iteration, a conditional as its most expensive branch.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import math
import re
from typing import NamedTuple

_ITEM_BYTES = {'pred': 1, 's4': 1, 'u4': 1, 'bf16': 2, 'f16': 2, 'token': 0}  # others name their bits
_FREE = frozenset({
  'parameter', 'constant', 'iota', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id',
  'opt-barrier', 'domain', 'add-dependency',
})  # fmt: skip  # nothing is moved
_MARKERS = ('AllocateBuffer', 'ConcatBitcast', 'Sharding', 'SPMDFullToShardShape', 'SPMDShardToFullShape')
_WHOLE = ('dot', 'convolution', 'sort', 'scatter', 'reduce-window', 'custom-call', 'tuple')  # need operands whole
_PARTS = ('dynamic-slice', 'slice', 'gather')  # read only a part of their first operand
_COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_NAME = re.compile(r'%([\w.\-]+)')


class Operation(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str  # of the result; a tuple's is that of its members
  opcode: str
  operands: tuple[str, ...]
  attributes: str  # the text after the operands; for constants and parameters, their value

  def named(self, attribute: str) -> str:
    """Returns the computation that an attribute names, such as `body`."""
    found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    assert found, f'{self.opcode} without {attribute}'
    return found[1]


class Cost(NamedTuple):
  """The total cost of operations."""

  seconds: float = 0.0
  kernels: float = 0
  bytes: float = 0  # read and written
  collectives: tuple[tuple[str, float, float], ...] = ()  # name, count, bytes

  def __add__(self, other: 'Cost') -> 'Cost':  # type: ignore[override]
    merged: dict[str, tuple[float, float]] = {}
    for name, count, size in self.collectives + other.collectives:
      counted, sized = merged.get(name, (0, 0))
      merged[name] = counted + count, sized + size
    collectives = tuple((name, *merged[name]) for name in sorted(merged))
    return Cost(self.seconds + other.seconds, self.kernels + other.kernels, self.bytes + other.bytes, collectives)

  def times(self, count: int) -> 'Cost':
    """Returns the cost of this many repetitions."""
    collectives = tuple((name, count * number, count * size) for name, number, size in self.collectives)
    return Cost(count * self.seconds, count * self.kernels, count * self.bytes, collectives)


class Loop(NamedTuple):
  """A loop of the program."""

  name: str  # its origin: the scopes of JAX, such as 'jit(step)/ascent/while'
  trips: int | None  # number of iterations; None: only known at run time
  runs: int  # how many times the program reaches it
  once: Cost  # of its body


class Program:
  """A compiled program.

  Args:
    text: of one device.
    seconds_of: (operation, bytes read and written, FLOP) -> seconds of a kernel.
  """

  def __init__(self, text: str, seconds_of: Callable[[Operation, int, int], float]):
    self._computations, self._entry = _read(text)
    self._seconds_of = seconds_of

  @functools.cached_property
  def cost(self) -> Cost:
    return self._cost(self._entry)

  @functools.cached_property
  def loops(self) -> list[Loop]:
    """All loops, the outer before the inner ones."""
    return list(self._loops(self._entry, 1))

  def _loops(self, computation: str, runs: int) -> Iterator[Loop]:
    for operation in self._computations[computation].values():
      if operation.opcode == 'while':
        body, trips = operation.named('body'), self._trips(operation)
        scopes = re.search(r'op_name="([^"]*)"', operation.attributes)
        yield Loop(scopes[1] if scopes else '', trips, runs, self._cost(body))
        yield from self._loops(body, runs * (1 if trips is None else trips))
      else:
        for called in _called(operation):
          yield from self._loops(called, runs)

  @functools.cache  # noqa: B019  a program is parsed once, and lives as long as its plan
  def _cost(self, computation: str) -> Cost:
    total = Cost()
    for operation in self._computations[computation].values():
      total += self._cost_of(operation, computation)
    return total

  def _cost_of(self, operation: Operation, computation: str) -> Cost:
    opcode = operation.opcode
    if opcode == 'while':
      trips = self._trips(operation)
      return self._cost(operation.named('body')).times(1 if trips is None else trips)
    if opcode == 'conditional':
      return max((self._cost(branch) for branch in _called(operation)), key=lambda cost: (cost.seconds, cost.bytes))
    if opcode in ('call', 'async-start'):  # the latter runs one or more kernels, concurrent with others
      return self._cost(_called(operation)[0])
    is_marker = any(f'"{name}"' in operation.attributes for name in _MARKERS)
    if opcode in _FREE or opcode.endswith(('-done', '-update')) or is_marker:
      return Cost()
    moved = self._bytes(operation, computation)
    seconds = self._seconds_of(operation, moved, self.flop(operation, computation))
    return Cost(seconds, 1, moved, self._collectives(operation, computation))

  def _collectives(self, operation: Operation, computation: str) -> tuple[tuple[str, float, float], ...]:
    if operation.opcode == 'fusion':
      (called,) = _called(operation)
      inner = (Cost(collectives=self._collectives(inner, called)) for inner in self._computations[called].values())
      return sum(inner, Cost()).collectives
    name = operation.opcode.removesuffix('-start')
    return ((name, 1, self._operand_bytes(operation, computation)),) if name in _COLLECTIVES else ()

  def _operand_bytes(self, operation: Operation, computation: str) -> int:
    known = self._computations[computation]
    return sum(shape_bytes(known[name].shape) for name in operation.operands if name in known)

  def _bytes(self, operation: Operation, computation: str) -> int:
    """Returns the bytes that a kernel reads and writes, of slices of an operand those of the slice."""
    if operation.opcode == 'fusion':
      return self._fusion_bytes(operation, computation)
    if operation.opcode == 'dynamic-update-slice':
      return 2 * shape_bytes(self._computations[computation][operation.operands[1]].shape)
    result = shape_bytes(operation.shape)
    if operation.opcode in ('copy-start', 'all-gather-start', 'collective-permute-start'):
      return result  # a tuple with the operand in it
    if operation.opcode in _PARTS:
      return 2 * result
    return result + self._operand_bytes(operation, computation)

  def _fusion_bytes(self, operation: Operation, computation: str) -> int:
    body = self._computations[_called(operation)[0]]
    users: dict[str, list[Operation]] = {}
    for inner in body.values():
      for name in inner.operands:
        users.setdefault(name, []).append(inner)
    used: dict[str, int] = {}  # elements of each value that the kernel computes or reads

    def of(name: str, user: Operation) -> int:  # elements of a value that one of its users reads
      whole = _count(body[name].shape)
      if user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
        return 0  # updated in place
      part = user.opcode in _PARTS and user.operands[0] == name
      return used[user.name] if part or (user.opcode not in _WHOLE and _count(user.shape) == whole) else whole

    for name, inner in reversed(body.items()):
      whole = _count(inner.shape)
      used[name] = min(whole, sum(of(name, user) for user in users[name])) if name in users else whole

    def written(root: Operation) -> int:
      while root.opcode == 'bitcast':
        root = body[root.operands[0]]
      if root.opcode == 'tuple':
        return sum(written(body[name]) for name in root.operands)
      if root.opcode == 'dynamic-update-slice':
        return shape_bytes(body[root.operands[1]].shape)
      return shape_bytes(root.shape)

    parameters = [inner for inner in body.values() if inner.opcode == 'parameter']
    read = sum(shape_bytes(inner.shape) * used[inner.name] // max(_count(inner.shape), 1) for inner in parameters)
    return read + written(list(body.values())[-1])

  @functools.cache  # noqa: B019
  def _fused_flop(self, computation: str) -> int:
    return sum(self.flop(operation, computation) for operation in self._computations[computation].values())

  def flop(self, operation: Operation, computation: str) -> int:
    """Returns the FLOP of products and convolutions of an operation: two per multiplication."""
    if operation.opcode == 'fusion':
      return self._fused_flop(_called(operation)[0])
    if stated := re.search(r'"cost_estimate":\{"flops":"(\d+)"', operation.attributes):
      return int(stated[1])
    known = self._computations[computation]
    shapes = [known[name].shape for name in operation.operands[:2] if name in known]
    left, right, result = (_dimensions(shape) for shape in [*shapes, '', ''][:2] + [operation.shape])
    return _flop(operation, left, right, result) if left and right and result else 0

  def _trips(self, operation: Operation) -> int | None:
    """Returns the number of iterations of a loop that counts from 0 to a constant; None for other loops."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', operation.attributes):
      return int(known[1])
    condition = self._computations[operation.named('condition')]
    root = list(condition.values())[-1]
    inner, arguments = condition, list(root.operands)
    if root.opcode == 'fusion':
      inner = self._computations[_called(root)[0]]
      root = list(inner.values())[-1]
    if root.opcode != 'compare' or 'direction=LT' not in root.attributes:
      return None
    limit = inner[root.operands[1]]
    if limit.opcode == 'parameter':
      limit = condition[arguments[int(limit.attributes)]]
    return int(limit.attributes) if limit.opcode == 'constant' and limit.attributes.isdigit() else None


def shape_bytes(shape: str) -> int:
  """Returns the bytes of an array, or of the members of a tuple, as XLA writes its shape, without padding."""
  total = 0
  for item, sizes in re.findall(r'(\w+)\[([\d,<=]*)\]', shape):
    bits = re.search(r'\d+', item)
    size = _ITEM_BYTES.get(item, int(bits[0]) // 8 if bits else 0)
    total += size * math.prod(map(int, re.findall(r'\d+', sizes)))
  return total


def _dimensions(shape: str) -> list[int] | None:
  """Returns the sizes of an array, or of a tuple's first member; None where there are none."""
  found = re.search(r'\w+\[([\d,]*)\]', shape)
  return [int(number) for number in found[1].split(',') if number] if found else None


def _count(shape: str) -> int:
  """Returns the number of elements of an array, or of a tuple's first member."""
  return math.prod(_dimensions(shape) or [])


def _flop(operation: Operation, left: list[int], right: list[int], result: list[int]) -> int:
  text, count = operation.attributes, math.prod
  if labels := re.search(r'dim_labels=\w+_(\w+)->\w+', text):
    forward, kernel = result, right
    if 'convBackwardFilter' in text:  # cuDNN's gradients have the labels of the forward pass
      forward, kernel = right, result
    elif 'convBackwardInput' in text:
      forward = left
    return 2 * count(forward) * count(kernel) // kernel[labels[1].index('o')]
  if contracting := re.search(r'"?lhs_contracting_dim(?:ension)?s"?[=:]\s*[\[{]([^\]}]*)[\]}]', text):
    return 2 * count(result) * count(left[int(axis)] for axis in re.findall(r'\d+', contracting[1]))
  return 0


def _called(operation: Operation) -> list[str]:
  """Returns the computations that an operation runs; for a loop, none."""
  if branches := re.search(r'branch_computations=\{([^}]*)\}', operation.attributes):
    return [name.strip().lstrip('%') for name in branches[1].split(',')]
  if operation.opcode == 'conditional':
    return [operation.named('true_computation'), operation.named('false_computation')]
  attribute = {'fusion': 'calls', 'call': 'to_apply', 'async-start': 'calls'}.get(operation.opcode)
  return [operation.named(attribute)] if attribute else []


def _read(text: str) -> tuple[Mapping[str, dict[str, Operation]], str]:
  """Returns the operations of each computation, and the name of the entry computation."""
  computations: dict[str, dict[str, Operation]] = {}
  current, entry = None, ''
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif current is not None and line.startswith('  ') and ' = ' in line:
      operation = _operation(line)
      current[operation.name] = operation
  assert entry, 'no entry computation'
  return computations, entry


def _operation(line: str) -> Operation:
  name, _, rest = line.strip().removeprefix('ROOT ').partition(' = ')
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  rest = rest[len(opcode) :]
  end = _closing(rest)
  inside, attributes = rest[1:end], rest[end + 1 :].removeprefix(', ')
  operands = tuple(_NAME.findall(inside))
  return Operation(name.lstrip('%'), shape, opcode, operands, attributes if operands else inside or attributes)


def _closing(text: str) -> int:
  """Returns the position at which the first bracket of the text is closed."""
  depth = 0
  for match in re.finditer(r'[()]', text):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  raise ValueError(f'no closing bracket: {text[:80]}')
