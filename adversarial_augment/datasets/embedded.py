"""The data set 'embedded': handwritten digits blended over photographs, with no download.

10 classes, 32x32x3, 12,000 training and 2,000 test images, always the same. Each image is one of the 1,797 scanned
digits of scikit-learn (`load_digits`; E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI,
CC-BY 4.0), enlarged, turned and shifted a little, and painted in a random colour, lighter or darker than what
lies beneath and partly transparent, on a patch of a photograph: the recipe of MNIST-M (Ganin et al., arXiv 1505.07818,
section 4), with alpha blending in place of the absolute difference. Training and test images share neither a digit
scan nor a pixel of a photograph. Credits of the photographs: see `photographs`.

It exists so that everything runs at once on any machine. Results on it are NOT CIFAR-10 results, and compare with
nothing but other results on it.
"""

from contextlib import suppress
import functools
import hashlib
import importlib.metadata
from pathlib import Path

import numpy as np

from adversarial_augment.cli import environment
from adversarial_augment.datasets import arrays, photographs
from adversarial_augment.datasets.sampling import batches
from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact
from adversarial_augment.types import Dataset

NUM_EXAMPLES = {'train': 12_000, 'test': 2_000}
TEST_DIGITS = 0.2  # fraction of the scans of each class
SIZE = 32

# How hard it is to see a digit. Chosen so that a small convolutional network learns it in a minute or two, while a
# shift of colour, contrast or sharpness still costs it accuracy.
CONTRAST = (0.35, 0.6)  # brightness of the digit relative to the patch beneath; 1 is black to white
OPACITY = (0.85, 1.0)
TINT = 0.15  # standard deviation of the digit's colour around grey
SHARPNESS = 2.0  # of the enlarged scan's edges; 1 is plain bilinear interpolation
DIGIT_SIZE = (25.0, 30.0)  # pixels, of the whole 8x8 scan
TURN = 8.0  # degrees, either way

_CHUNK = 100  # images made at once: small temporary arrays are several times faster here


@functools.cache  # 43 MB
def load(split: str) -> Dataset:
  """Returns one split, 'train' or 'test', of the embedded data set.

  Raises:
    UserError: another split, or a package lacks its digits or photographs.
  """
  if split not in NUM_EXAMPLES:
    raise UserError(f"Data set 'embedded' has no split '{split}'; it has: test, train.")
  about = {'name': 'embedded', 'split': split, 'origin': 'embedded', 'archive_sha256': None}
  return arrays.in_memory(*_kept(split), 'embedded', 10, '0123456789', about)


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the scans of a split, float32 [n, 8, 8] in [0, 1], and their labels, int32 [n]."""
  path = photographs.packaged('sklearn', 'datasets/data/digits.csv.gz')
  try:
    rows = np.loadtxt(path, np.uint8, delimiter=',')
  except (OSError, ValueError) as error:
    raise UserError(f"Cannot read the digits '{path}' of package 'sklearn' ({error}); reinstall it.") from error
  scans, labels = rows[:, :-1].reshape(-1, 8, 8).astype(np.float32) / 16, rows[:, -1].astype(np.int32)
  order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
  rank = np.empty(len(labels))  # of each scan within its class, in [0, 1)
  for label in range(10):
    members = order[labels[order] == label]
    rank[members] = np.arange(len(members)) / len(members)
  chosen = rank < TEST_DIGITS if split == 'test' else rank >= TEST_DIGITS
  return scans[chosen], labels[chosen]


def _kept(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns what `_make` gives, from the user's cache folder if an earlier start has left it there.

  Making it takes more than a second of each process of a run. A file that is damaged is made anew, and where none can
  be written, nothing is kept.
  """
  images, labels = np.empty((NUM_EXAMPLES[split], SIZE, SIZE, 3), np.uint8), np.empty(NUM_EXAMPLES[split], np.int32)
  try:
    path = environment.cache_folder('embedded') / f'{split}-{_version()}'
  except (RuntimeError, OSError, importlib.metadata.PackageNotFoundError):  # no home, no files, or another distribution
    return _make(split)
  with suppress(OSError), open(path, 'rb') as file:
    parts = [array.data.cast('B') for array in (images, labels)]
    if all(file.readinto(part) == len(part) for part in parts) and file.read(100) == _digest(images, labels):
      return images, labels
  images, labels = _make(split)
  with suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.replace(path, [images.tobytes(), labels.tobytes(), _digest(images, labels)])
    for other in {*path.parent.glob(f'{split}-*')} - {path}:
      other.unlink()
  return images, labels


def _version() -> str:
  """Returns what changes with the code and the packages that make the images."""
  code = [Path(module).read_bytes() for module in (__file__, photographs.__file__)]
  packages = [importlib.metadata.version(name) for name in ('numpy', 'pillow', 'scikit-image', 'scikit-learn')]
  return hashlib.sha256(repr((code, packages)).encode()).hexdigest()[:16]


