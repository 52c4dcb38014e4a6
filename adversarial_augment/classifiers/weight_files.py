"""Files of a classifier's parameters and running statistics, as `export` and `convert classifier` write them.

Safetensors with the keys `params/MODULE/LEAF` and `model_state/MODULE/LEAF`; the header has the card as JSON.
"""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from adversarial_augment.errors import UserError
from adversarial_augment.storage import tensor_files, untrusted
from adversarial_augment.types import PyTree

CARD = 'adversarial_augment.card.1'  # the format of cards
_MAX_BYTES = 8 << 30  # one of the largest sizes has 6 GB
_WAY_OUT = 'name a classifier.safetensors of adversarial_augment.export, or of adversarial_augment.convert classifier'

Trees = tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]


def encode(params: PyTree, model_state: PyTree, card: str) -> bytes:
  """Returns the content of a file; the trees are of two levels, and of arrays on the host."""
  trees = {'params': params, 'model_state': model_state}
  return tensor_files.encode(
    {
      f'{tree}/{module}/{leaf}': np.asarray(value)
      for tree, modules in trees.items()
      for module, leaves in modules.items()
      for leaf, value in leaves.items()
    },
    {'card': card},
  )


def read(path: str | os.PathLike) -> tuple[Trees, dict[str, Any]]:
  """Returns the parameters and statistics in a file, and its card, of which only format and architecture are checked.

  Raises:
    UserError: no such file, one of another kind, damaged, or with NaN or infinite values.
  """
  cards: list[dict[str, Any]] = []

  def check_header(header: Mapping[str, str]) -> None:
    try:
      card = untrusted.parse_json(header.get('card', 'null'))
    except untrusted.Unusable as error:
      raise UserError(
        f"'{path}' is damaged: the card in its header is no JSON ({error}); get or make it again."
      ) from None
    if not isinstance(card, dict) or card.get('format') != CARD or not isinstance(card.get('architecture'), dict):
      raise UserError(f"'{path}' holds no classifier of this package: its header has no card of one; {_WAY_OUT}.")
    cards.append(card)

  tensors, _ = tensor_files.read(path, _MAX_BYTES, ('float32', 'int32'), _WAY_OUT, check_header)
  trees: dict[str, dict[str, dict[str, np.ndarray]]] = {'params': {}, 'model_state': {}}
  for key, value in tensors.items():
    tree, _, rest = key.partition('/')
    module, _, leaf = rest.rpartition('/')
    if tree not in trees:  # the state dict of a PyTorch class, which has a card too
      raise UserError(f"'{path}' holds a state dict of PyTorch; {_WAY_OUT}.")
    trees[tree].setdefault(module, {})[leaf] = value
  return (trees['params'], trees['model_state']), cards[0]
