"""The train step and its most expensive layer on a real GPU or TPU, in one call of less than nine minutes.

  python -m benchmarks.accelerator [--minutes=8.5] [--output=FOLDER] [--only=NAMES]

Measures, in order of importance and each in a separate process, so that a failure or timeout affects only itself:

- what the card reaches in large matrix products and in copies;
- a layer of EDSR's body, 64 -> 64 channels at 32x32, with per-image weights, forward and both gradients, in each form,
  and PyTorch's grouped convolution and `torch.func.vmap`, if torch sees the card;
- the nominal and the AdA step in the paper's setting (configs/nominal.py, configs/ada_edsr.py), float32 and bfloat16,
  batch 256 and 64, and with running instead of batch statistics during the attack: images per second, share of the
  peak, and peak memory with the estimate that `train` prints.

Measurements for which there was no time are named. Writes accelerator.json and accelerator.md. The images are the
embedded ones. On a CPU everything is smaller, and shows only that the program works.
"""

import argparse
from collections.abc import Callable
import functools
import importlib.metadata
import importlib.util
import json
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adversarial_augment import cli, datasets, per_example_conv
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import sharding
from adversarial_augment.per_example_conv import triton_conv
from adversarial_augment.planning import operations, targets
from adversarial_augment.training import recipe as recipes
from adversarial_augment.training import step_memory, train_step
from benchmarks import timing

SECONDS = 3.0  # of timing, per measurement
CALLS = 50  # of a layer, queued without waiting

Row = dict[str, Any]


def small() -> bool:
  return jax.default_backend() == 'cpu'


def peak(precision: str) -> float | None:
  """Returns the peak FLOP/s of this device, if known; for a v4, those of one core."""
  chips = [*targets.TPUS.values(), *targets.GPUS.values()]
  return next((chip.peak_of(precision) for chip in chips if chip.title == jax.devices()[0].device_kind), None)


def seconds_of(run: Callable[[], Any], calls: int = 1) -> float:
  """Returns the median time of consecutive calls; the first ones are not timed."""
  for _ in range(2):
    jax.block_until_ready(run())
  samples: list[float] = []
  end = time.monotonic() + (0.2 if small() else SECONDS)
  while len(samples) < 3 or (time.monotonic() < end and len(samples) < 50):
    samples.append(timing.timed(run, calls).wall)
  return float(np.median(samples))


def ceilings() -> Row:
  size, elements = (256, 2**20) if small() else (8192, 2**30)
  row: Row = {}
  for precision in ('float32', 'bfloat16'):
    a = jax.random.normal(jax.random.key(0), (size, size), precision)
    seconds = seconds_of(functools.partial(jax.jit(jnp.dot), a, a), CALLS)
    row[f'{precision} product, TFLOP/s'] = 2 * size**3 / seconds / 1e12
  x = jnp.ones(elements, jnp.float32)
  seconds = seconds_of(functools.partial(jax.jit(lambda x: x + 1), x), CALLS)
  row['copy, GB/s read and written'] = 8 * elements / seconds / 1e9
  return row


# The layer: [n, 32, 32, 64] images, [n, 3, 3, 64, 64] kernels.


def layer_arrays(precision: str) -> list[np.ndarray]:
  n, side, features = (4, 8, 16) if small() else (256, 32, 64)
  rng = np.random.default_rng(0)
  shapes = (n, side, side, features), (n, 3, 3, features, features), (n, side, side, features)
  return [rng.normal(size=shape).astype(jnp.dtype(precision)) for shape in shapes]


def shifted(x: jax.Array, w: jax.Array) -> jax.Array:
  """Nine products of shifted images."""
  h, width = x.shape[:2]
  padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
  return sum(padded[a : a + h, b : b + width] @ w[a, b] for a in range(3) for b in range(3))


def patches(x: jax.Array, w: jax.Array) -> jax.Array:
  """One product of whole patches."""
  h, width = x.shape[:2]
  padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
  windows = [padded[a : a + h, b : b + width] for a in range(3) for b in range(3)]
  return jnp.concatenate(windows, -1) @ w.reshape(-1, w.shape[-1])


def forms() -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
  of = lambda impl: functools.partial(per_example_conv.per_example_conv, impl=impl)
  triton = jax.vmap(lambda x, w: triton_conv.conv(x[None], w, ((1, 1), (1, 1)))[0])
  own = {'im2col': of('im2col'), 'vmap': of('vmap')} | ({'triton': triton} if jax.default_backend() != 'tpu' else {})
  return own | {'shifted': jax.vmap(shifted), 'patches': jax.vmap(patches)}


