"""Trains a corruption network: python -m adversarial_augment.pretrain --config=configs/pretrain_edsr.py

What each network is trained for is in pretraining/objectives.py. The weights are written, with their provenance, only
if they pass the gates: mean SSIM and PSNR of x and c_phi(x) on images that were not trained on, every block's norm
above zero, and none beyond 50 times its first value. A finished run can be judged again with lower bars, or write to
another file.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import cli
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.config import command_line
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import devices, launch
from adversarial_augment.pretraining import sources as image_sources
from adversarial_augment.storage import files, sharing

_DESCRIPTION = """Trains a corruption network (an image-to-image network such as EDSR) for AdversarialAugment.

Writes a .safetensors file that config.corruption_net.weights of adversarial_augment.train takes."""


def main(argv: list[str]) -> None:
  arguments = command_line.parse(argv, 'pretrain', _DESCRIPTION, 'configs/pretrain_edsr.py:small')
  processes = launch.find(arguments)
  with launch.together(processes) as shared:
    config = command_line.resolve_config(arguments, 'pretrain')
    if config is None:
      return
    with progress.stage('loading JAX'):
      from adversarial_augment.parallel import sharding
      from adversarial_augment.run import loop
    num_local = launch.share_of_batch(processes, config.batch_size)
    if processes is None:  # of several, process 0 alone looks at the workdir
      files.check_folder(arguments.workdir, '--workdir')
      loop.check_run(arguments.workdir, config, {})
    with progress.stage(f'reading the images of {config.dataset}'):
      sources = _sources(config)
    shared |= launch.facts('pretrain', configs.to_json(config), {'data': _hashes(sources)})
  num_devices = devices.virtual_devices(num_local)
  if processes is None:
    _output(config, arguments.workdir)
    loop.check_run(arguments.workdir, config, _hashes(sources))
    if num_devices is not None:
      sharding.check_batch_size(num_devices, config.batch_size)
  devices.compilation_cache()
  changes = [f'--config.{name}={value}' for name, value in arguments.overrides.items() if name != 'output']
  command = sharing.command(
    'adversarial_augment.pretrain', [f'--config={arguments.config}', *changes], arguments.workdir
  )
  _train(config, arguments.workdir, sources, command)


def _output(config: ConfigDict, workdir: Path) -> Path:
  """Returns the file to write, after trying to write beside it, or in the folder that will hold its folders.

  Raises:
    UserError: it is a folder, or no folder can be made around it.
    StorageError: nothing can be written there.
  """
  if not config.output:
    return workdir / 'weights.safetensors'
  path = files.user_path(config.output, 'config.output')
  try:
    if path.is_dir():
      raise UserError(f'config.output={config.output} is a folder; name a file in it that ends in .safetensors.')
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    usable = above.is_dir()
  except OSError as error:
    raise UserError(
      f'config.output={config.output} cannot be written ({error.strerror}); name another file.'
    ) from error
  if not usable:
    raise UserError(
      f"config.output={config.output} cannot be made in '{above}', which is no folder; name another file."
    )
  with files.storage_errors(f'write config.output={config.output}'):
    files.try_to_write(above)
  return path


def _sources(config: ConfigDict) -> list[image_sources.Source]:
  """Returns what config.dataset names."""
  wanted = image_sources.Wanted(
    batch_size=config.batch_size,
    seed=config.seed,
    patch=config.patch,
    scale=configs.network_sizes(config).get('scale'),
    data_dir=config.data_dir,
  )
  return image_sources.open_all(config.dataset, wanted)


def _hashes(sources: list[image_sources.Source]) -> dict[str, str]:
  """Returns what data.json says of the data."""
  return {
    f'{source.name} {split}': about['sha256']
    for source in sources
    for split, about in source.provenance.items()
    if 'sha256' in about
  }


def _train(config: ConfigDict, workdir: Path, sources: list[image_sources.Source], command: str) -> None:
  import jax
  import jax.numpy as jnp
  import optax

  from adversarial_augment import __version__, threefry
  from adversarial_augment.attacks import trees
  from adversarial_augment.corruption_nets import weights
  from adversarial_augment.parallel import platforms, processes, sharding
  from adversarial_augment.pretraining import objectives
  from adversarial_augment.run import loop
  from adversarial_augment.run.run_log import tell
  from adversarial_augment.storage import run_directory
  from adversarial_augment.types import TrainState

  output = Path(processes.on_process_0(lambda: str(_output(config, workdir))))
  mesh = sharding.data_mesh()
  sharding.check_batch_size(mesh.size, config.batch_size)
  name, sizes = config.corruption_net.name, configs.network_sizes(config)
  objective = objectives.make(name, sizes, reconstruction_weight=config.reconstruction_weight)
  schedule = optax.schedules.warmup_cosine_decay_schedule(
    0.0, config.learning_rate, min(100, config.num_steps // 10), config.num_steps + 1
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda count: schedule(count + 1)))

  def init() -> TrainState:
    params, rest = objective.init(threefry.key(config.seed))
    return TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params))

  def step(state: TrainState, made: np.int32, batch: tuple) -> tuple[TrainState, dict]:
    crops, is_native = batch
    key = jax.random.fold_in(threefry.key(config.seed), state.step)

    def loss_of(params):
      return objective.loss(params, state.model_state, key, crops / jnp.float32(255), is_native)

    (loss, rest), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state)
    params = objective.settle(optax.apply_updates(state.params, updates), rest)
    finite = (state.step == made) & jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(params))
    metrics = {'loss': loss, 'learning_rate': schedule(state.step + 1), 'finite': finite}
    return trees.where(finite, TrainState(state.step + 1, params, rest, opt_state), state), metrics

  held_out = jnp.asarray(np.concatenate([source.held_out() for source in sources])) / 255.0
  measure_part = jax.jit(objective.measure)

  def measure(params) -> dict[str, float]:
    parts = [
      measure_part(params, threefry.key(i), part) for i, part in enumerate(jnp.split(held_out, image_sources.PARTS))
    ]
    values = {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}
    means = {f'{metric}_mean': float(of.mean()) for metric, of in values.items()}
    return means | {'ssim_min': float(values['ssim'].min()), 'num_images': len(held_out)}

  def evaluate(state: TrainState, step: int, poll: Callable) -> None:
    poll()
    params = jax.device_get(state.params)

    def write() -> None:
      result = measure(params) | {'step': step, 'data': data}
      run_directory.write_json(workdir / 'results' / 'pretrain.json', result)
      tell(f'step {step}: {_said(result)}')

    processes.on_process_0(write)

  def read(step: int) -> tuple:
    source = sources[step % len(sources)]
    crops, is_native = source.read(step)
    part = np.array_split(np.arange(config.batch_size), jax.process_count())[jax.process_index()]
    return sharding.shard_batch(mesh, (crops[part], is_native[part]))

  jitted = platforms.jit(mesh, step, donate_argnums=0)
  data = {source.name: source.provenance for source in sources}
  with loop.open_run(workdir, config, _hashes(sources)) as stop:
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
    state = loop.resume(workdir, state)
    if int(state.step) < config.num_steps:
      tell('compiling the train step...')
    state = loop.run(workdir, config, state, job, stop)
    if jax.process_index() != 0:
      return
    params = jax.device_get(state.params)
    with progress.stage('measuring on images not trained on', tell):
      result = measure(params)
    _check_gates(config, result, first, jax.device_get(trees.block_norms(params)))
    with files.storage_errors(f"write the weight file '{output}'"):
      output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        'network': {'name': name, **sizes}, 'data': config.dataset, 'data_provenance': data,
        'steps': config.num_steps,
        'seed': config.seed, 'command': command, 'config': json.loads(configs.to_json(config)),
        'on_unseen_images': result, 'version': __version__,
    }  # fmt: skip
    weights.save(output, params, sharing.relative(about, workdir))
    print(f'wrote {output}: {_said(result)}')


def _said(result: dict) -> str:
  means = [f'{key.removesuffix("_mean")} {value:.4g}' for key, value in result.items() if key.endswith('_mean')]
  return f'means over {result["num_images"]} images not trained on, x against c_phi(x): {", ".join(means)}'


def _check_gates(config: ConfigDict, result: dict, first: dict, norms: dict) -> None:
  for bar, metric, unit in (('accept_ssim', 'SSIM', ''), ('accept_psnr', 'PSNR', ' dB')):
    found = result[f'{metric.lower()}_mean']
    if config[bar] is not None and found < config[bar]:
      raise UserError(
        f'mean {metric} {found:.4f}{unit} is below config.{bar}={config[bar]}; the weights were not written: start '
        f'again with more steps in another --workdir, such as --config.num_steps={2 * config.num_steps}, or run the '
        f'same command with a lower config.{bar}.'
      )
  for module, blocks in norms.items():
    for name, norm in blocks.items():
      if not 0 < norm <= 50 * first[module][name]:
        raise UserError(
          f"the norm of block '{module}/{name}' went from {first[module][name]:.3g} to {norm:.3g}; the weights were "
          'not written: start again with a lower config.learning_rate and another --workdir.'
        )


if __name__ == '__main__':
  cli.run(
    main,
    less_memory='lower config.batch_size or config.patch, in another --workdir; or end other programs on the device',
  )
