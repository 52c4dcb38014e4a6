"""Converts a PyTorch checkpoint of a corruption network or a classifier to a file of this package; needs no PyTorch.

python -m adversarial_augment.convert edsr_baseline_x4.pt edsr_baseline_x4.safetensors
python -m adversarial_augment.convert --net=cae model_final.state cae.safetensors
python -m adversarial_augment.convert classifier --from=model_best.pth.tar --output=augmix.safetensors
"""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import shlex
from typing import Any

from adversarial_augment import cli
from adversarial_augment import config as configs
from adversarial_augment.config.tables import TRAIN
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files, tensor_files

_MAX_BYTES = 8 << 30  # of a state dict


_CLASSIFIER = """Converts a PyTorch state dict of a classifier to a file for config.init_from.

Known classes: RobustBench's PreActResNet (with its last norm), ResNet and WideResNet, AugMix's WideResNet and
CifarResNeXt, and PAT's CifarAlexNet.
Architecture, sizes and number of classes follow from the keys. Nothing in the checkpoint is executed."""


def main(argv: Sequence[str]) -> None:
  """Runs the command line; see `--help`."""
  if argv and argv[0] == 'classifier':
    _classifier(argv[1:])
    return
  parser = cli.Parser(
    prog='python -m adversarial_augment.convert',
    description='Converts a PyTorch checkpoint of EDSR (baseline family, scale 1, 2 or 4) or of the CAE to a weight '
    'file for config.corruption_net.weights.\nNothing in the checkpoint is executed.\n\nFor a classifier, see: '
    'python -m adversarial_augment.convert classifier --help',
  )
  parser.add_argument('source', metavar='CHECKPOINT.pt', help='checkpoint of any PyTorch version')
  parser.add_argument('target', type=Path, metavar='OUT.safetensors', help='output file')
  parser.add_argument('--net', default='edsr', choices=('edsr', 'cae'), help='network of the checkpoint')
  parser.add_argument('--dtype', default='float32', choices=('float16', 'float32'), help='data type of the weight file')
  arguments = parser.parse_args(argv)
  if not arguments.source:
    parser.error('CHECKPOINT.pt is empty; name a file')
  source = Path(arguments.source)
  if arguments.target.suffix != '.safetensors':
    parser.error(f"the name of the weight file must end in .safetensors, not '{arguments.target.name}'")
  if not os.path.isdir(arguments.target.parent):
    parser.error(f"OUT.safetensors='{arguments.target}' must be in an existing folder; create it, or name another one")

  if os.path.exists(source) and os.path.exists(arguments.target) and os.path.samefile(source, arguments.target):
    parser.error(f"OUT.safetensors='{arguments.target}' is the checkpoint itself; name another file to write")

  from adversarial_augment.corruption_nets import torch_checkpoint, torch_layouts, weights

  state = torch_checkpoint.read(source)
  try:
    params, sizes = torch_layouts.FROM_TORCH[arguments.net](state)
  except UserError as error:
    raise UserError(f"Cannot convert '{source}': {error}") from error
  provenance = {
    'network': {'name': arguments.net, **sizes},
    'source': source.name,
    'source_sha256': artifact.sha256_of(source),
    'command': 'python -m adversarial_augment.convert',
  }
  weights.save(arguments.target, params, provenance, dtype=arguments.dtype)
  size = ', '.join(f'{key} {value}' for key, value in sizes.items())
  flags = {'name': arguments.net, 'weights': arguments.target} | sizes
  use = ' '.join(f'--config.corruption_net.{name}={value}' for name, value in flags.items())
  print(f'Wrote {arguments.target}: {arguments.net}, {size}. Use it with {use}')


