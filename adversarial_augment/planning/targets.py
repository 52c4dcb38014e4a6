"""Accelerators that a plan is made for: their public figures, and their compilers, which need no such device here."""

from collections.abc import Sequence
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from adversarial_augment import registry
from adversarial_augment.errors import UserError


class Chip(NamedTuple):
  """The figures of one device, as its vendor publishes them."""

  title: str  # what JAX calls it, its `device_kind`
  memory: int  # bytes that programs may use; of a GPU all that it has
  bandwidth: float  # bytes a second
  peak: float  # FLOP a second of bfloat16
  clock: float = 0.0  # of the TPU compiler's cycles, in Hz
  single: float = 0.0  # FLOP a second of float32, as TF32 on a GPU and rounded to bfloat16 on a TPU
  most: int = 0  # TPUs of a slice
  gpu: str = ''  # what XLA calls a GpuTargetConfigProto

  def peak_of(self, precision: str) -> float:
    """Returns the FLOP a second of products in 'float32' or 'bfloat16'."""
    return self.peak if precision == 'bfloat16' else self.single


class Target(NamedTuple):
  """Devices that a program is compiled for."""

  name: str  # as it was asked for
  chip: Chip
  shape: tuple[int, ...]  # of a slice of TPUs; (N,) GPUs
  available: int  # bytes on each device that a program may use

  @property
  def is_gpu(self) -> bool:
    return bool(self.chip.gpu)


