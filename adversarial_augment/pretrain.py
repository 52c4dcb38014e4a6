"""Trains a corruption network: python -m adversarial_augment.pretrain --config=configs/pretrain_edsr.py

The loss is that of super-resolution, ||E(D(y)) - y||_1 with D the mean over scale x scale pixels, plus
`reconstruction_weight` times ||D(E(x)) - x||_1, which pins down what AdA uses: the network at the size of its input.
For photographs x = D(y), and one forward pass serves both terms. At scale 1 the inputs of half the batch are blurred,
so that the network is more than the identity.

The weights are written, with their provenance, only if they pass the gates: mean SSIM(x, c_phi(x)) on images that were
not trained on, every block's norm above zero, and none beyond 50 times its first value. A finished run can be judged
again with a lower bar, or write to another file.
"""

from collections.abc import Callable
import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import cli, files
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError

_DESCRIPTION = """Trains a corruption network (an image-to-image network such as EDSR) for AdversarialAugment.

Writes a .safetensors file that config.corruption_net.weights of adversarial_augment.train takes."""
_NATIVE = 32  # side of the images that the weights are judged on
_HELD_OUT = 512
_PARTS = 8  # in which the held-out images are judged


class _Source(NamedTuple):
  """Where images come from."""

  name: str
  read: Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> crops uint8 [n, h, w, 3], is_native [n]
  held_out: Callable[[], np.ndarray]  # images that are not trained on, uint8 [m, h, w, 3], m a multiple of `_PARTS`
  held_out_side: int  # their h and w
  provenance: dict[str, dict[str, Any]]  # of 'train' and 'test'