def layer(precision: str) -> list[Row]:
  x, w, g = map(jnp.asarray, layer_arrays(precision))
  flops = 3 * 2.0 * g.size * 9 * x.shape[-1]
  rows = []
  for name, form in forms().items():
    parts = {
      'forward': jax.jit(form),
      'forward and gradients': jax.jit(lambda x, w, g, form=form: (lambda y, pull: (y, pull(g)))(*jax.vjp(form, x, w))),
    }
    row: Row = {'form': name, 'precision': precision}
    try:
      for part, run in parts.items():
        arrays = (x, w) if part == 'forward' else (x, w, g)
        row[f'{part}, ms'] = 1e3 * seconds_of(functools.partial(run, *arrays), CALLS)
      row['share of peak'] = share(flops, row['forward and gradients, ms'] / 1e3, precision)
    except Exception as error:  # a form that the compiler rejects is a result
      row['failed'] = str(error).splitlines()[0][:200]
    rows.append(row)
  return rows


def share(flops: float, seconds: float, precision: str) -> float | None:
  of = peak(precision)
  return None if of is None else flops / seconds / of


def torch_layer(precision: str) -> list[Row]:
  """The same layer in PyTorch, channels first, as is usual there."""
  if importlib.util.find_spec('torch') is None:
    return [{'form': 'torch', 'precision': precision, 'failed': 'PyTorch is not installed'}]
  import torch

  if not small() and not torch.cuda.is_available():
    return [{'form': 'torch', 'precision': precision, 'failed': 'PyTorch sees no card'}]
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as XLA does
  torch.backends.cudnn.benchmark = True
  device, dtype = 'cpu' if small() else 'cuda', getattr(torch, precision)
  arrays = [torch.tensor(a.astype(np.float32), device=device).to(dtype) for a in layer_arrays(precision)]
  x, w, g = (a.permute(axes) for a, axes in zip(arrays, ((0, 3, 1, 2), (0, 4, 3, 1, 2), (0, 3, 1, 2)), strict=True))
  n, features, side, _ = x.shape
  conv2d = torch.nn.functional.conv2d

  def grouped(x, w):
    return conv2d(x.reshape(1, -1, side, side), w.reshape(-1, features, 3, 3), padding=1, groups=n).reshape(x.shape)

  vmapped = torch.func.vmap(lambda x, w: conv2d(x[None], w, padding=1)[0])
  flops, rows = 3 * 2.0 * n * side**2 * 9 * features**2, []
  for name, form in {'torch grouped': grouped, 'torch.func.vmap': vmapped}.items():
    row: Row = {'form': name, 'precision': precision}
    leaves = [a.contiguous().requires_grad_() for a in (x, w)]
    slope = g.contiguous()

    def both(form=form, leaves=leaves, slope=slope):
      return torch.autograd.grad(form(*leaves), leaves, slope)

    def forward(form=form, leaves=leaves):
      with torch.no_grad():
        return form(*leaves)

    for part, run in {'forward': forward, 'forward and gradients': both}.items():
      row[f'{part}, ms'] = 1e3 * torch_seconds(run, torch)
    row['share of peak'] = share(flops, row['forward and gradients, ms'] / 1e3, precision)
    rows.append(row)
  return rows


def torch_seconds(run: Callable[[], Any], torch: Any) -> float:
  wait = (lambda: None) if small() else torch.cuda.synchronize
  for _ in range(3):
    run()
  wait()
  samples = []
  for _ in range(3 if small() else 10):
    start = time.perf_counter()
    for _ in range(CALLS):
      run()
    wait()
    samples.append((time.perf_counter() - start) / CALLS)
  return float(np.median(samples))


# The step.


def im2col(images: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
  kernels = jnp.broadcast_to(kernel, (len(images), *kernel.shape))
  return per_example_conv.per_example_conv(images, kernels, impl='im2col', **options)


def triton(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: Any = 'SAME') -> jax.Array:
  if padding != 'SAME' or not triton_conv.suits(*kernel.shape[2:], stride):
    return per_example_conv.conv(images, kernel, stride=stride, padding=padding)
  pads = jax.lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (1, 1), padding)
  return triton_conv.conv(images, kernel, tuple(pads))