def _classifier(argv: Sequence[str]) -> None:
  parser = cli.Parser(prog='python -m adversarial_augment.convert classifier', description=_CLASSIFIER)
  parser.add_argument(
    '--from', dest='source', required=True, metavar='FILE', help='checkpoint of any PyTorch version, or .safetensors'
  )
  parser.add_argument('--output', required=True, metavar='FILE.safetensors', help='output file')
  parser.add_argument('--mean', metavar='R,G,B', help='means by which PyTorch normalised images in [0, 1]; 0 for none')
  parser.add_argument('--std', metavar='R,G,B', help='standard deviations likewise; 1 for none')
  parser.add_argument(
    '--shortcut',
    choices=('preact', 'input'),
    help='of PreActResNet: preact for PreActBlockV2 and bottlenecks (default), input for PreActBlock',
  )
  arguments = parser.parse_args(argv)
  source = files.user_path(arguments.source, '--from')
  target = files.output_file(arguments.output, '--output')
  if target.suffix != '.safetensors':
    parser.error(f"--output='{target}' must end in .safetensors")
  if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
    parser.error(f"--output='{target}' is the checkpoint itself; name another file to write")
  if (arguments.mean is None) != (arguments.std is None):
    parser.error('--mean and --std belong together; give both')
  given = {name: _channels(name, text) for name in ('mean', 'std') if (text := getattr(arguments, name)) is not None}

  from adversarial_augment import inference
  from adversarial_augment.classifiers import torch_layouts, weight_files
  from adversarial_augment.corruption_nets import torch_checkpoint
  from adversarial_augment.exporting import card
  from adversarial_augment.training import recipe
  from adversarial_augment.types import TrainState

  state = _read_safetensors(source) if source.suffix == '.safetensors' else torch_checkpoint.read(source)
  config = configs.base_config()
  config.dataset = 'unknown'  # the file does not say
  try:
    found = torch_layouts.from_torch(state)
    name = found.architecture['name']
    if given and found.normalisation:
      raise UserError('it holds the mean and standard deviation of images; leave --mean and --std out.')
    if not given and not found.normalisation:
      raise UserError(
        'it does not say how images were normalised; add --mean=0.4914,0.4822,0.4465 --std=0.2471,0.2435,0.2616 where '
        "by CIFAR-10's statistics, --mean=0.5 --std=0.5 for AugMix's models, or --mean=0 --std=1 where not at all."
      )
    if arguments.shortcut and name != 'preact_resnet':
      raise UserError(f'--shortcut={arguments.shortcut} is of PreActResNet, and the file holds {name}; leave it out.')
    config.classifier.update({**found.architecture, **found.normalisation, **given})
    config.classifier.shortcut = arguments.shortcut or 'preact'
    configs.validate(config)
  except UserError as error:
    raise UserError(f"Cannot convert '{source}': {error}") from error
  restored = inference.Restored(0, '', '', TrainState(None, found.params, found.model_state, None))  # type: ignore[arg-type]
  size = 'that of the images of its training, which the checkpoint does not name'
  about = card.of_network(inference.Classifier(config, found.num_classes, restored, 1), size)
  sizes = '{name}-{depth}, width {width}'.format_map(found.architecture)
  about |= {
    'title': f'{sizes}, converted from {source.name}',
    'source': {'file': source.name, 'sha256': artifact.sha256_of(source), 'command': 'adversarial_augment.convert'},
    'license': 'that of the checkpoint',
  }
  content = weight_files.encode(found.params, found.model_state, json.dumps(about, sort_keys=True, allow_nan=False))
  with artifact.storage_errors(f"write '{target}'"):
    artifact.replace(target, content)
  flags = {'init_from': target, **{f'classifier.{field}': value for field, value in found.architecture.items()}}
  if config.classifier.shortcut != 'preact':
    flags['classifier.shortcut'] = config.classifier.shortcut
  if (used := recipe.normalisation(config)) != recipe.normalisation(configs.base_config()):
    flags |= {f'classifier.{field}': ','.join(map(str, values)) for field, values in used.items()}
  use = shlex.join(f'--config.{field}={value}' for field, value in flags.items())
  print(f'Wrote {target}: {sizes}, {found.num_classes} classes. Start from it with {use}')
  if name == 'preact_resnet' and arguments.shortcut is None:
    print('note: its blocks are taken as PreActBlockV2 or PreActBottleneck; for PreActBlock, add --shortcut=input')


def _channels(name: str, text: str) -> tuple[float, ...]:
  """Returns the three numbers in a flag, which may have one for all channels."""
  kind = TRAIN[f'classifier.{name}'].kind
  try:
    values = tuple(map(float, text.split(',')))
  except ValueError:
    values = ()
  values = 3 * values if len(values) == 1 else values
  if not kind.accepts(values):
    raise UserError(f"--{name}='{text}' must be {kind.expected.removesuffix(', or none')}, or one for all channels.")
  return values


def _read_safetensors(path: Path) -> dict[str, Any]:
  dtypes = ('float16', 'float32', 'float64', 'int32', 'int64')
  return tensor_files.read(path, _MAX_BYTES, dtypes, 'save it again in one of these')[0]


if __name__ == '__main__':
  cli.run(main, kept='no weight file was written; run the same command again')
