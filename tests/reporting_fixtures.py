"""Folders of runs as `train` and `evaluate` leave them, with numbers that a test can foresee; and what a page says."""

from collections.abc import Mapping
from html.parser import HTMLParser
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from adversarial_augment import config as configs
from adversarial_augment import metrics
from adversarial_augment.report import report
from adversarial_augment.reporting import charts
from adversarial_augment.storage import outcomes

ROOT = Path(__file__).parent.parent
N = 2000
ERRORS = {
  'gaussian_noise': (10, 20, 30, 40, 50), 'shot_noise': (8, 14, 22, 28, 38), 'impulse_noise': (9, 18, 27, 41, 55),
  'defocus_blur': (4, 5, 6, 9, 15), 'glass_blur': (30, 31, 30, 42, 43), 'motion_blur': (6, 9, 14, 14, 20),
  'zoom_blur': (7, 8, 10, 13, 18), 'snow': (6, 13, 12, 15, 18), 'frost': (6, 9, 15, 16, 21), 'fog': (4, 5, 6, 9, 25),
  'brightness': (4, 4, 5, 5, 7), 'contrast': (4, 7, 10, 16, 45), 'elastic_transform': (8, 8, 11, 15, 20),
  'pixelate': (5, 9, 12, 20, 30), 'jpeg_compression': (10, 14, 15, 17, 20),
}  # fmt: skip
EXTRA_ERRORS = {
  'speckle_noise': (9, 16, 20, 26, 36), 'gaussian_blur': (4, 6, 9, 12, 20), 'spatter': (5, 8, 11, 12, 16),
  'saturate': (6, 8, 4, 6, 9),
}  # fmt: skip
STATE = 'c5ebe1435b1a18fdd8f44571c0ed569e955e09256bf0ed688b33fb2533c63414'


def write_run(
  folder: Path,
  *,
  variant: str = 'smoke',
  dataset: str = 'embedded',
  origin: str = 'embedded',
  c_origin: str = 'generated',
  frost: str = 'photographs of imagecorruptions 1.1.2',
  n: int = N,
  factor: float = 1.0,
  evals: tuple[str, ...] = (),
) -> Path:
  """Writes a run with all that it may have: `n` clean images, and as many of each cell; all errors times `factor`."""
  config = configs.load(f'{ROOT}/configs/ada_edsr.py:{variant}')
  config.dataset = dataset
  config = json.loads(configs.to_json(config))
  provenance = {
    'data': {split: {'name': f'{dataset}:1.0.0', 'origin': origin, 'sha256': 64 * '8'} for split in ('train', 'test')},
    'weights': {'file': 'edsr_4x16_x1.safetensors', 'sha256': 64 * '6', 'data': 'photographs', 'steps': 3000},
    'seed': 0, 'config': config, 'config_sha256': 64 * '5', 'git': None,
    'versions': {'adversarial_augment': '0.1.0', 'python': '3.11.7', 'jax': '0.10.2'},
    'devices': {'kind': 'cpu', 'count': 2, 'processes': 1},
    'command': f'python -m adversarial_augment.train --config=configs/ada_edsr.py:{variant} --workdir={folder.name}',
  }  # fmt: skip
  seed = None if c_origin == 'official' else 7
  corrupted = {'corruptions': {'seed': seed, 'sha256': 64 * '4', 'frost': frost}}
  common = {'step': 40, 'checkpoint_sha256': STATE, 'split': 'test', 'seed': 0, 'seconds': 12.5}

  def result(name: str, origin: str, content: dict, **more: dict) -> dict:
    drawn = {'seed': more['corruptions']['seed']} if more else {}
    return {
      'eval': name, 'origin': origin, 'num_images': N, **common, **drawn, 'provenance': provenance | more, **content
    }  # fmt: skip

  results = {
    'clean': result('clean', origin, counted(round(n * (1 - 0.04 * factor)), n)),
    'ada': result('ada', origin, counted(round(N * (1 - 0.1 * factor))) | attacked()),
    'cifar10_c': result('cifar10_c', c_origin, table(ERRORS, n, factor, 'mce'), **corrupted),
    'cifar10_c_extra': result('cifar10_c_extra', c_origin, table(EXTRA_ERRORS, n, factor, 'mean_error'), **corrupted),
    'cifar10_1': result('cifar10_1', 'official', versions()),
  }
  for name, content in results.items():
    if not evals or name in evals:
      write(folder / 'results' / f'{name}.json', content)
  write(folder / 'config.json', config)
  closing = {'step': 40, 'num_steps': 40, 'split': 'test', 'evals': results, 'state_sha256': STATE, **provenance}
  write(folder / 'results' / 'train.json', closing)
  for step in (20, 40):
    evals = {
      'clean': result('clean', origin, counted(round(N * step / 50))),
      'cifar10_c': result('cifar10_c', c_origin, table(ERRORS, n, factor * (60 - step) / 40, 'mce')),
    }
    write(folder / 'results' / f'eval_{step}.json', closing | {'step': step, 'split': 'validation', 'evals': evals})
  (folder / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in metrics_lines(40)))
  (folder / 'figures').mkdir()
  (folder / 'figures' / 'ada_examples.png').write_bytes(picture())
  return folder