def _gpu(
  title: str, memory: int, bandwidth: float, peak: float, single: float, cores: int, clock: float, cache: int,
  shared: int, capability: tuple[int, int],
) -> Chip:  # fmt: skip
  text = f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared + 1024}
  shared_memory_per_block_optin: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {128 if capability[0] >= 9 else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {cache << 20}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{title}"
"""
  return Chip(title, memory, bandwidth, peak, single=single, gpu=text)


def _tpu(title: str, memory: float, bandwidth: float, peak: float, clock: float, most: int) -> Chip:
  return Chip(title, int(memory * 2**30), bandwidth, peak, clock=clock, single=peak, most=most)


# TPUs: cloud.google.com/tpu/docs; memory, what their compiler (libtpu 0.0.42) has left. The clock is the peak over what
# the matrix units do in a cycle: with it, the cycles of the compiler for a product of 8192 x 8192 come to 70 to 90 % of
# the peak. v4 is compiled for one of a chip's two cores.
TPUS = {
  'v4': _tpu('TPU v4', 15.25, 1.228e12 / 2, 275e12 / 2, clock=1.05e9, most=4096),
  'v5e': _tpu('TPU v5 lite', 15.75, 0.819e12, 197e12, clock=1.5e9, most=256),
  'v5p': _tpu('TPU v5', 95.74, 2.765e12, 459e12, clock=1.75e9, most=8960),
  'v6e': _tpu('TPU v6 lite', 31.25, 1.64e12, 918e12, clock=1.75e9, most=256),
}
# GPUs: NVIDIA's data sheets of the SXM cards, products without sparsity.
GPUS = {
  'a100': _gpu('NVIDIA A100-SXM4-80GB', 85_045_346_304, 2.039e12, 312e12, 156e12, 108, 1.41, 40, 166_912, (8, 0)),
  'h100': _gpu('NVIDIA H100 80GB HBM3', 84_942_979_072, 3.352e12, 989e12, 494e12, 132, 1.98, 50, 232_448, (9, 0)),
  'h200': _gpu('NVIDIA H200', 150_754_820_096, 4.8e12, 989e12, 494e12, 132, 1.98, 50, 232_448, (9, 0)),
}
EXAMPLES = 'v5e:2x4, v4:2x2x1, v5p:2x2x2, v6e:2x4, h100, h200:8, a100:2'
_HOST = 2  # chips of a TPU host along each of its sides, but the last of three
_MOST_GPUS = 4096


def target(name: str) -> Target:
  """Returns what a topology names, such as 'v5e:2x4' or 'h100:8'.

  Raises:
    UserError: no such chip, no such shape, or its compiler is not installed.
  """
  kind, colon, size = name.partition(':')
  chip = registry.lookup({**TPUS, **GPUS}, kind, f'--topology={name}: chip')
  if chip.gpu:
    if colon and not re.fullmatch('[1-9][0-9]{0,3}', size) or int(size or 1) > _MOST_GPUS:
      raise UserError(f"--topology={name}: '{size}' is no number of cards; name 1 to {_MOST_GPUS}: {kind}:8.")
    shape: tuple[int, ...] = (int(size or 1),)
  else:
    sides = 3 if kind in ('v4', 'v5p') else 2
    example = 'x'.join(['2', '2', '1'][:sides]) if sides == 3 else '2x4'
    if not re.fullmatch('x'.join(['[1-9][0-9]{0,2}'] * sides), size):
      raise UserError(f"--topology={name}: '{size}' is no shape of a {kind}; name {sides} sides: {kind}:{example}.")
    shape = tuple(map(int, size.split('x')))
    if math.prod(shape) > chip.most:
      raise UserError(f'--topology={name}: a slice of {kind} has at most {chip.most:,} chips; name a smaller one.')
  _check_compiler(name, gpu=bool(chip.gpu))
  return Target(name, chip, shape, _available(chip))


def _available(chip: Chip) -> int:
  """Returns what JAX may use: all of a TPU, of a GPU the share that it takes at the start."""
  if not chip.gpu:
    return chip.memory
  names = ('XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION')
  name = next(filter(os.environ.get, names), names[0])
  share = os.environ.get(name) or '.75'
  try:
    fraction = float(share)
  except ValueError:
    fraction = -1.0
  if not 0 < fraction <= 1:
    raise UserError(f'{name}={share} must be above 0 and at most 1; unset it for .75.')
  return int(fraction * chip.memory)


def _check_compiler(name: str, *, gpu: bool) -> None:
  found = importlib.util.find_spec('jax_plugins') and importlib.util.find_spec('jax_plugins.xla_cuda13')
  if not (found if gpu else importlib.util.find_spec('libtpu')):
    extra = 'plan-gpu' if gpu else 'plan-tpu'
    raise UserError(
      f'--topology={name} needs the {"GPU" if gpu else "TPU"} compiler, which runs on any CPU; install it: '
      f"pip install -e '.[{extra}]'."
    )


def prepare_environment() -> None:
  """Makes this process one that compiles for devices that it has not; call before JAX is imported."""
  os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # nothing runs on a TPU, so that nobody has to wait for it
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',  # of no meaning here, but asked for
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_MIN_LOG_LEVEL': '3',
    'TF_CPP_MIN_LOG_LEVEL': '3',  # XLA complains that it takes long
  }


def devices(wanted: Target) -> Sequence[Any]:
  """Returns the devices of a target, to build a mesh from; nothing can run on them.

  Raises:
    UserError: there is no slice of that shape, or the compiler does not go with this JAX.
  """
  import jax
  from jax.experimental import topologies

  jax.devices()  # finds the plugins
  if wanted.is_gpu:
    layout = f'1x1x{wanted.shape[0]}'
    description: dict[str, Any] = {
      'topology_name': layout,
      'platform': 'cuda',
      'topology': layout,
      'target_config': wanted.chip.gpu,
    }
  else:
    sides = 'x'.join(map(str, wanted.shape))
    host = [min(side, _HOST) for side in wanted.shape[:2]] + [1]
    name = wanted.name.partition(':')[0]
    description = {'topology_name': f'{name}:{sides}', 'platform': 'tpu', 'chips_per_host_bounds': host}
  try:
    return topologies.get_topology_desc(**description).devices
  except Exception as error:  # what a compiler raises is not told
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(f'--topology={wanted.name}: the compiler refuses it ({reason}); others: {EXAMPLES}.') from error
