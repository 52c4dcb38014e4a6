"""PyTorch models in JAX against PyTorch itself, and AdA in a PyTorch loop against `attacks.ada`."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from adversarial_augment import attacks, augmentations, corruption_nets, corruptions, threefry
from adversarial_augment.errors import UserError

torch = pytest.importorskip('torch')
nn = torch.nn
pytorch = pytest.importorskip('adversarial_augment.pytorch')

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Small(nn.Module):
  """Convolutions, batch norm and a head; with a branch that depends on values, which cannot be traced."""

  def __init__(self, *, branches: bool = False):
    super().__init__()
    self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
    self.second, self.head = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Linear(16, 10)
    self.branches = branches

  def forward(self, x):
    x = torch.relu(self.second(torch.relu(self.norm(self.first(x))))).mean((2, 3))
    return self.head(2 * x if self.branches and x.sum() < 0 else x)


@pytest.fixture(params=[False, True], ids=['translated', 'callback'])
def model(request):
  if not request.param and not importlib.util.find_spec('torchax'):
    pytest.skip('torchax is not installed')
  torch.manual_seed(0)
  model = Small(branches=request.param).train()
  model(torch.rand(64, 3, 32, 32))  # running statistics that are not those of the start
  return model


def _images(n=6):
  return np.random.default_rng(0).random((n, 32, 32, 3), np.float32)


def _normalized(images):
  images = torch.tensor(images).movedim(-1, 1)
  return (images - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)


def _copy(model, batch_statistics):
  copy = Small(branches=model.branches)
  copy.load_state_dict(model.state_dict())
  return copy.train(batch_statistics)  # batch norm is all that differs


@pytest.mark.parametrize('batch_statistics', [False, True])
def test_logits_and_gradients_are_those_of_torch_and_the_module_stays_as_it_was(model, batch_statistics, capsys):
  before = {name: value.clone() for name, value in model.state_dict().items()}
  function = pytorch.from_torch(model, mean=MEAN, std=STD, batch_statistics=batch_statistics)
  loss = lambda images: jnp.square(function(images)[:, 1]).sum()
  logits, gradient = function(_images()), jax.jit(jax.grad(loss))(_images())

  inputs = _normalized(_images()).requires_grad_()
  expected = _copy(model, batch_statistics)(inputs)
  expected[:, 1].square().sum().backward()
  np.testing.assert_allclose(logits, expected.detach(), atol=1e-5)
  wanted = inputs.grad / torch.tensor(STD).reshape(3, 1, 1)
  np.testing.assert_allclose(gradient, wanted.movedim(1, -1), atol=1e-4 * float(wanted.abs().max()))

  assert model.training
  assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
  assert all(parameter.grad is None for parameter in model.parameters())
  assert function.is_translated != model.branches
  assert capsys.readouterr().err.count('through a callback') == model.branches


def test_vmap_over_images_gives_the_same_logits(model):
  function = pytorch.from_torch(model)
  each = jax.vmap(lambda image: function(image[None])[0])(_images())
  np.testing.assert_allclose(each, function(_images()), atol=1e-5)


def test_a_module_that_changes_is_not_compiled_again_and_gives_its_new_logits(model):
  function = pytorch.from_torch(model)
  before = function(_images())
  with torch.no_grad():
    model.head.bias += 1
  np.testing.assert_allclose(function(_images()), before + 1, atol=1e-5)
  assert function._jitted._cache_size() == 1


def test_ada_in_torch_is_ada_in_jax(model):
  ada = pytorch.TorchAdA(weights='edsr_4x16_x1', num_steps=2, seed=3, mean=MEAN, std=STD)
  labels = np.arange(6) % 10
  images = torch.tensor(_images()).movedim(-1, 1)
  corrupted = [ada(model, images, torch.tensor(labels)) for _ in range(2)]
  assert corrupted[0].shape == images.shape
  assert corrupted[0].dtype == images.dtype

  network, phi = corruption_nets.load('edsr', 'edsr_4x16_x1')
  attack = attacks.ada(network.apply, num_steps=2, noisy=True)
  function = pytorch.from_torch(model, mean=MEAN, std=STD)
  for call, found in enumerate(corrupted):
    keys = jax.random.split(jax.random.fold_in(threefry.key(3), call), 6)
    run = jax.jit(lambda keys: attack(keys, function, _images(), labels, phi).images)
    np.testing.assert_allclose(found.movedim(1, -1), run(keys), atol=2e-3)
  assert not torch.equal(*corrupted)
  assert len(ada._steps) == 1


def test_transforms_take_tensors_batches_and_pillow_images():
  images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
  batch = torch.tensor(images).movedim(-1, 1)
  fog = pytorch.TorchCorruptions(['fog'], [3], seed=1)
  rng = np.random.default_rng([1, 0, 1])
  expected = corruptions.corrupt(images, 'fog', 3, 1, rng.integers(2**31, size=5))
  np.testing.assert_array_equal(fog(batch).movedim(1, -1), expected)
  for transform in (fog, pytorch.TorchAugMix(seed=1)):
    assert transform(batch[0]).shape == (3, 32, 32)
    assert transform(Image.fromarray(images[0])).size == (32, 32)
    assert not torch.equal(transform(batch), transform(batch))


def test_augmix_of_a_tensor_is_that_of_jax():
  images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
  keys = jax.random.split(threefry.key(int(np.random.default_rng([2, 0, 1]).integers(2**31))), 5)
  expected = jax.jit(jax.vmap(augmentations.augmix))(keys, images.astype(np.float32) / 255)
  found = pytorch.TorchAugMix(seed=2)(torch.tensor(images).movedim(-1, 1)).movedim(1, -1)
  np.testing.assert_allclose(found, 255 * expected, atol=0.51)


def test_a_forked_worker_is_one_line():
  transform = pytorch.TorchAugMix()
  transform._process += 1
  with pytest.raises(UserError, match="multiprocessing_context='spawn'"):
    transform(torch.zeros(3, 32, 32, dtype=torch.uint8))