FORMS = {'vmap': per_example_conv.conv, 'im2col': im2col, 'triton': triton}


def step(row: str, precision: str, batch_size: int, batch_norm: str = 'batch', form: str = 'auto') -> Row:
  """Times the real train step of a config.

  Args:
    row: config, 'ada_edsr' or 'nominal'.
    precision: 'float32' or 'bfloat16'.
    batch_size: images per step, over all devices.
    batch_norm: statistics of the classifier under attack.
    form: of the layers of the corruption network, a name of FORMS, instead of the one that a GPU gets.
  """
  config = configs.load(f'configs/{row}.py' + (':smoke' if small() else ''))
  values = {'dataset': 'embedded', 'batch_size': batch_size, 'precision': precision}
  config.update_from_flattened_dict(values | {'attack.batch_norm': batch_norm, 'optimizer.warmup_epochs': 0.0})
  data, mesh = datasets.load('embedded', 'train', ''), sharding.data_mesh()
  recipe, phi = recipes.build(config, data, mesh, **({} if form == 'auto' else {'conv': FORMS[form]}))
  flops = flop_of(config, data, mesh)
  phi = sharding.replicate(mesh, phi)
  init = lambda: train_step.init_state(recipe, data.image_shape)
  state = jax.jit(init, out_shardings=sharding.replicated(mesh))()
  attacked = recipe.attack is not None
  estimate = step_memory.estimate(config, recipe, state, phi, data.image_shape) / 1e9 if attacked else None
  batch = sharding.shard_batch(mesh, tuple(data.read(np.arange(batch_size))))
  start = time.monotonic()
  compiled = train_step.jitted(recipe).lower(state, np.int32(0), *batch, phi).compile()
  compile_seconds = time.monotonic() - start
  made = 0

  def run():
    nonlocal state, made
    state, metrics = compiled(state, np.int32(made), *batch, phi)
    made += 1
    return metrics

  seconds = seconds_of(run, 1 if attacked else CALLS)
  finite = bool(run()['finite'])
  stats = jax.local_devices()[0].memory_stats() or {}
  return {
    'step': row, 'precision': precision, 'batch size': batch_size, 'statistics': batch_norm, 'form': form,
    'ms': 1e3 * seconds, 'images/s': batch_size / seconds, 'TFLOP': flops / 1e12,
    'share of peak': share(flops / mesh.size, seconds, precision), 'compile, s': compile_seconds, 'finite': finite,
    'temporary, GB': compiled.memory_analysis().temp_size_in_bytes / 1e9,
    'peak, GB': stats['peak_bytes_in_use'] / 1e9 if 'peak_bytes_in_use' in stats else None,
    'estimate, GB': estimate,
  }  # fmt: skip


def flop_of(config: Any, data: Any, mesh: Any) -> int:
  """Returns the FLOP of a step over all devices, counted as ordinary convolutions."""
  plain, phi = recipes.build(config, data, mesh, conv=per_example_conv.conv)
  return operations.flop(train_step.traced(plain, phi, data.image_shape).jaxpr.jaxpr)


def measurements() -> dict[str, Callable[[], Any]]:
  """Returns the possible measurements, most important first."""
  large, little = (8, 4) if small() else (256, 64)
  made: dict[str, Callable[[], Any]] = {'ceilings': ceilings}
  for precision in ('float32', 'bfloat16'):
    made[f'layer {precision}'] = functools.partial(layer, precision)
    made[f'torch layer {precision}'] = functools.partial(torch_layer, precision)
  for size in (large, little):
    for precision in ('bfloat16', 'float32'):
      for row in ('ada_edsr', 'nominal'):
        made[f'{row} {precision} {size}'] = functools.partial(step, row, precision, size)
    if size == large:
      made[f'ada_edsr bfloat16 {size} running'] = functools.partial(step, 'ada_edsr', 'bfloat16', size, 'running')
      if jax.default_backend() == 'gpu':
        for precision, form in (('bfloat16', 'vmap'), ('float32', 'triton'), ('bfloat16', 'im2col')):
          made[f'ada_edsr {precision} {size} {form}'] = functools.partial(step, 'ada_edsr', precision, size, form=form)
  return made


# The parent: one process per measurement.


