"""Weights, and folders of runs, that attack."""

from collections.abc import Callable
from pathlib import Path
import shutil
import struct
import zipfile

import numpy as np

from adversarial_augment.storage import artifact
from tests import torch_state
from tests.checkpoint_cases import reseal
from tests.hostile_archives import members
from tests.hostile_base import DEEP, ENDLESS, NESTED, ROOT, Base, case, device, endless, pipe
from tests.hostile_datasets import train

# ---- Weights.

SYSTEM = b'cposix\nsystem\n' + torch_state.tuple_of(torch_state.text('touch ran')) + b'R'
HUGE = torch_state.mapping({'x': torch_state.tensor('0', (1,), count=2**31 - 1, view=b'N')})
_META = '"__metadata__":{"format":"adversarial_augment.weights.1","sha256":"","provenance":"%s"}'
_ENDLESS = f'"x":{{"dtype":"F32","shape":[{ENDLESS // 4}],"data_offsets":[0,{ENDLESS}]}}'


def _safetensors(path: Path, header: str, size: int = 0) -> None:
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(header)) + header.encode())
    file.truncate(8 + len(header) + size)


def _weights_case(name: str, spoil: Callable[[Path], object]) -> None:
  """Both commands that read weights, by the name of their format."""

  @case(name)
  def make(folder: Path, base: Base) -> list[str]:
    file = folder / ('c.pt' if name.startswith('PyTorch') else 'w.safetensors')
    spoil(file)
    if file.suffix == '.pt':
      return ['convert', str(file), f'{folder}/out.safetensors']
    ada = f'--config={ROOT}/configs/ada_edsr.py:smoke'
    return ['train', ada, f'--workdir={folder}/w', f'--config.corruption_net.weights={file}']


for name, spoil in {
  'a function': lambda p: torch_state.write(p, SYSTEM, {}),
  'a module': lambda p: torch_state.write(p, b'cpets_payload\nImage\n', {}),
  'a key of tuples': lambda p: torch_state.write(p, b'}' + NESTED + b'Ns', {}),
  'opcodes without end': lambda p: torch_state.write(p, b'N' * (4 * 2**20 - 9), {}),
  'zeros': lambda p: torch_state.write(p, b'}', {'0': bytes(500 << 20)}, compression=zipfile.ZIP_DEFLATED),
  'many members': lambda p: members(p, 60_000),
  'a function in the older form': lambda p: torch_state.write_legacy(p, SYSTEM, {}),
  'a huge storage in the older form': lambda p: torch_state.write_legacy(p, HUGE, {'0': np.zeros(1, '<f4')}),
  'a pipe': pipe,
  'a device': device,
  'endless': endless,
}.items():
  _weights_case(f'PyTorch: {name}', spoil)
for name, spoil in {
  'a deep header': lambda p: _safetensors(p, f'{{"a":{DEEP}}}'),
  'a deep origin': lambda p: _safetensors(p, f'{{{_META % DEEP}}}'),
  'endless': lambda p: _safetensors(p, f'{{{_META % "{}"},{_ENDLESS}}}', ENDLESS),
  'a pipe': pipe,
  'a device': device,
}.items():
  _weights_case(f'safetensors: {name}', spoil)


# ---- Runs.


def _run_case(name: str, spoil: Callable[[Path], object], command: str, code: int = 2) -> None:
  @case(f'{command}: {name}', code)
  def make(folder: Path, base: Base) -> list[str]:
    run = Path(shutil.copytree(base.run, folder / 'w'))
    spoil(run)
    if command == 'train':
      return train(folder)
    return [command, str(run), f'--output={folder}/r.html'] if command == 'report' else [command, f'--workdir={run}']


def _of_each(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
  return lambda run: [spoil(folder) for folder in (run / 'checkpoints').iterdir()]


def _array(folder: Path) -> Path:
  return max((path for path in (folder / 'arrays').rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def _deep_data(run: Path) -> None:
  (run / 'data.json').write_text(f'{{"train": {DEEP}}}')


for command in ('train', 'evaluate', 'report'):
  _run_case('a deep config.json', lambda run: (run / 'config.json').write_text(DEEP), command)
  _run_case('a pipe for config.json', lambda run: pipe(run / 'config.json'), command)
  _run_case('an endless config.json', lambda run: endless(run / 'config.json'), command)
for command in ('train', 'evaluate'):
  _run_case('a deep data.json', _deep_data, command)
_run_case('a pipe for data.json', lambda run: pipe(run / 'data.json'), 'train')
_run_case('an endless data.json', lambda run: endless(run / 'data.json'), 'train')
for kind, spoil in {
  'a deep line': lambda path: path.write_text(f'{{"step": 1, "a": {DEEP}}}\n{{"step": 2}}\n'),
  'a pipe': pipe,
  'a line without end': endless,
  'numbers without end': lambda path: path.write_text(f'{{"step": {"9" * 10**6}}}\n{{"step": 2}}\n'),
}.items():
  name, log = f'{kind} for metrics.jsonl', lambda run, spoil=spoil: spoil(run / 'metrics.jsonl')
  _run_case(name, log, 'report')
  _run_case(name, lambda run, log=log: (shutil.rmtree(run / 'checkpoints'), log(run)), 'train')
for name in ('clean', 'train', 'eval_3', 'robustness_pgd_linf_8-255'):
  _run_case(f'deep {name}.json', lambda run, name=name: (run / 'results' / f'{name}.json').write_text(DEEP), 'report')
_run_case('a pipe for clean.json', lambda run: pipe(run / 'results' / 'clean.json'), 'report')
_run_case('an endless train.json', lambda run: endless(run / 'results' / 'train.json'), 'report')

for name, spoil in {
  'deep manifests': lambda folder: (folder / artifact.MANIFEST).write_text(DEEP),
  'pipes for manifests': lambda folder: pipe(folder / artifact.MANIFEST),
  'endless manifests': lambda folder: endless(folder / artifact.MANIFEST),
  'pipes for arrays': lambda folder: pipe(_array(folder)),
  'devices for arrays': lambda folder: device(_array(folder)),
  'manifests of a number': lambda folder: reseal(folder, files=3),
  'manifests of no arrays': lambda folder: reseal(folder, leaves=[[]]),
  'manifests of arrays without end': lambda folder: reseal(folder, leaves={'opt_state/x': [[2**45], 'float32']}),
}.items():
  _run_case(name, _of_each(spoil), 'evaluate', 4)
_run_case(
  'an output that is a number',
  _of_each(lambda folder: reseal(folder, leaves={'params/net/head/b': [[], 'float32']})),
  'export',
)
