"""Where the images come from that corruption networks are trained and judged on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adversarial_augment import datasets
from adversarial_augment.config.fields import spell
from adversarial_augment.datasets import photographs, sampling
from adversarial_augment.datasets.arrays import fingerprint
from adversarial_augment.errors import UserError
from adversarial_augment.types import Batch

PARTS = 8  # in which the held-out images are judged
_NATIVE = 32  # side of the photographs' held-out images
_HELD_OUT = 512
_SHRINKS = (1, 2, 3)  # factors by which photographs are made smaller, as in sets of small images


class Source(NamedTuple):
  """Images of one data set."""

  name: str
  read: Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> crops uint8 [n, h, w, 3], is_native [n]
  held_out: Callable[[], np.ndarray]  # images that are not trained on, uint8 [m, h, w, 3], m a multiple of `PARTS`
  held_out_side: int  # their h and w
  provenance: dict[str, dict[str, Any]]  # of 'train' and 'test'


class Wanted(NamedTuple):
  """What the training needs."""

  batch_size: int
  seed: int
  patch: int  # side of an image that the network sees
  scale: int | None  # crops are so many times larger: EDSR's super-resolution; None: other networks
  data_dir: str

  @property
  def multiple(self) -> int:
    """What the sides of images must be multiples of: EDSR of scale 1 blurs by halves, others halve twice."""
    return 4 if self.scale is None else max(2, self.scale)


def open_all(names: str, wanted: Wanted) -> list[Source]:
  """Returns the data sets that `names` joins by '+', after a look whether networks and gates can read them.

  Raises:
    UserError: no such data set, or images of a size or number that cannot be used.
  """
  divisor = 2 if wanted.scale == 1 else 4 if wanted.scale is None else 1
  least, patch = 12 if wanted.scale is None else 0, spell({'patch': wanted.patch})
  if wanted.patch % divisor or wanted.patch < least:
    larger = max(least, wanted.patch + -wanted.patch % divisor)
    rule = f'a multiple of 4 of at least {least}' if least else 'even at scale 1, which blurs by halves'
    raise UserError(f'{patch} must be {rule}, for this corruption_net; try {spell({"patch": larger})}.')
  sources = [_photographs(wanted) if name == 'photographs' else _prepared(name, wanted) for name in names.split('+')]
  sides = {source.name: source.held_out_side for source in sources}
  if len(set(sides.values())) > 1:
    found = ', '.join(f'{name} {side}x{side}' for name, side in sides.items())
    raise UserError(
      f'{spell({"dataset": names})} mixes images of several sizes ({found}), which are judged together; name sets of '
      'one size, or prepare one again at the size of the other.'
    )
  return sources


def _prepared(name: str, wanted: Wanted) -> Source:
  from adversarial_augment import ssim

  train, test = splits = [datasets.load(name, split, wanted.data_dir) for split in ('train', 'test')]
  for split in splits:
    height, width, _ = split.image_shape
    if height != width or height % wanted.multiple or height < ssim.WINDOW or split.image_shape != train.image_shape:
      raise UserError(
        f'{spell({"dataset": name})} has images of {height}x{width}, but they must be square, of one size, at least '
        f'{ssim.WINDOW} pixels a side, and a multiple of {wanted.multiple} for this corruption_net; prepare them again '
        'at another size, such as 32.'
      )
  if test.num_examples < PARTS:
    raise UserError(
      f'{spell({"dataset": name})} has {test.num_examples} test images, but at least {PARTS} are needed to judge the '
      'weights; add some, or name another data set.'
    )

  def read(step: int) -> tuple[np.ndarray, np.ndarray]:
    images = train.read(sampling.indices(wanted.seed, step, train.num_examples, wanted.batch_size)).images
    return _turn(images, np.random.default_rng([wanted.seed, step])), np.ones(wanted.batch_size, bool)

  count = min(_HELD_OUT, test.num_examples // PARTS * PARTS)
  held_out = lambda: test.read(np.arange(count)).images
  provenance = {part: {'name': name, **split.provenance} for part, split in (('train', train), ('test', test))}
  return Source(name, read, held_out, test.image_shape[0], provenance)


def _photographs(wanted: Wanted) -> Source:
  photos = [photo for _, photo in photographs.load()]
  regions = {split: [photographs.region(photo, split) for photo in photos] for split in ('train', 'test')}
  size = wanted.patch * (wanted.scale or 1)
  shrinks = _SHRINKS if wanted.scale is None else (1,)

  def crops(split: str, rng: np.random.Generator, n: int, size: int, shrink: int = 1) -> np.ndarray:
    size *= shrink
    large = [region for region in regions[split] if min(region.shape[:2]) >= size]
    if not large:
      raise UserError(f'{spell({"patch": wanted.patch})} is too large for the photographs; try 32.')
    result = np.empty((n, size, size, 3), np.uint8)
    for i, index in enumerate(rng.integers(len(large), size=n)):
      top, left = (rng.integers(side - size + 1) for side in large[index].shape[:2])
      result[i] = large[index][top : top + size, left : left + size]
    if shrink == 1:
      return result
    small = result.reshape(n, size // shrink, shrink, size // shrink, shrink, 3).mean((2, 4))
    return small.round().astype(np.uint8)

  def held_out() -> np.ndarray:  # half of them as photographed, half three times smaller
    rng = np.random.default_rng(0)
    return np.concatenate([crops('test', rng, _HELD_OUT // 2, _NATIVE, shrink) for shrink in (1, 3)])

  def read(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([wanted.seed, step])
    counts = [len(part) for part in np.array_split(np.arange(wanted.batch_size), len(shrinks))]
    pairs = zip(counts, shrinks, strict=True)
    images = np.concatenate([crops('train', rng, count, size, shrink) for count, shrink in pairs])
    return _turn(images, rng), np.zeros(wanted.batch_size, bool)

  def about(split: str) -> dict[str, Any]:
    unlabelled = (Batch(region[None], np.empty(0, np.int32)) for region in regions[split])
    return {'name': 'photographs', 'split': split, 'origin': 'embedded', 'sha256': fingerprint(unlabelled)}

  crops('train', np.random.default_rng(0), 1, size, shrinks[-1])  # reports a patch that is too large at once
  return Source('photographs', read, held_out, _NATIVE, {split: about(split) for split in regions})


def _turn(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Turns and mirrors every image at random."""
  turned = [np.rot90(image, k) for image, k in zip(images, rng.integers(4, size=len(images)), strict=True)]
  flips = rng.random(len(images)) < 0.5
  return np.stack([image[:, ::-1] if flip else image for image, flip in zip(turned, flips, strict=True)])