def counted(correct: int, n: int = N, origin: str | None = None) -> dict:
  """What an accuracy holds; its interval is 2 points wide. Confidences are 1.2 times too high up to 1."""
  accuracy = correct / n
  centres = (np.arange(15) + 0.5) / 15
  count = np.diff(np.round(n * np.linspace(0, 1, 16) ** 3)).astype(int)
  calibration = {
    'edges': (np.arange(16) / 15).tolist(),
    'count': count.tolist(),
    'num_correct': np.floor(count * centres / 1.2).astype(int).tolist(),
    'confidence': (count * centres).tolist(),
    'ece': 0.1234,
  }
  found = {'accuracy': accuracy, 'num_correct': correct, 'num_images': n, 'calibration': calibration}
  found['interval'] = [accuracy - 0.01, accuracy + 0.01]
  found['correct'] = right_images(correct, n)
  return found | ({'origin': origin} if origin else {})


def right_images(correct: int, n: int, shift: int = 0) -> str:
  """The images from number `shift` on, and on from the first one after the last."""
  return outcomes.pack(np.roll(np.arange(n) < correct, shift))


def attacked() -> dict:
  """What an attack adds; SSIM is 0.985 for half of the images, and lower for the others."""
  count = np.zeros(200, int)
  count[198], count[190:198] = N // 2, N // 16
  return {
    'ssim': 0.9712, 'ssim_corrected': 0.0125, 'ssim_below_min': 0.0, 'attack_loss_start': 0.25, 'attack_loss_end': 0.75,
    'ssim_histogram': {'edges': np.linspace(-1, 1, 201).tolist(), 'count': count.tolist()},
  }  # fmt: skip


def table(errors: dict, n: int, factor: float, mean: str) -> dict:
  """What an evaluation of corruptions holds."""
  cells = {name: [factor * error / 100 for error in row] for name, row in errors.items()}
  value = float(np.mean(list(cells.values())))
  return {
    'num_images': n,
    mean: value,
    'interval': [value - 0.02, value + 0.02],
    'corruption_error': {name: float(np.mean(row)) for name, row in cells.items()},
    'severity_error': np.mean(list(cells.values()), axis=0).tolist(),
    'error': cells,
    'num_correct': {name: [round(n * (1 - error)) for error in row] for name, row in cells.items()},
    'correct': {name: [right_images(round(n * (1 - error)), n) for error in row] for name, row in cells.items()},
  }


def versions() -> dict:
  found = {'v4': counted(1819, 2021, 'official'), 'v6': counted(1781, 2000, 'official')}
  return {name: found['v6'][name] for name in ('accuracy', 'num_correct', 'num_images', 'interval')} | found


def metrics_lines(count: int) -> list[str]:
  """Lines of metrics.jsonl."""
  records = [
    {'step': step, 'epoch': step / 10, 'loss': 2.3 / step**0.5, 'accuracy': 1 - 0.9 / step**0.5,
     'attack_loss_start': 2.1 / step**0.5, 'attack_loss_end': 2.3 / step**0.5, 'ssim_mean': 0.99 - step / 10000,
     'ssim_corrected': 0.0, 'ssim_below_min': 0.0, 'learning_rate': 0.1 * (1 - step / count),
     'images_per_second': 100.0}
    for step in range(1, count + 1)
  ]  # fmt: skip
  return [json.dumps(record) for record in records]


def picture() -> bytes:
  content = io.BytesIO()
  Image.fromarray(np.arange(40 * 90 * 3, dtype=np.uint8).reshape(40, 90, 3)).save(content, 'PNG')
  return content.getvalue()


