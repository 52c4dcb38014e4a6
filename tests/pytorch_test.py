"""PyTorch models in JAX against PyTorch itself, and AdA in a PyTorch loop against `attacks.ada`."""

import gc
import importlib.util
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from adversarial_augment import attacks, augmentations, corruption_nets, corruptions, datasets, threefry
from adversarial_augment.errors import UserError

torch = pytest.importorskip('torch')
functional = torch.nn.functional
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


def _skip_without_torchax():  # only the package can import it
  if not importlib.util.find_spec('torchax'):
    pytest.skip('torchax is not installed')


@pytest.fixture(params=[False, True], ids=['translated', 'callback'])
def model(request):
  if not request.param:
    _skip_without_torchax()
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


def _compare(model, shape, *, translated=True, mean=(0.0,), std=(1.0,), tolerances=(1e-5, 1e-4)):
  """Logits and gradients equal torch's, up to tolerances relative to the largest."""
  images = np.random.default_rng(0).random(shape).astype(str(next(model.parameters()).dtype).removeprefix('torch.'))
  function = pytorch.from_torch(model, image_shape=shape[1:], mean=mean, std=std)
  weights = function.weights()
  loss = lambda images: (logits := function.apply(weights, images))[:, 1].sum() - jnp.square(logits).mean()
  logits, gradient = function(images), jax.jit(jax.grad(loss))(images)
  inputs = torch.tensor(images).requires_grad_()
  model.eval()
  expected = model(
    (inputs.movedim(-1, 1).contiguous() - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1)
  )
  (expected[:, 1].sum() - expected.square().mean()).backward()
  assert function.is_translated == translated
  np.testing.assert_allclose(
    logits, expected.detach(), rtol=0, atol=tolerances[0] * max(1, float(expected.detach().abs().max()))
  )
  np.testing.assert_allclose(gradient, inputs.grad, rtol=0, atol=tolerances[1] * float(inputs.grad.abs().max()))


class WideBlock(nn.Module):
  """Of RobustBench's WideResNet."""

  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
    self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

  def forward(self, x):
    y = functional.relu(self.bn1(x), inplace=False)
    out = self.conv2(functional.relu(self.bn2(self.conv1(y))))
    return torch.add(x if self.convShortcut is None else self.convShortcut(y), out)