def measure(name: str, timeout: float) -> Any:
  """Returns the measurement of a separate process, or why there is none."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'result.json'
    command = [sys.executable, '-m', 'benchmarks.accelerator', f'--measure={name}', f'--output={path}']
    try:
      done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
      return {'failed': f'not finished in the remaining {timeout:.0f} s'}
    if done.returncode or not path.exists():
      lines = [line for line in done.stderr.splitlines() if line.strip()] or [f'exit code {done.returncode}']
      return {'failed': lines[-1][:300]}
    return json.loads(path.read_text())


def about() -> Row:
  packages = ('jax', 'jaxlib', 'dm-haiku')
  device = jax.devices()[0]
  return {
    'device': device.device_kind, 'devices': jax.device_count(), 'platform': device.platform,
    'versions': {name: importlib.metadata.version(name) for name in packages} | {'python': platform.python_version()},
    'command': f'python -m benchmarks.accelerator {" ".join(sys.argv[1:])}'.strip(),
  }  # fmt: skip


def markdown(found: Row) -> str:
  """Returns the results as Markdown tables."""
  said = found['about']
  versions = ', '.join(f'{name} {version}' for name, version in said['versions'].items())
  lines = [f'{said["devices"]} x {said["device"]}; {versions}; `{said["command"]}`', '']
  rows: dict[str, list[Row]] = {'layer': [], 'step': []}
  for name, result in found['measured'].items():
    if name == 'ceilings':
      lines += [f'- {key}: {cell(value)}' for key, value in result.items()] + ['']
    elif isinstance(result, list):
      rows['layer'] += result
    else:
      rows['step'].append({'step': name, **result} if 'failed' in result else result)
  for table in rows.values():
    columns = list(dict.fromkeys(key for row in table for key in row))
    lines += [f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}'] if table else []
    lines += [f'| {" | ".join(cell(row.get(column)) for column in columns)} |' for row in table] + ['']
  if found['left_out']:
    lines += [f'Left out for lack of time: {", ".join(found["left_out"])}.', '']
  return '\n'.join(lines)


def write(folder: Path, found: Row) -> None:
  (folder / 'accelerator.json').write_text(json.dumps(found, indent=1) + '\n')
  (folder / 'accelerator.md').write_text(markdown(found))


def cell(value: Any) -> str:
  if value is None:
    return ''
  return (
    f'{value:.3g}'
    if isinstance(value, float) and value < 100
    else f'{value:,.0f}'
    if isinstance(value, float)
    else str(value)
  )


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog='python -m benchmarks.accelerator', description=__doc__.splitlines()[0])
  parser.add_argument('--minutes', type=float, default=8.5, help='time for all measurements; default: 8.5')
  parser.add_argument('--output', default='.', metavar='FOLDER', help='folder of accelerator.json and .md; default: .')
  parser.add_argument('--only', metavar='NAMES', help='measurements, separated by commas; default: all')
  parser.add_argument('--measure', metavar='NAME', help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  end = time.monotonic() + 60 * arguments.minutes
  if arguments.measure:
    Path(arguments.output).write_text(json.dumps(measurements()[arguments.measure]()))
    return
  output = Path(arguments.output)
  if not output.is_dir():
    raise UserError(f"--output='{output}' must be an existing folder; create it, or name another one.")
  # In a separate process, because one process takes a whole TPU, or most of a GPU's memory.
  program = (
    'from benchmarks import accelerator as a; import json; print(json.dumps([list(a.measurements()), a.about()]))'
  )
  listing = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  if listing.returncode:
    raise UserError(f'JAX does not start: {listing.stderr.splitlines()[-1][:300]}; fix that first.')
  names, said = json.loads(listing.stdout.splitlines()[-1])
  said['command'] = f'python -m benchmarks.accelerator {" ".join(argv)}'.strip()
  wanted = arguments.only.split(',') if arguments.only else names
  if unknown := [name for name in wanted if name not in names]:
    raise UserError(f"--only names '{unknown[0]}', which is not a measurement; choose from: {', '.join(names)}.")
  found: Row = {'about': said, 'measured': {}, 'left_out': list(wanted)}
  for name in wanted:
    left = end - time.monotonic()
    if left < 10:
      break
    start = time.monotonic()
    found['measured'][name] = measure(name, left)
    found['left_out'].remove(name)
    print(f'{name}, {time.monotonic() - start:.0f} s: {found["measured"][name]}', flush=True)
    write(output, found)
  write(output, found)
  print(markdown(found))


if __name__ == '__main__':
  cli.run(main)
