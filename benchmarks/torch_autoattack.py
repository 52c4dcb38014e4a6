"""The standard AutoAttack of `pyautoattack`, stage by stage, each on the survivors."""

from collections.abc import Mapping

import numpy as np
from pyautoattack import AutoAttack
import torch

from adversarial_augment.attacks.suite_runner import Problem
from adversarial_augment.classifiers.preact_resnet import DEPTHS
from benchmarks import torch_classifier


class Reference:
  """The attacks on one classifier and some images; `robust` [n]: those that no stage has broken so far."""

  def __init__(self, state_dict: Mapping[str, np.ndarray], depth: int, problem: Problem):
    num_classes, width = len(state_dict['linear.bias']), len(state_dict['conv1.weight'])
    self._classifier = torch_classifier.PreActResNet(DEPTHS[depth][0], width, num_classes).eval()
    self._classifier.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state_dict.items()})
    self._classifier.requires_grad_(False)  # otherwise FAB computes gradients of the weights
    self._images = torch.from_numpy(problem.images.transpose(0, 3, 1, 2).copy())
    self._labels = torch.from_numpy(problem.labels.astype(np.int64))
    attack = AutoAttack(self._classifier, norm='Linf', eps=problem.epsilon, version='standard', seed=0)
    attack.apgd.loss, attack.fab.targeted = 'ce', True
    self._stages = {
      'apgd-ce': attack.apgd,
      'apgd-t': attack.apgd_targeted,
      'fab-t': attack.fab,
      'square': attack.square,
    }
    self.reset()

  def reset(self) -> None:
    """Resets the state."""
    self.robust = self.logits().argmax(1) == self._labels.numpy()

  def logits(self) -> np.ndarray:
    """Returns the logits of all images, [n, k]."""
    return self._classifier(self._images).numpy()

  def warm_up(self, name: str) -> None:
    """Runs a few steps of a stage, to warm up."""
    stage = self._stages[name]
    steps = 'n_queries' if name == 'square' else 'n_iter'
    whole = getattr(stage, steps)
    setattr(stage, steps, 2)
    stage.perturb(self._images, self._labels)
    setattr(stage, steps, whole)

  def run(self, name: str) -> None:
    """Runs a stage."""
    left = np.flatnonzero(self.robust)
    if len(left):
      found = self._stages[name].perturb(self._images[left], self._labels[left])
      self.robust[left] = (self._classifier(found).argmax(1) == self._labels[left]).numpy()
