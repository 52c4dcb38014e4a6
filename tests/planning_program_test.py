"""What is read from a compiled program, against numbers counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment.planning import operations
from adversarial_augment.planning.program import Cost, Program, shape_bytes

HAND = """HloModule jit_step, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: f32[10,8,4], p1: s32[]) -> f32[8,4] {
  %p0 = f32[10,8,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,4}
  ROOT %flat = f32[8,4]{1,0} bitcast(%row)
}

%body (state: (s32[], f32[8,4], f32[10,8,4])) -> (s32[], f32[8,4], f32[10,8,4]) {
  %state = (s32[], f32[8,4]{1,0}, f32[10,8,4]{2,1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %stack = f32[10,8,4]{2,1,0} get-tuple-element(%state), index=2
  %slice = f32[8,4]{1,0} fusion(%stack, %i), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %all = f32[8,4]{1,0} all-reduce(%slice), replica_groups={{0,1}}, to_apply=%add
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[8,4]{1,0}, f32[10,8,4]{2,1,0}) tuple(%next, %all, %stack)
}

%condition (state.1: (s32[], f32[8,4], f32[10,8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %state.1 = (s32[], f32[8,4]{1,0}, f32[10,8,4]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x.1: f32[8,4], stack.1: f32[10,8,4]) -> f32[8,4] {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %stack.1 = f32[10,8,4]{2,1,0} parameter(1)
  %start = s32[] constant(0)
  %first = (s32[], f32[8,4]{1,0}, /*index=2*/f32[10,8,4]{2,1,0}) tuple(%start, %x.1, %stack.1)
  %loop = (s32[], f32[8,4]{1,0}, f32[10,8,4]{2,1,0}) while(%first), condition=%condition, body=%body, metadata={op_name="jit(step)/ascent/while"}
  %result = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %space = f32[8,4]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %copied = f32[8,4]{1,0} copy(%result)
}
"""  # noqa: E501
ARRAY = 8 * 4 * 4  # bytes


def seconds(operation, moved, flop):
  return 1.0 if 'estimated_cycles' in operation.attributes else 0.0


def test_a_program_counted_by_hand():
  program = Program(HAND, seconds)
  # In the loop: a fusion that reads a row of the stack and the counter, an all-reduce, and the counter's addition.
  once = Cost(1.0, 3, (2 * ARRAY + 4) + 2 * ARRAY + 3 * 4, (('all-reduce', 1, ARRAY),))
  (loop,) = program.loops
  assert loop == ('jit(step)/ascent/while', 10, 1, once)
  copy = Cost(0.0, 1, 2 * ARRAY)
  assert program.cost == once.times(10) + copy
  assert program.cost.collectives == (('all-reduce', 10, 10 * ARRAY),)


def test_a_fusion_reads_what_it_needs_of_what_it_slices_later():
  """Two of ten rows of a sum, one of them twice; the whole of what a reduction needs."""
  text = HAND.replace(
    """  %row = f32[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,4}
""",
    """  %number = f32[] convert(%p1)
  %all_numbers = f32[10,8,4]{2,1,0} broadcast(%number), dimensions={}
  %moved = f32[10,8,4]{2,1,0} add(%p0, %all_numbers)
  %twice = f32[10,8,4]{2,1,0} multiply(%moved, %moved)
  %first = f32[1,8,4]{2,1,0} slice(%moved), slice={[0:1], [0:8], [0:4]}
  %second = f32[1,8,4]{2,1,0} slice(%twice), slice={[1:2], [0:8], [0:4]}
  %row = f32[1,8,4]{2,1,0} add(%first, %second)
""",
  )
  counted = lambda text: Program(text, seconds).loops[0].once.bytes - Program(HAND, seconds).loops[0].once.bytes
  assert counted(text) == 2 * ARRAY  # a row is read three times at most, once of them in HAND
  whole = text.replace('slice(%twice), slice={[1:2], [0:8], [0:4]}', 'reduce(%twice), dimensions={0}')
  assert counted(whole) == 9 * ARRAY


def test_a_collective_in_a_fusion_and_a_copy_that_runs_beside():
  fused = """%reduced (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %sums = f32[8,4]{1,0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}

%body """
  text = HAND.replace('%body ', fused, 1).replace(
    'all-reduce(%slice), replica_groups={{0,1}}, to_apply=%add', 'fusion(%slice), kind=kCustom, calls=%reduced', 1
  )
  assert Program(text, seconds).cost == Program(HAND, seconds).cost
  beside = """%started = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]) copy-start(%result)
  ROOT %copied = f32[8,4]{1,0} copy-done(%started)"""
  text = HAND.replace('ROOT %copied = f32[8,4]{1,0} copy(%result)', beside)
  assert Program(text, seconds).cost.bytes == Program(HAND, seconds).cost.bytes + 4


def test_a_loop_of_unknown_length_counts_once():
  program = Program(HAND.replace('direction=LT', 'direction=NE'), seconds)
  assert program.loops[0].trips is None
  assert program.cost.kernels == 4
  stated = HAND.replace('body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
  assert Program(stated, seconds).loops[0].trips == 7


@pytest.mark.parametrize(
  'shape, size',
  [
    ('f32[2,3]{1,0:T(8,128)S(1)}', 24),
    ('bf16[5]{0}', 10),
    ('pred[]', 1),
    ('(s32[], u8[7]{0}, /*index=2*/f64[2]{0})', 27),
    ('s4[6]', 6),
    ('token[]', 0),
    ('f8e4m3fn[4]{0}', 4),
    ('c64[3]', 24),
  ],
)
def test_bytes_of_a_shape(shape, size):
  assert shape_bytes(shape) == size


CUDNN = """ENTRY %main (x: f32[2,8,8,64], w: f32[3,3,64,32], g: f32[2,8,8,32]) -> f32[2,8,8,32] {
  %x = f32[2,8,8,64]{3,2,1,0} parameter(0)
  %w = f32[3,3,64,32]{3,2,1,0} parameter(1)
  %g = f32[2,8,8,32]{3,2,1,0} parameter(2)
  CALL
}
"""
FLOP = 2 * (2 * 8 * 8 * 32) * (3 * 3 * 64)


@pytest.mark.parametrize(
  'result, operands, gradient',
  [
    ('2,8,8,32', '%x, %w', ''),
    ('2,8,8,32', '%x, %w', 'Forward'),
    ('2,8,8,64', '%g, %w', 'BackwardInput'),
    ('3,3,64,32', '%x, %g', 'BackwardFilter'),
  ],
)
def test_flop_of_a_convolution_and_of_its_gradients(result, operands, gradient):
  shape, found = f'f32[{result}]{{3,2,1,0}}', []
  if gradient:  # cuDNN's, which give a tuple
    call = f'({shape}, u8[0]{{0}}) custom-call({operands}), custom_call_target="__cudnn$conv{gradient}"'
  else:
    call = f'{shape} convolution({operands})'
  text = f'ROOT %y = {call}, window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_01io->b01f'
  Program(CUDNN.replace('CALL', text), lambda operation, moved, flop: found.append(flop) or 0.0).cost  # noqa: B018
  assert found == [FLOP]


def test_a_compiled_program_of_this_machine():
  def step(x, w):
    return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ w), x)

  x, w = jnp.ones((32, 64)), jnp.ones((64, 64))
  flops = []
  text = jax.jit(step).lower(x, w).compile().as_text()
  program = Program(text, lambda operation, moved, flop: flops.append(flop) or 0.0)
  (loop,) = program.loops
  assert loop.trips == 5
  assert program.cost.bytes >= 5 * loop.once.bytes > 0
  assert max(flops) in (0, 2 * 32 * 64 * 64)  # a library call on some CPUs
  assert operations.flop(jax.make_jaxpr(step)(x, w).jaxpr) == 5 * 2 * 32 * 64 * 64


def test_flop_of_a_traced_program():
  mesh = jax.make_mesh((2,), ('data',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
  spec = jax.sharding.PartitionSpec('data')
  kernel = np.ones((3, 3, 4, 8), np.float32)

  def local(x):
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jax.lax.cond(x.sum() > 0, lambda: y, lambda: y @ np.ones((8, 8), np.float32))

  sharded = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  images = jnp.ones((6, 5, 5, 4))
  convolution, product = 2 * (6 * 25 * 8) * (9 * 4), 2 * (6 * 25 * 8) * 8
  assert operations.flop(jax.make_jaxpr(jax.jit(sharded))(images).jaxpr) == convolution + product