def main(argv: list[str]) -> None:
  arguments = cli.parse(argv, 'pretrain', _DESCRIPTION, 'configs/pretrain_edsr.py:small')
  config = cli.resolve_config(arguments, 'pretrain')
  if config is None:
    return
  sources = _sources(config)
  processes = cli.distributed(arguments, config.batch_size)
  cli.virtual_devices(config.batch_size // processes)
  cli.compilation_cache()
  changes = [f'--config.{name}={value}' for name, value in arguments.overrides.items() if name != 'output']
  command = ' '.join(['python -m adversarial_augment.pretrain', f'--config={arguments.config}', *changes])
  _train(config, arguments.workdir, sources, command)


def _output(config: ConfigDict, workdir: Path) -> Path:
  """Returns the file to write, after a look whether that will be possible.

  Raises:
    UserError: it is a folder, or no folder can be made around it.
  """
  if not config.output:
    return workdir / 'weights.safetensors'
  path = files.user_path(config.output, 'config.output')
  try:
    if path.is_dir():
      raise UserError(f'config.output={config.output} is a folder; name a file in it that ends in .safetensors.')
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    usable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
  except OSError as error:
    raise UserError(
      f'config.output={config.output} cannot be written ({error.strerror}); name another file.'
    ) from error
  if not usable:
    raise UserError(
      f"config.output={config.output} cannot be made in '{above}', no writable folder; name another file."
    )
  return path


def _sources(config: ConfigDict) -> list[_Source]:
  """Returns what config.dataset names, after a look whether the networks and the gates can read it.

  Raises:
    UserError: no such data set, or images of a size or number that cannot be used.
  """
  if config.corruption_net.scale == 1 and config.patch % 2:
    raise UserError(
      f'config.patch={config.patch} must be even with config.corruption_net.scale=1, which blurs by halves; try '
      f'--config.patch={config.patch + 1}.'
    )
  sources = [_source(name, config) for name in config.dataset.split('+')]
  sides = {source.name: source.held_out_side for source in sources}
  if len(set(sides.values())) > 1:
    found = ', '.join(f'{name} {side}x{side}' for name, side in sides.items())
    raise UserError(
      f'config.dataset={config.dataset} mixes images of several sizes ({found}), which are judged together; name sets '
      'of one size, or prepare one again with --size.'
    )
  return sources


def _train(config: ConfigDict, workdir: Path, sources: list[_Source], command: str) -> None:
  import jax
  import jax.numpy as jnp
  import optax

  from adversarial_augment import (
    __version__,
    corruption_nets,
    loop,
    per_example_conv,
    processes,
    run_directory,
    sharding,
    trees,
  )
  from adversarial_augment.corruption_nets import weights
  from adversarial_augment.run_log import tell
  from adversarial_augment.ssim import ssim
  from adversarial_augment.types import TrainState

  output = Path(processes.on_process_0(lambda: str(_output(config, workdir))))
  mesh = sharding.data_mesh()
  sharding.check_batch_size(mesh, config.batch_size)
  sizes = {name: config.corruption_net[name] for name in ('blocks', 'features', 'scale')}
  factory = functools.partial(corruption_nets.CORRUPTION_NETS[config.corruption_net.name], **sizes)
  raw, native = (factory(native=native, conv=per_example_conv.conv) for native in (False, True))
  schedule = optax.schedules.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, min(100, config.num_steps // 10), config.num_steps + 1
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda count: schedule(count + 1)))

  def init() -> TrainState:
    params = raw.init(jax.random.key(config.seed), jnp.zeros((1, 8, 8, 3)))
    return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params))

  def step(state: TrainState, made: np.int32, batch: tuple) -> tuple[TrainState, dict]:
    def loss_of(params):
      crops, is_native = batch
      return _loss(raw.apply, params, crops, is_native, sizes['scale'], config.reconstruction_weight)

    loss, gradient = jax.value_and_grad(loss_of)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    finite = (state.step == made) & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(params))
    metrics = {'loss': loss, 'learning_rate': schedule(state.step + 1), 'finite': finite}
    return trees.where(finite, TrainState(state.step + 1, params, {}, opt_state), state), metrics

  held_out = jnp.asarray(np.concatenate([source.held_out() for source in sources])) / 255.0
  similarity = jax.jit(lambda params, images: ssim(images, native.apply(params, images)))

  def measure(params) -> dict[str, float]:
    values = np.concatenate([similarity(params, part) for part in jnp.split(held_out, _PARTS)])
    return {'ssim_mean': float(values.mean()), 'ssim_min': float(values.min()), 'num_images': len(values)}

  def evaluate(state: TrainState, step: int, poll: Callable) -> None:
    poll()
    params = jax.device_get(state.params)

    def write() -> None:
      result = measure(params) | {'step': step, 'data': data}
      run_directory.write_json(workdir / 'results' / 'pretrain.json', result)
      tell(f'step {step}: SSIM(x, c_phi(x)) on unseen images: mean {result["ssim_mean"]:.4f}')

    processes.on_process_0(write)

  def read(step: int) -> tuple:
    source = sources[step % len(sources)]
    crops, is_native = source.read(step)
    part = np.array_split(np.arange(config.batch_size), jax.process_count())[jax.process_index()]
    return sharding.shard_batch(mesh, (crops[part], is_native[part]))

  jitted = jax.jit(step, donate_argnums=0)
  data = {source.name: source.provenance for source in sources}
  hashes = {
    f'{name} {split}': about['sha256'] for name, of in data.items() for split, about in of.items() if 'sha256' in about
  }
  with loop.open_run(workdir, config, hashes) as stop:
    (workdir / 'results').mkdir(exist_ok=True)
    state = jax.jit(init, out_shardings=sharding.replicated(mesh))()
    first = jax.device_get(trees.block_norms(state.params))
    job = loop.Job(
      num_steps=config.num_steps,
      images_per_step=config.batch_size,
      keep_checkpoints=2,
      tensorboard=False,
      step=jitted,
      read=read,
      describe=lambda step, values: {'step': step, **values},
      evaluate=evaluate,
      dump=lambda step: {'crops': sources[step % len(sources)].read(step)[0]},
    )
    state = loop.run(workdir, config, loop.resume(workdir, state), job, stop)
    if jax.process_index() != 0:
      return
    params = jax.device_get(state.params)
    result = measure(params)
    _check_gates(config, result, first, jax.device_get(trees.block_norms(params)))
    with files.storage_errors(f"write the weight file '{output}'"):
      output.parent.mkdir(parents=True, exist_ok=True)
    weights.save(output, params, {
        'network': {'name': config.corruption_net.name, **sizes}, 'data': config.dataset, 'data_provenance': data,
        'steps': config.num_steps,
        'seed': config.seed, 'command': command, 'config': json.loads(configs.to_json(config)),
        'ssim_on_unseen_images': result, 'version': __version__,
    })  # fmt: skip
    print(f'wrote {output}: mean SSIM {result["ssim_mean"]:.4f} on {result["num_images"]} images not trained on')


def _loss(apply: Callable, params: Any, crops: Any, is_native: Any, scale: int, weight: float) -> Any:
  """The loss of a batch of uint8 crops; `is_native` marks a batch whose crops are what AdA will corrupt."""
  import jax
  import jax.numpy as jnp

  crops = crops / jnp.float32(255)
  low = _mean_pool(crops, scale)
  if scale == 1:
    n, h, w, c = crops.shape
    blurred = jax.image.resize(_mean_pool(crops, 2), (n, h, w, c), 'bilinear')
    low = jnp.where((jnp.arange(n) % 2 == 0)[:, None, None, None], blurred, crops)
  high = apply(params, low)
  resolution = jnp.abs(high - crops).mean()
  if scale == 1:
    return resolution

  def on_native(crops):
    return jnp.abs(_mean_pool(apply(params, crops), scale) - crops).mean()

  reconstruction = jax.lax.cond(is_native[0], on_native, lambda _: jnp.abs(_mean_pool(high, scale) - low).mean(), crops)
  return resolution + weight * reconstruction


