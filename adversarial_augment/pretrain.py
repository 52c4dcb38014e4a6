"""Trains a corruption network: python -m adversarial_augment.pretrain --config=configs/pretrain_edsr.py

What each network is trained for is in pretraining/objectives.py. The weights are written, with their provenance, only
if they pass the gates: mean SSIM and PSNR of x and c_phi(x) on images that were not trained on, every block's norm
above zero, and none beyond 50 times its first value. A finished run can be measured again with lower bars, or write to
another file.
"""

from collections.abc import Callable
import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from adversarial_augment import __version__, cli
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.config import command_line, rules
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import devices, launch
from adversarial_augment.pretraining.sources import Source, Wanted, open_all
from adversarial_augment.run import supervisor
from adversarial_augment.storage import artifact, files, sharing
from adversarial_augment.types import TrainState

if TYPE_CHECKING:
  from adversarial_augment.pretraining.steps import Pretraining
  from adversarial_augment.run.loop import Job

_KEEP = 2  # checkpoints
_LARGEST_GROWTH = 50  # of the norm of a block
_DESCRIPTION = """Trains a corruption network (an image-to-image network such as EDSR) for AdversarialAugment.

Writes a .safetensors file that config.corruption_net.weights of adversarial_augment.train takes."""


def main(argv: list[str]) -> int | None:
  arguments = command_line.parse(argv, 'pretrain', _DESCRIPTION, 'configs/pretrain_edsr.py:small')
  if arguments.max_restarts:
    command = command_line.unsupervised('pretrain', argv)
    return supervisor.run(command, arguments.workdir, arguments.max_restarts)
  processes = launch.find(arguments)
  with launch.together(processes) as shared:  # what fails here fails on all processes, so that none waits
    config = command_line.resolve_config(arguments, 'pretrain')
    if config is None:
      return None
    count = launch.number(processes)
    rules.check_batch(config.batch_size, count, 'processes of the run')
    with progress.stage('loading JAX'):
      from adversarial_augment.run import mirroring, opening
    start = mirroring.fetch(arguments, config) if launch.is_first(processes) else None
    if processes is None:  # of several, process 0 alone looks at the workdir
      files.check_folder(arguments.workdir, '--workdir')
      opening.check_run(arguments.workdir, config, {})
    with progress.stage(f'reading the images of {config.dataset}'):
      wanted = {name: config[name] for name in ('batch_size', 'seed', 'patch', 'data_dir')}
      sources = open_all(config.dataset, Wanted(scale=configs.network_sizes(config).get('scale'), **wanted))
    shared |= launch.facts('pretrain', configs.to_json(config), {'data': _hashes(sources)})
  num_devices = devices.virtual_devices(config.batch_size // count)
  if processes is None:
    _output(config, arguments.workdir)
    opening.check_run(arguments.workdir, config, _hashes(sources))
    if num_devices is not None:
      rules.check_batch(config.batch_size, num_devices, 'devices')
  mirroring.compilation_cache(arguments)
  changes = [f'--config.{name}={value}' for name, value in arguments.overrides.items() if name != 'output']
  flags = [f'--config={arguments.config}', *changes]
  with mirroring.copying(arguments, config, start, _KEEP) as saved:
    _train(
      config,
      arguments.workdir,
      sources,
      saved,
      sharing.command('adversarial_augment.pretrain', flags, arguments.workdir),
    )
  return None


def _output(config: ConfigDict, workdir: Path) -> Path:
  """Returns the file to write, after a test write beside it, or in the folder that will hold its folders."""
  if not config.output:
    return workdir / 'weights.safetensors'
  path = files.user_path(config.output, 'config.output')
  if os.path.isdir(path):
    raise UserError(f'config.output={config.output} is a folder; name a file in it that ends in .safetensors.')
  files.check_folder(path.parent, 'config.output')
  with artifact.storage_errors(f'write config.output={config.output}'):
    files.try_to_write(next(folder for folder in path.absolute().parents if folder.is_dir()))
  return path


def _hashes(sources: list[Source]) -> dict[str, str]:
  """Returns what data.json says of the data."""
  return {
    f'{source.name} {split}': about['sha256']
    for source in sources
    for split, about in source.provenance.items()
    if 'sha256' in about
  }


def _train(
  config: ConfigDict, workdir: Path, sources: list[Source], saved: Callable[[int], None], command: str
) -> None:
  """Trains, or goes on with what `workdir` holds; writes the weights if they pass the gates.

  `saved` is that of `Job`.
  """
  import jax

  from adversarial_augment.attacks import trees
  from adversarial_augment.corruption_nets import weights
  from adversarial_augment.parallel import processes, sharding
  from adversarial_augment.pretraining import steps
  from adversarial_augment.run import loop, opening

  output = Path(processes.on_process_0(lambda: str(_output(config, workdir))))
  mesh = sharding.data_mesh()
  rules.check_batch(config.batch_size, mesh.size, 'devices')
  parts = steps.build(
    config.corruption_net.name,
    configs.network_sizes(config),
    **{name: config[name] for name in ('reconstruction_weight', 'learning_rate', 'num_steps', 'batch_size', 'seed')},
  )
  measure = steps.Measure(parts.objective, sources)
  with opening.open_run(workdir, config, _hashes(sources)) as stop:
    (workdir / 'results').mkdir(exist_ok=True)
    state = jax.jit(functools.partial(steps.init_state, parts), out_shardings=sharding.replicated(mesh))()
    first_norms = jax.device_get(trees.block_norms(state.params))
    state = opening.resume(workdir, state)
    if int(state.step) < config.num_steps:
      progress.log('compiling the train step...')
    job = _job(config, workdir, parts, mesh, sources, measure)._replace(saved=saved)
    state = loop.run(workdir, config, state, job, stop)
    params = jax.device_get(state.params)

    def write() -> None:
      with progress.stage('measuring on images not trained on', progress.log):
        result = measure(params)
      _check_gates(config, result, first_norms, jax.device_get(trees.block_norms(params)))
      with artifact.storage_errors(f"write the weight file '{output}'"):
        output.parent.mkdir(parents=True, exist_ok=True)
      weights.save(output, params, sharing.relative(_about(config, sources, result, command), workdir))
      print(f'wrote {output}: {steps.describe(result)}')

    processes.on_process_0(write)


def _job(
  config: ConfigDict, workdir: Path, parts: 'Pretraining', mesh: Any, sources: list[Source], measure: Callable
) -> 'Job':
  """Returns what the loop does."""
  import jax

  from adversarial_augment.parallel import platforms, processes
  from adversarial_augment.pretraining import steps
  from adversarial_augment.run.loop import Job

  def evaluate(state: TrainState, step: int, poll: Callable[[], None]) -> None:
    poll()
    params = jax.device_get(state.params)

    def write() -> None:
      data = {source.name: source.provenance for source in sources}
      result = measure(params) | {'step': step, 'data': data}
      artifact.write_json(workdir / 'results' / 'pretrain.json', result)
      progress.log(f'step {step}: {steps.describe(result)}')

    processes.on_process_0(write)

  return Job(
    num_steps=config.num_steps,
    images_per_step=config.batch_size,
    keep_checkpoints=_KEEP,
    tensorboard=False,
    step=jax.jit(platforms.for_mesh(mesh, functools.partial(steps.train_step, parts)), donate_argnums=0),
    read=functools.partial(steps.read_batch, parts, mesh, sources),
    describe=lambda step, values: {'step': step, **values},
    evaluate=evaluate,
    dump=lambda step: {'crops': sources[step % len(sources)].read(step)[0]},
  )


def _check_gates(config: ConfigDict, result: dict, first: dict, norms: dict) -> None:
  """Raises UserError for weights too far from the identity, or whose blocks have vanished or exploded since `first`."""
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
      if not 0 < norm <= _LARGEST_GROWTH * first[module][name]:
        raise UserError(
          f"the norm of block '{module}/{name}' went from {first[module][name]:.3g} to {norm:.3g}; the weights were "
          'not written: start again with a lower config.learning_rate and another --workdir.'
        )


def _about(config: ConfigDict, sources: list[Source], result: dict, command: str) -> dict[str, Any]:
  """Returns the provenance of the weights."""
  return {
    'network': {'name': config.corruption_net.name, **configs.network_sizes(config)}, 'data': config.dataset,
    'data_provenance': {source.name: source.provenance for source in sources}, 'steps': config.num_steps,
    'seed': config.seed, 'command': command, 'config': json.loads(configs.to_json(config)),
    'on_unseen_images': result, 'version': __version__,
  }  # fmt: skip


if __name__ == '__main__':
  cli.run(
    main,
    less_memory='lower config.batch_size or config.patch, in another --workdir; or end other programs on the device',
  )
