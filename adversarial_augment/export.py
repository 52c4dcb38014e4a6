"""Writes a trained classifier for other programs: python -m adversarial_augment.export --workdir=DIR

classifier.safetensors has the parameters and statistics in this package's layout, classifier_torch.py a PyTorch module
that needs nothing else, with its weights in torch_state_dict.safetensors, classifier.onnx a model for onnxruntime, and
classifier.jax_export a program that JAX runs, and differentiates, without this package. card.json describes the
classifier and how to load each file.
"""

import argparse
from collections.abc import Sequence
import hashlib
from pathlib import Path

from adversarial_augment import cli, inference
from adversarial_augment.checks import lookup
from adversarial_augment.cli import progress, streams
from adversarial_augment.errors import UserError
from adversarial_augment.exporting.formats import FORMATS, Encoded
from adversarial_augment.storage import artifact, files

CARD = 'card.json'
# The card is removed first: it describes the others.
_FILES = (CARD, *dict.fromkeys(file for form in FORMATS.values() for file in form.files))

_DESCRIPTION = """Exports the newest intact checkpoint of a run in formats for other programs.

--to=NAMES (default: all but robustbench whose package is installed; the others are reported):
  safetensors   classifier.safetensors: parameters and running statistics in this package's layout
  torch         classifier_torch.py: source of the module; reads torch_state_dict.safetensors; no pickle
  onnx          classifier.onnx: float32, any batch and image size; writing it needs the package onnx
  jax_export    classifier.jax_export: program with gradients; runs in JAX on CPU, GPU, TPU without this package
  robustbench   torch, and robustbench_*.json: claims for the leaderboard, from the results of the run

card.json describes the classifier, its measured accuracy, and how to load each file."""


def main(argv: Sequence[str]) -> None:
  """Runs the command line; see `--help`."""
  arguments = _parser().parse_args(argv)
  named = None if arguments.to is None else arguments.to.split(',')
  for name in named or ():
    lookup(FORMATS, name, '--to').check()
  workdir = files.user_path(arguments.workdir, '--workdir')
  inference.read_config(workdir, streams.say)  # or there is nothing to export
  if arguments.output == '':
    raise UserError('--output is empty; name a folder, or omit the flag.')
  output = files.user_path(arguments.output, '--output') if arguments.output is not None else workdir / 'export'
  files.check_folder(output, '--output')
  with artifact.storage_errors(f"look into '{output}'"):
    present = [name for name in _FILES if (output / name).exists()]
  if present and not arguments.overwrite:
    raise UserError(f"'{output}' already holds {present[0]}; replace it with --overwrite, or name another --output.")
  with progress.stage('exporting the classifier'):
    lines = export(inference.load_classifier(workdir), workdir, output, named)
  for line in lines:
    print(line, flush=True)


def export(
  classifier: inference.Classifier, workdir: Path, output: Path, formats: Sequence[str] | None = None
) -> list[str]:
  """Writes the classifier of a run and its card to a folder, instead of the files of an earlier export.

  `formats` are names in `FORMATS`; None: all that can represent the classifier. A UserError says that one that was
  requested cannot, and nothing is written. Returns one line per file, and per format that was left out.
  """
  from adversarial_augment.exporting import card

  content = card.make(workdir, classifier)
  encoded: dict[str, Encoded] = {}
  refused: dict[str, str] = {}
  for name in formats or [name for name, form in FORMATS.items() if not form.when_named]:
    try:
      FORMATS[name].check()
      encoded |= FORMATS[name].encode(classifier, content)
    except UserError as error:
      if formats:
        raise UserError(f'{error} Omit {name} from --to.') from error
      refused[FORMATS[name].files[0]] = str(error)
  described = {
    file: {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest(), 'load': code, **about}
    for file, (data, code, about) in encoded.items()
  }
  with artifact.storage_errors(f"write in '{output}'"):
    output.mkdir(parents=True, exist_ok=True)
    for file in _FILES:
      (output / file).unlink(missing_ok=True)
    for file, (data, *_) in encoded.items():
      artifact.replace(output / file, data)
  artifact.write_json(output / CARD, {**content, 'files': described, 'not_written': refused})
  written = [f'{output / file}: {len(data):,} bytes' for file, (data, *_) in encoded.items()]
  return [*written, str(output / CARD), *(f'not written: {file}: {reason}' for file, reason in refused.items())]


def _parser() -> argparse.ArgumentParser:
  parser = cli.Parser(prog='python -m adversarial_augment.export', description=_DESCRIPTION)
  parser.add_argument('--workdir', required=True, metavar='DIR', help='working directory of the run')
  parser.add_argument('--output', metavar='DIR', help='folder to write to; default: WORKDIR/export')
  parser.add_argument('--to', metavar='NAMES', help='formats, separated by commas')
  parser.add_argument('--formats', dest='to', help=argparse.SUPPRESS)  # its name in older commands
  parser.add_argument('--overwrite', action='store_true', help='replace the files of an earlier export')
  return parser


if __name__ == '__main__':
  cli.run(main, kept='files may be missing; run the same command again with --overwrite')