def _mean_pool(images: Any, factor: int) -> Any:
  n, h, w, c = images.shape
  return images.reshape(n, h // factor, factor, w // factor, factor, c).mean((2, 4))


def _check_gates(config: ConfigDict, result: dict, first: dict, norms: dict) -> None:
  if result['ssim_mean'] < config.accept_ssim:
    raise UserError(
      f'mean SSIM {result["ssim_mean"]:.4f} is below config.accept_ssim={config.accept_ssim}; the weights were not '
      f'written: start again with more steps in another --workdir, such as --config.num_steps={2 * config.num_steps}, '
      'or run the same command with a lower config.accept_ssim.'
    )
  for module, blocks in norms.items():
    for name, norm in blocks.items():
      if not 0 < norm <= 50 * first[module][name]:
        raise UserError(
          f"the norm of block '{module}/{name}' went from {first[module][name]:.3g} to {norm:.3g}; the weights were "
          'not written: start again with a lower config.learning_rate and another --workdir.'
        )


def _source(name: str, config: ConfigDict) -> _Source:
  if name == 'photographs':
    return _photographs(config)
  from adversarial_augment import datasets, ssim
  from adversarial_augment.datasets import sampling

  train, test = splits = [datasets.load(name, split, config.data_dir) for split in ('train', 'test')]
  factor = max(2, config.corruption_net.scale)  # scale 1 blurs by halves
  for split in splits:
    height, width, _ = split.image_shape
    if height != width or height % factor or height < ssim.WINDOW or split.image_shape != train.image_shape:
      raise UserError(
        f'config.dataset={name} has images of {height}x{width}, but they must be square, of one size, at least '
        f'{ssim.WINDOW} pixels a side, and a multiple of {factor} (config.corruption_net.scale='
        f'{config.corruption_net.scale}); prepare them again, for example with --size=32.'
      )
  if test.num_examples < _PARTS:
    raise UserError(
      f'config.dataset={name} has {test.num_examples} test images, but at least {_PARTS} are needed to judge the '
      'weights; add some, or name another data set.'
    )

  def read(step: int) -> tuple[np.ndarray, np.ndarray]:
    images = train.read(sampling.indices(config.seed, step, train.num_examples, config.batch_size)).images
    return _turn(images, np.random.default_rng([config.seed, step])), np.ones(config.batch_size, bool)

  count = min(_HELD_OUT, test.num_examples // _PARTS * _PARTS)
  held_out = lambda: test.read(np.arange(count)).images
  provenance = {part: {'name': name, **split.provenance} for part, split in (('train', train), ('test', test))}
  return _Source(name, read, held_out, test.image_shape[0], provenance)


def _photographs(config: ConfigDict) -> _Source:
  from adversarial_augment.datasets import photographs
  from adversarial_augment.datasets.fingerprint import fingerprint
  from adversarial_augment.types import Batch

  photos = [photo for _, photo in photographs.load()]
  regions = {split: [photographs.region(photo, split) for photo in photos] for split in ('train', 'test')}
  size = config.patch * config.corruption_net.scale

  def crops(split: str, rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    large = [region for region in regions[split] if min(region.shape[:2]) >= size]
    if not large:
      raise UserError(f'config.patch={config.patch} is too large for the photographs; try 32.')
    result = np.empty((n, size, size, 3), np.uint8)
    for i, index in enumerate(rng.integers(len(large), size=n)):
      top, left = (rng.integers(side - size + 1) for side in large[index].shape[:2])
      result[i] = large[index][top : top + size, left : left + size]
    return result

  def held_out() -> np.ndarray:  # half of them as photographed, half three times smaller, as in sets of small images
    rng = np.random.default_rng(0)
    fine = crops('test', rng, _HELD_OUT // 2, _NATIVE)
    coarse = crops('test', rng, _HELD_OUT // 2, 3 * _NATIVE)
    coarse = coarse.reshape(-1, _NATIVE, 3, _NATIVE, 3, 3).mean((2, 4)).round().astype(np.uint8)
    return np.concatenate([fine, coarse])

  def read(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([config.seed, step])
    return _turn(crops('train', rng, config.batch_size, size), rng), np.zeros(config.batch_size, bool)

  def about(split: str) -> dict[str, Any]:
    unlabelled = (Batch(region[None], np.empty(0, np.int32)) for region in regions[split])
    return {'name': 'photographs', 'split': split, 'origin': 'embedded', 'sha256': fingerprint(unlabelled)}

  crops('train', np.random.default_rng(0), 1, size)  # reports a patch that is too large before anything starts
  return _Source('photographs', read, held_out, _NATIVE, {split: about(split) for split in regions})


def _turn(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Turns and mirrors every image at random."""
  turned = [np.rot90(image, k) for image, k in zip(images, rng.integers(4, size=len(images)), strict=True)]
  flips = rng.random(len(images)) < 0.5
  return np.stack([image[:, ::-1] if flip else image for image, flip in zip(turned, flips, strict=True)])


if __name__ == '__main__':
  cli.run(main)