def _wide_resnet(depth=28, widen=10):
  widths = [16, 16 * widen, 32 * widen, 64 * widen]
  blocks = [
    WideBlock(widths[stage] if block == 0 else widths[stage + 1], widths[stage + 1], 1 if stage == 0 or block else 2)
    for stage in range(3)
    for block in range((depth - 4) // 6)
  ]
  return nn.Sequential(
    nn.Conv2d(3, 16, 3, 1, 1, bias=False), *blocks, nn.BatchNorm2d(widths[3]), nn.ReLU(inplace=True), nn.AvgPool2d(8),
    nn.Flatten(), nn.Linear(widths[3], 10),
  )  # fmt: skip


def _with_statistics(model):
  """Running statistics and affine parameters that are not those of the start."""
  torch.manual_seed(1)
  for part in model.modules():
    if isinstance(part, nn.BatchNorm2d):
      part.weight.data.uniform_(0.5, 1.5)
      part.bias.data.normal_(std=0.2)
  with torch.no_grad():
    model.train()(torch.rand(16, 3, 32, 32))
  return model


def _compare_deep(model, shape):
  """In float32, rounding moves single ReLU across 0 and changes their gradients; in float64 it does not."""
  _skip_without_torchax()
  _compare(model, shape, tolerances=(1e-5, 1e-2))
  with jax.enable_x64(True):
    _compare(model.double(), shape, tolerances=(1e-12, 1e-12))


@pytest.mark.slow
def test_preact_resnet_18_is_that_of_torch():
  from benchmarks import torch_classifier

  _compare_deep(_with_statistics(torch_classifier.PreActResNet((2, 2, 2, 2), 64)), (4, 32, 32, 3))


@pytest.mark.slow
def test_wide_resnet_28_10_is_that_of_torch():
  _compare_deep(_with_statistics(_wide_resnet()), (2, 32, 32, 3))


@pytest.mark.slow
def test_a_vision_transformer_is_that_of_torch():
  try:
    torch.ops.torchvision.nms  # noqa: B018
  except AttributeError:  # torchvision, which timm imports, may be built for another device
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  timm = pytest.importorskip('timm')
  torch.manual_seed(0)
  model = timm.create_model('vit_tiny_patch16_224', img_size=64, patch_size=8, num_classes=10)
  _compare(model, (2, 64, 64, 3), mean=MEAN, std=STD)


class Gated(nn.Module):
  """Whose gradient the author cut with `detach`, and of norms and layers of other kinds."""

  def __init__(self):
    super().__init__()
    self.first, self.norm, self.pool = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.AdaptiveAvgPool2d((3, 2))
    self.layer, self.head, self.drop = nn.LayerNorm(48), nn.Linear(48, 10), nn.Dropout(0.5)
    self.register_buffer('scale', torch.full((1,), 0.7), persistent=False)
    self.head2 = nn.Linear(48, 10)
    self.head2.weight = self.head.weight  # tied

  def forward(self, x):
    x = functional.gelu(self.norm(self.first(x)))
    x = self.last = x * torch.sigmoid(x).detach()
    x = self.drop(self.layer(self.pool(x).flatten(1)))
    return self.head(x) + self.scale * self.head2(x)


@pytest.mark.parametrize('shape', [(1, 17, 23, 3), (3, 16, 16, 3)])
def test_other_layers_tied_weights_and_unsaved_buffers(shape):
  _compare(Gated(), shape, translated=pytorch.from_torch(Gated(), image_shape=shape[1:]).is_translated)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_modules_of_other_dtypes_take_and_give_float32(model, dtype):
  expected = pytorch.from_torch(model)(_images())
  found = pytorch.from_torch(model.to(getattr(torch, dtype)))(_images())
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == 'float64' else 0.02)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of what torch.compile imports
def test_wrapped_modules_and_memory_formats(model):
  expected = pytorch.from_torch(model)(_images())
  in_other_memory = pickle.loads(pickle.dumps(model)).to(memory_format=torch.channels_last)
  for other in (torch.compile(model), nn.Sequential(nn.Identity(), torch.compile(model)), in_other_memory):
    np.testing.assert_allclose(pytorch.from_torch(other)(_images()), expected, atol=1e-5)


def test_batches_of_none_and_one_and_many(model):
  function = pytorch.from_torch(model)
  assert function(_images(0)).shape == (0, 10)
  assert function(_images(1)).shape == (1, 10)
  many = np.tile(_images(8), (512, 1, 1, 1))  # 50 MB: callbacks that wait for JAX's own threads hang on large arrays
  np.testing.assert_allclose(function(many)[-8:], function(_images(8)), atol=1e-5)


def test_attributes_that_forward_sets_are_those_from_before():
  module = Gated().eval()
  module(torch.rand(2, 3, 16, 16))
  before = module.last
  pytorch.from_torch(module, image_shape=(16, 16, 3))(np.zeros((2, 16, 16, 3), np.float32))
  assert module.last is before


class Dictionary(nn.Linear):
  def forward(self, x):
    return {'logits': super().forward(x)}


@pytest.mark.parametrize(
  'make, options, words',
  [
    (lambda: Dictionary(3, 5), {'channels_last': True}, 'Dictionary returns dict, not a tensor of logits'),
    (lambda: nn.Linear(3, 5), {'channels_last': True}, 'Linear returns [4, 32, 32, 5] for 4 images'),
    (lambda: nn.Conv2d(4, 2, 3), {}, 'Conv2d cannot be called with images of shape [32, 32, 3]'),
    (lambda: lambda images: images, {}, 'needs a torch.nn.Module, not function'),
    (Small, {'mean': (0.1, 0.2)}, 'mean=(0.1, 0.2) must be one number or three'),
    (Small, {'std': (0.0,)}, 'std=(0.0,) must be above 0'),
    (Small, {'mean': ('a',)}, "mean=('a',) must be one number or three"),
    (Small, {'image_shape': (32, 32)}, 'image_shape=(32, 32) must be (height, width, channels)'),
  ],
)
def test_wrong_modules_are_one_line(make, options, words):
  with pytest.raises(UserError) as error:
    pytorch.from_torch(make(), **options)
  assert words in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'images, words',
  [
    (np.zeros((2, 32, 32, 3), np.uint8), 'images are uint8'),
    (np.full((2, 32, 32, 3), 255, np.float32), 'run from 255 to 255'),
    (np.zeros((32, 32, 3), np.float32), 'of shape [32, 32, 3]'),
  ],
)
def test_wrong_images_are_one_line(images, words):
  function = pytorch.from_torch(Small())
  with pytest.raises(UserError) as error:
    function(images)
  assert words in str(error.value)