def record_charts(monkeypatch) -> dict[str, tuple]:
  """Replaces the drawing of charts, which takes most of a page's time; returns (series, alt) of each chart, by key."""
  found: dict[str, tuple] = {}

  def chart(key, caption, series, alt, **_):
    if series := [one for one in series if len(one.x)]:
      found[key] = series, alt

  monkeypatch.setattr(charts, 'chart', chart)
  return found


def edit(path: Path, changes: Mapping[str, object]) -> None:
  """Replaces fields of a JSON file, {'a.b.0': value}; None removes one."""
  content = json.loads(path.read_text())
  for place, value in changes.items():
    *outer, last = [int(part) if part.isdigit() else part for part in place.split('.')]
    inside = content
    for part in outer:
      inside = inside[part]
    if value is None:
      del inside[last]
    else:
      inside[last] = value
  write(path, content)


def write(path: Path, content: object) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=2, sort_keys=True))


def write_attacks(run: Path, *, flags: tuple[str, ...] = (), n: int = 1000) -> None:
  """Adds what two suites have left of a run, within l_inf balls of two radii and one l_2 ball."""
  clean = json.loads((run / 'results' / 'clean.json').read_text())
  about = {name: clean[name] for name in ('step', 'checkpoint_sha256', 'split', 'origin', 'provenance')}
  for attack, norm, text, epsilon, left in (
    ('autoattack', 'linf', '2/255', 2 / 255, (700, 650, 640, 640)),
    ('autoattack', 'linf', '8/255', 8 / 255, (120, 80, 80, 75)),
    ('pgd', 'l2', '0.5', 0.5, (310,)),
  ):
    stages = ('apgd-ce', 'apgd-t', 'fab-t', 'square') if attack == 'autoattack' else ('pgd',)
    name = f'robustness_{attack}_{norm}_{text.replace("/", "-")}'
    result = about | {
      'eval': name, 'attack': attack, 'norm': norm, 'epsilon': epsilon, 'epsilon_text': text, 'seed': 0,
      'num_images': n, 'num_correct': 960, 'num_robust': left[-1], 'num_robust_uint8': left[-1] + 10,
      'clean_accuracy': 960 / n, 'robust_accuracy': left[-1] / n, 'robust_accuracy_uint8': (left[-1] + 10) / n,
      'interval': metrics.binomial_interval(left[-1], n), 'stages': list(stages), 'left_out': [],
      'survivors': dict(zip(stages, left, strict=True)), 'seconds': dict.fromkeys(stages, 3.5),
      'correct': right_images(960, n), 'robust': right_images(left[-1], n),
      'flags': list(flags), 'conditions_sha256': 64 * '7', 'probes': {},
    }  # fmt: skip
    write(run / 'results' / f'{name}.json', result)


VOID = ('meta', 'link', 'img', 'br', 'wbr', 'path', 'use')


class Page(HTMLParser):
  """What a browser would find: tags with their attributes, tables by caption, texts."""

  def __init__(self, html: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.tables: list[tuple[str, list[list[str]], str]] = []  # caption, rows of cells, CSV
    self.open: list[str] = []
    self.text = self.style = ''
    self._captions: list[str] = []
    self._rows: list[list[str]] = []
    self.feed(html)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)
    if tag == 'figcaption':
      self._captions.append('')
    elif tag == 'table':
      self._rows = []
    elif tag == 'tr':
      self._rows.append([])
    elif tag in ('td', 'th'):
      self._rows[-1].append('')
    elif tag == 'pre' and 'details' in self.open and dict(self.tags[-3][1]).get('class') == 'text':
      self.tables.append((self._captions[-1], self._rows, ''))

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    inside = set(self.open)
    if 'style' in inside:
      self.style += data
      return
    self.text += data
    if 'figcaption' in inside:
      self._captions[-1] += data
    elif inside & {'td', 'th'}:
      self._rows[-1][-1] += data
    elif 'pre' in inside and self.tables and 'figure' in inside:
      caption, rows, text = self.tables[-1]
      self.tables[-1] = caption, rows, text + data

  def table(self, caption: str) -> list[list[str]]:
    (found,) = [rows for title, rows, _ in self.tables if title == caption]
    return found

  def attributes(self, name: str) -> list[str]:
    return [attributes[name] for _, attributes in self.tags if name in attributes]


def page(*folders: Path, output: Path | None = None) -> Page:
  """The report of some runs; of several in the folder above the first."""
  default = folders[0].parent / 'page.html' if len(folders) > 1 else None
  return Page(report(folders, output or default).read_text())