def _digest(images: np.ndarray, labels: np.ndarray) -> bytes:
  """Returns the hash that ends a kept file, of 32 bytes."""
  return hashlib.sha256(hashlib.sha256(images.data).digest() + labels.tobytes()).digest()


def _make(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns images uint8 [n, 32, 32, 3] and labels int32 [n]."""
  n = NUM_EXAMPLES[split]
  rng = np.random.Generator(np.random.PCG64({'train': 1, 'test': 2}[split]))
  scans, labels = digits(split)
  regions = [photographs.region(photo, split) for _, photo in photographs.load()]
  which = rng.permutation(np.arange(n) % len(scans))  # each scan equally often, give or take one
  images = np.empty((n, SIZE, SIZE, 3), np.uint8)
  for chunk in batches(n, _CHUNK):
    images[chunk] = _blend(rng, _patches(rng, regions, len(chunk)), _place(rng, scans[which[chunk]]))
  return images, labels[which]


def _blend(rng: np.random.Generator, patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns the patches with a digit painted on each: uint8 [n, 32, 32, 3] and [n, 32, 32] in [0, 1] -> uint8."""
  # Pixels last: NumPy is slow where the innermost axis is one of three colours.
  n = len(patches)
  pixels, mask = patches.transpose(0, 3, 1, 2).reshape(n, 3, -1).astype(np.float32) / 255, mask.reshape(n, 1, -1)
  # The colour is relative to what lies under the digit, so that no brightness belongs to digits alone.
  beneath = (pixels * mask).sum(-1) / mask.sum(-1)
  grey = beneath.mean(-1, keepdims=True)
  texture = ((pixels[:, 0] + pixels[:, 1] + pixels[:, 2]) / 3).reshape(n, SIZE, SIZE).std((1, 2))[:, None]
  contrast = rng.uniform(*CONTRAST, grey.shape).astype(np.float32) + texture
  darker = rng.random(grey.shape) < 0.5
  darker = np.where(grey < contrast, False, np.where(grey > 1 - contrast, True, darker))  # where there is room
  colour = beneath + np.where(darker, -contrast, contrast) + TINT * rng.standard_normal(beneath.shape, np.float32)
  alpha = rng.uniform(*OPACITY, grey.shape).astype(np.float32)[..., None] * mask
  blended = (1 - alpha) * pixels
  blended += alpha * np.clip(colour, 0, 1)[..., None]
  blended *= 255
  return np.rint(blended, out=blended).astype(np.uint8).reshape(n, 3, SIZE, SIZE).transpose(0, 2, 3, 1)


def _patches(rng: np.random.Generator, regions: list[np.ndarray], n: int) -> np.ndarray:
  """Returns random patches of the regions, half of them mirrored: uint8 [n, 32, 32, 3]."""
  out = np.empty((n, SIZE, SIZE, 3), np.uint8)
  for i, (photo, y, x, mirror) in enumerate(zip(rng.integers(len(regions), size=n), *rng.random((3, n)), strict=True)):
    source = regions[photo]
    top, left = int(y * (source.shape[0] - SIZE + 1)), int(x * (source.shape[1] - SIZE + 1))
    patch = source[top : top + SIZE, left : left + SIZE]
    out[i] = patch[:, ::-1] if mirror < 0.5 else patch
  return out


def _place(rng: np.random.Generator, scans: np.ndarray) -> np.ndarray:
  """Returns the scans enlarged, turned and shifted at random, bilinearly: [n, 8, 8] -> [n, 32, 32], in [0, 1]."""
  n = len(scans)
  scale = 8 / rng.uniform(*DIGIT_SIZE, (n, 1, 1))  # scan pixels per image pixel
  angle = np.deg2rad(rng.uniform(-TURN, TURN, (n, 1, 1)))
  room = (SIZE - 8 / scale) / 2
  line = np.arange(SIZE) - (SIZE - 1) / 2
  y = (line[:, None] - rng.uniform(-room, room)).astype(np.float32)
  x = (line[None, :] - rng.uniform(-room, room)).astype(np.float32)
  cos, sin = (scale * np.cos(angle)).astype(np.float32), (scale * np.sin(angle)).astype(np.float32)
  # Into the scan with a border of one pixel, so that the digit fades out instead of ending at the scan's edge.
  row, column = np.clip(cos * y - sin * x + 4.5, 0, 8.999), np.clip(sin * y + cos * x + 4.5, 0, 8.999)
  i, j = row.astype(np.intp), column.astype(np.intp)
  v, u = row - i, column - j
  flat = np.pad(scans, ((0, 0), (1, 1), (1, 1))).reshape(-1)
  at = 100 * np.arange(n)[:, None, None] + 10 * i + j
  near = lambda offset: np.take(flat[offset:], at, mode='clip')  # never clips, and is faster than an index
  upper, lower = (1 - u) * near(0) + u * near(1), (1 - u) * near(10) + u * near(11)
  return np.clip(SHARPNESS * ((1 - v) * upper + v * lower - 0.5) + 0.5, 0, 1)