BATCH, CLASSES = torch.full((2, 3, 32, 32), 0.5), torch.tensor([1, 2])


@pytest.mark.parametrize(
  'images, labels, words',
  [
    (255 * BATCH, CLASSES, 'divide them by 255'),
    (BATCH - 1, CLASSES, 'run from -0.5 to -0.5; they must lie in [0, 1]; normalise inside the model'),
    (BATCH * torch.nan, CLASSES, 'they must lie in [0, 1]'),
    (BATCH.to(torch.uint8), CLASSES, 'divide 8-bit images by 255'),
    (BATCH.movedim(1, -1), CLASSES, 'images.movedim(-1, 1)'),
    (BATCH[0], CLASSES, 'shape [3, 32, 32]'),
    (BATCH.numpy(), CLASSES, 'images are ndarray'),
    (BATCH, CLASSES[:1], 'labels are torch.int64 of shape [1]'),
    (BATCH, CLASSES.float(), 'labels are torch.float32'),
    (BATCH, CLASSES - 2, 'classes from 0'),
    (BATCH, CLASSES + 8, 'labels run up to 10, but the model has 10 classes'),
  ],
)
def test_wrong_batches_are_one_line(images, labels, words):
  ada = pytorch.TorchAdA(weights='edsr_4x16_x1')
  with pytest.raises(UserError) as error:
    ada(Small(), images, labels)
  assert words in str(error.value)
  assert '\n' not in str(error.value)


def _ada(**options):
  return pytorch.TorchAdA(weights='edsr_4x16_x1', num_steps=1, **options)


@pytest.mark.slow
def test_ada_keeps_kind_and_resumes_and_forgets_models(model):
  ada, images = _ada(seed=5), torch.rand(2, 3, 16, 16)
  assert ada(model, images[:0], CLASSES[:0]).shape == (0, 3, 16, 16)
  first = ada(model, images.requires_grad_(), CLASSES)
  assert not first.requires_grad
  state = ada.state_dict()
  half = images.detach().half().to(memory_format=torch.channels_last)
  second = ada(model, half, CLASSES.int())
  assert second.dtype == torch.half
  assert second.is_contiguous(memory_format=torch.channels_last)
  again = _ada()
  again.load_state_dict(state)
  assert torch.equal(again(model, half, CLASSES), second)
  assert not torch.equal(first.half(), second)
  with torch.no_grad():
    model.head.weight += 1
  ada(model, images, CLASSES)
  ((_, _, step),) = ada._steps.values()
  assert step._cache_size() == 1
  assert model.training
  assert all(parameter.grad is None for parameter in model.parameters())
  local = Small()
  ada(local, images, CLASSES)
  assert len(ada._steps) == 2
  del local
  gc.collect()
  assert len(ada._steps) == 1


