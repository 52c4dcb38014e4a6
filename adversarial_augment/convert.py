"""Converts a published PyTorch checkpoint of EDSR or the CAE to a weight file of this package; needs no PyTorch.

python -m adversarial_augment.convert edsr_baseline_x4.pt edsr_baseline_x4.safetensors
python -m adversarial_augment.convert --net=cae model_final.state cae.safetensors
"""

from collections.abc import Sequence
import os
from pathlib import Path

from adversarial_augment import cli
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact


def main(argv: Sequence[str]) -> None:
  """Runs the command line; see `--help`."""
  parser = cli.Parser(
    prog='python -m adversarial_augment.convert',
    description='Converts a PyTorch checkpoint of EDSR (baseline family, scale 1, 2 or 4) or of the CAE to a weight '
    'file for config.corruption_net.weights.\nNothing in the checkpoint is executed.',
  )
  parser.add_argument('source', metavar='CHECKPOINT.pt', help='checkpoint of any PyTorch version')
  parser.add_argument('target', type=Path, metavar='OUT.safetensors', help='output file')
  parser.add_argument('--net', default='edsr', choices=('edsr', 'cae'), help='network of the checkpoint')
  parser.add_argument('--dtype', default='float32', choices=('float16', 'float32'), help='data type of the weight file')
  parser.add_argument('--debug', action='store_true', help='show tracebacks')
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


if __name__ == '__main__':
  cli.run(main, kept='no weight file was written; run the same command again')
