"""The photographs that scikit-learn and scikit-image ship, and the part of each that is for training.

Credits: china.jpg (danielbuechele) and flower.jpg (vultilion), both CC-BY 2.0, from scikit-learn; astronaut (NASA,
public domain), chelsea (Stefan van der Walt, CC0), coffee (Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0),
rocket (SpaceX, public domain), hubble_deep_field (NASA, public domain) and ihc (Center for Microscopy And Molecular
Imaging, no known copyright restrictions), from scikit-image.
"""

import importlib.util
import pathlib

import numpy as np
from PIL import Image

from adversarial_augment.errors import UserError

GAP = 32  # columns of each photograph that neither split uses
TRAIN_FRACTION = 0.7  # of the columns, gap included

# Read as files, since scikit-image's own functions would download what a wheel lacks.
_FILES = {
  'sklearn': ('datasets/images/china.jpg', 'datasets/images/flower.jpg'),
  'skimage': tuple(
    f'data/{name}'
    for name in ('astronaut.png', 'chelsea.png', 'coffee.png', 'rocket.jpg', 'hubble_deep_field.jpg', 'ihc.png')
  ),
}


def load() -> list[tuple[str, np.ndarray]]:
  """Returns the photographs in a fixed order: name and uint8 RGB array [height, width, 3].

  Raises:
    UserError: scikit-learn or scikit-image is not installed, or no longer ships one of them.
  """
  return [(pathlib.PurePath(name).stem, _read(package, name)) for package, names in _FILES.items() for name in names]


def region(photo: np.ndarray, split: str) -> np.ndarray:
  """Returns a view of the part of a photograph that belongs to a split: left for 'train', right for 'test'.

  Args:
    photo: [height, width, channels], at least 211 columns wide, so that both parts are wider than the gap.
    split: 'train' or 'test'.

  Raises:
    UserError: another split, or too narrow a photograph.
  """
  width = photo.shape[1]
  cut = int(TRAIN_FRACTION * width)
  if min(cut - GAP, width - cut) < 2 * GAP:
    raise UserError(f'A photograph of {width} columns is too narrow to split; at least 211 columns are needed.')
  parts = {'train': photo[:, : cut - GAP], 'test': photo[:, cut:]}
  if split not in parts:
    raise UserError(f"Unknown split '{split}'; known: test, train.")
  return parts[split]


def packaged(package: str, name: str) -> pathlib.Path:
  """Returns the path of a file in an installed package, without importing that, which takes a second.

  Raises:
    UserError: the package is not installed.
  """
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise UserError(f"The package '{package}' is not installed; run pip install adversarial-augment again.")
  return pathlib.Path(spec.submodule_search_locations[0], name)


def _read(package: str, name: str) -> np.ndarray:
  path = packaged(package, name)
  try:
    with Image.open(path) as image:
      return np.asarray(image.convert('RGB'))
  except OSError as error:
    raise UserError(f"Cannot read the photograph '{path}' of package '{package}' ({error}); reinstall it.") from error
