"""The accelerators of a plan: their public figures, and their compilers, which do not need the device."""

from collections.abc import Sequence
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from adversarial_augment import checks
from adversarial_augment.errors import UserError


class Chip(NamedTuple):
  """The figures of one device, as published by its vendor."""

  title: str  # JAX's name for it, its `device_kind`
  memory: int  # bytes that programs may use; for a GPU, all of its memory
  bandwidth: float  # bytes per second
  peak: float  # FLOP/s in bfloat16
  clock: float = 0.0  # of the TPU compiler's cycles, in Hz
  single: float = 0.0  # FLOP/s in float32: TF32 on a GPU, rounded to bfloat16 on a TPU
  most: int = 0  # largest number of TPUs in a slice
  gpu: str = ''  # XLA's GpuTargetConfigProto

  def peak_of(self, precision: str) -> float:
    """Returns the FLOP/s of products in 'float32' or 'bfloat16'."""
    return self.peak if precision == 'bfloat16' else self.single


class Target(NamedTuple):
  """Devices that a program is compiled for."""

  name: str  # as requested
  chip: Chip
  shape: tuple[int, ...]  # of a slice of TPUs; (N,) GPUs
  available: int  # bytes per device that a program may use

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


# TPUs: cloud.google.com/tpu/docs; memory: what their compiler (libtpu 0.0.42) leaves to programs. The clock is the peak
# over the FLOP that the matrix units do per cycle: at this clock, the compiler's cycles for a product of 8192 x 8192
# reach 70 to 90 % of the peak. v4 is compiled for one of a chip's two cores.
TPUS = {
  'v4': _tpu('TPU v4', 15.25, 1.228e12 / 2, 275e12 / 2, clock=1.05e9, most=4096),
  'v5e': _tpu('TPU v5 lite', 15.75, 0.819e12, 197e12, clock=1.5e9, most=256),
  'v5p': _tpu('TPU v5', 95.74, 2.765e12, 459e12, clock=1.75e9, most=8960),
  'v6e': _tpu('TPU v6 lite', 31.25, 1.64e12, 918e12, clock=1.75e9, most=256),
}
# GPUs: NVIDIA's data sheets of the SXM cards, without sparsity.
GPUS = {
  'a100': _gpu('NVIDIA A100-SXM4-80GB', 85_045_346_304, 2.039e12, 312e12, 156e12, 108, 1.41, 40, 166_912, (8, 0)),
  'h100': _gpu('NVIDIA H100 80GB HBM3', 84_942_979_072, 3.352e12, 989e12, 494e12, 132, 1.98, 50, 232_448, (9, 0)),
  'h200': _gpu('NVIDIA H200', 150_754_820_096, 4.8e12, 989e12, 494e12, 132, 1.98, 50, 232_448, (9, 0)),
}
EXAMPLES = 'v5e:2x4, v4:2x2x1, v5p:2x2x2, v6e:2x4, h100, h200:8, a100:2'
_HOST = 2  # chips of a TPU host along each of its sides, except the last of three
_MOST_GPUS = 4096


def target(name: str) -> Target:
  """Parses a topology, such as 'v5e:2x4' or 'h100:8'.

  Raises:
    UserError: there is no such chip or shape, or its compiler is not installed.
  """
  kind, colon, size = name.partition(':')
  chip = checks.lookup({**TPUS, **GPUS}, kind, 'chip')
  if chip.gpu:
    if colon and not re.fullmatch('[1-9][0-9]{0,3}', size) or int(size or 1) > _MOST_GPUS:
      raise UserError(f"'{size}' is not a number of cards; write 1 to {_MOST_GPUS}: {kind}:8.")
    shape: tuple[int, ...] = (int(size or 1),)
  else:
    sides, example = (3, '2x2x1') if kind in ('v4', 'v5p') else (2, '2x4')
    if not re.fullmatch('x'.join(['[1-9][0-9]{0,2}'] * sides), size):
      raise UserError(f"'{size}' is not a shape of {kind}; give {sides} sides: {kind}:{example}.")
    shape = tuple(map(int, size.split('x')))
    if math.prod(shape) > chip.most:
      raise UserError(f'a slice of {kind} has at most {chip.most:,} chips; name a smaller one.')
  packages = ('jax_plugins', 'jax_plugins.xla_cuda13') if chip.gpu else ('libtpu',)
  if not all(map(importlib.util.find_spec, packages)):  # a package first: what is in it cannot be looked up without
    extra = 'plan-gpu' if chip.gpu else 'plan-tpu'
    raise UserError(f"its compiler, which runs on any CPU, is not installed: pip install -e '.[{extra}]'.")
  return Target(name, chip, shape, _available(chip))


def _available(chip: Chip) -> int:
  """Returns the bytes that JAX may use: all of a TPU, or the share of a GPU that it reserves at the start."""
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
    raise UserError(f'{name}={share} must be greater than 0 and at most 1; unset it for the default, .75.')
  return int(fraction * chip.memory)


def prepare_environment() -> None:
  """Prepares this process to compile for devices that it does not have; call before JAX is imported."""
  os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # nothing runs on a TPU, so there is no lock to wait for
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',  # has no effect here, but is required
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_MIN_LOG_LEVEL': '3',
    'TF_CPP_MIN_LOG_LEVEL': '3',  # XLA warns that compilation is slow
  }


def devices(wanted: Target) -> Sequence[Any]:
  """Returns the devices of a target for a mesh; nothing can run on them.

  Raises:
    UserError: there is no slice of that shape, or the compiler does not match this JAX.
  """
  import jax
  from jax.experimental import topologies

  jax.devices()  # finds the plugins
  if wanted.is_gpu:
    layout = f'1x1x{wanted.shape[0]}'
    description: dict[str, Any] = {'topology_name': layout, 'platform': 'cuda', 'topology': layout}
    description['target_config'] = wanted.chip.gpu
  else:
    sides = 'x'.join(map(str, wanted.shape))
    host = [min(side, _HOST) for side in wanted.shape[:2]] + [1]
    name = wanted.name.partition(':')[0]
    description = {'topology_name': f'{name}:{sides}', 'platform': 'tpu', 'chips_per_host_bounds': host}
  try:
    return topologies.get_topology_desc(**description).devices
  except Exception as error:  # compilers do not document what they raise
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(f'the compiler rejects it ({reason}); try one of: {EXAMPLES}.') from error