class Cifar(torch.utils.data.Dataset):
  """Uint8 tensors, transformed."""

  def __init__(self, transform):
    self.transform = transform

  def __len__(self):
    return 4

  def __getitem__(self, index):
    return self.transform(torch.full((3, 32, 32), 100, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:This DataLoader will create:UserWarning')  # on one core
def test_workers_that_are_spawned_draw_differently_and_by_the_seed():
  def epochs():
    torch.manual_seed(4)
    data = Cifar(pytorch.TorchCorruptions(['gaussian_noise'], [5], seed=1))
    loader = torch.utils.data.DataLoader(data, 2, num_workers=2, multiprocessing_context='spawn')
    return [torch.cat(list(loader)) for _ in range(2)]

  first, second = epochs()
  images = torch.cat([first, second])
  assert len(torch.unique(images.flatten(1), dim=0)) == 8
  assert all(torch.equal(*both) for both in zip((first, second), epochs(), strict=True))


def test_transforms_can_be_pickled_and_refuse_floats():
  transform = pickle.loads(pickle.dumps(pytorch.TorchCorruptions(['brightness'], [1], seed=1)))
  image = torch.full((3, 32, 32), 100, dtype=torch.uint8)
  assert torch.equal(transform(image), pytorch.TorchCorruptions(['brightness'], [1], seed=1)(image))
  for wrong in (image / 255, image[:2], image.numpy()):
    with pytest.raises(UserError, match='takes images of Pillow and uint8 tensors'):
      transform(wrong)


@pytest.mark.slow
def test_counts_of_autoattack_are_those_of_torch():
  """Robust images of 256 after AutoAttack on the module, and on its function in JAX: within 1 %."""
  pyautoattack = pytest.importorskip('pyautoattack')
  torch.manual_seed(0)
  train, test = (datasets.embedded.load(split).read(np.arange(n)) for split, n in (('train', 4096), ('test', 256)))
  model, epsilon = Small(), 2 / 255
  optimizer = torch.optim.Adam(model.parameters(), 3e-3)
  for step in range(400):
    index = np.random.default_rng(step).integers(4096, size=128)
    images = (torch.tensor(train.images[index]).movedim(-1, 1) / 255).requires_grad_()
    labels = torch.tensor(train.labels[index]).long()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(images), labels), images)
    moved = (images.detach() + epsilon * gradient.sign()).clamp(0, 1)
    optimizer.zero_grad()
    functional.cross_entropy(model(moved), labels).backward()
    optimizer.step()
  model.eval()
  images, labels = np.float32(test.images) / 255, test.labels
  inputs = torch.tensor(images).movedim(-1, 1).contiguous()
  theirs = pyautoattack.AutoAttack(model, norm='Linf', eps=epsilon, version='standard', device='cpu', seed=0)
  moved, _ = theirs.run_standard_evaluation(inputs, torch.tensor(labels).long(), batch_size=128)
  with torch.no_grad():
    robust = int((model(moved).argmax(1).numpy() == labels).sum())
  attack = attacks.autoattack(norm='linf', epsilon=epsilon)
  result = attack(jax.random.split(jax.random.key(0), 256), pytorch.from_torch(model), images, labels)
  ours = int((~np.asarray(result.metrics['success'])).sum())
  print(f'robust images of 256: ours {ours}, theirs {robust}')
  assert 20 < robust < 236
  assert abs(ours - robust) <= 2.56


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
  'options, said',
  [
    ({'nu': 'a'}, "attack.nu='a' must be"),
    ({'num_steps': -1}, 'attack.num_steps=-1 must be'),
    ({'num_steps': 1.5}, 'attack.num_steps=1.5 must be'),
    ({'min_ssim': 2}, 'attack.min_ssim=2 must be'),
    ({'seed': 'a'}, "seed='a' must be"),
    ({'std': 0}, 'std=0 must be above 0'),
    ({'mean': (0.1, 0.2)}, 'mean=(0.1, 0.2) must be one number or three'),
  ],
)
def test_ada_is_checked_when_it_is_made(options, said):
  with pytest.raises(UserError, match=re.escape(said)):
    pytorch.TorchAdA(weights='edsr_4x16_x1', **options)


@pytest.mark.parametrize(
  'names, severities, said',
  [
    ('fog', (1,), "names='fog' must be a list"),
    ([], (1,), 'names=[] must be a list of at least one'),
    (['nofog'], (1,), "Unknown corruption 'nofog'"),
    (['fog'], 3, 'severities=3 must be a list'),
    (['fog'], (6,), 'severities has 6; they are integers from 1 to 5'),
  ],
)
def test_corruptions_are_checked_when_they_are_made(names, severities, said):
  with pytest.raises(UserError, match=re.escape(said)):
    pytorch.TorchCorruptions(names, severities)
