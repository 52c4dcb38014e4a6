"""Distance, Fast-LPA, LPA and PPGD beside the published formulas in torch, on the same weights, images and starts.

Broken images of 256 (24 without an attack), ours / theirs (torch 2.13, JAX 0.10.2):

| distance | Fast-LPA 0.3, 0.5 | LPA 0.15, 0.2 | PPGD 0.15, 0.2 |
|---|---|---|---|
| of the classifier | 39 / 39, 94 / 94 | 122 / 122, 160 / 160 | 108 / 108, 131 / 132 |
| of another network | 56 / 56, 121 / 121 | 210 / 210, 247 / 247 | 168 / 167, 222 / 222 |

The authors' code makes one step more after a success (LPA), or goes on to a margin of 1 (PPGD). It then loses successes
to Newton's projection, which aims 0.1 within the ball. At 0.2, where ours breaks 160 and 247 by LPA, and 131 and 222 by
PPGD, that rule breaks 73 and 95, and 114 and 203.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, threefry
from adversarial_augment.attacks.perceptual import starts
from tests import autoattack_parity_test as small
from tests import boxed_linear

torch = pytest.importorskip('torch', reason="torch is not installed; pip install 'adversarial-augment[autoattack]'")

NUM_IMAGES = 256
NUM_STEPS = 20
BOUNDS = {'fast_lpa': (0.3, 0.5, 0.7), 'lpa': (0.12, 0.15, 0.2), 'ppgd': (0.12, 0.15, 0.2)}
RADIUS = 8 / 255  # of the training, so that some images withstand
CLASSIFIER, OTHER = 0, 1  # seeds


def our_features(params, images):
  layers = []
  x = images - 0.5
  for name in 'ab':
    kernel, bias = params[name]
    x = jax.lax.conv_general_dilated(x, kernel, (2, 2), [(2, 2), (2, 2)], dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
    layers.append(x)
  return layers


class Reference(torch.nn.Module):
  """The same networks of [n, c, h, w], in float64."""

  def __init__(self, params):
    super().__init__()
    tensor = lambda value: torch.from_numpy(np.array(value, float))
    self.convs = [(tensor(params[name][0].transpose(3, 2, 0, 1)), tensor(params[name][1])) for name in 'ab']
    self.out = [tensor(value) for value in params['out']]

  def features(self, x):
    layers = []
    x = x - 0.5
    for weight, bias in self.convs:
      x = torch.nn.functional.relu(torch.nn.functional.conv2d(x, weight, bias, stride=2, padding=2))
      layers.append(x)
    return layers

  def forward(self, x):
    return self.features(x)[-1].permute(0, 2, 3, 1).flatten(1) @ self.out[0] + self.out[1]

  def phi(self, x):
    """a_l / ((||a_l||_channel + 1e-10) sqrt(H_l W_l)), flat."""
    flat = lambda a: (a / ((a.norm(dim=1, keepdim=True) + 1e-10) * np.sqrt(a.shape[2] * a.shape[3]))).flatten(1)
    return torch.cat([flat(a) for a in self.features(x)], 1)


def margin(logits, y, kappa):
  others = logits.clone()
  others[torch.arange(len(y)), y] = -np.inf
  return (others.max(1).values - logits.gather(1, y[:, None])[:, 0]).clamp(max=kappa)


def gradient(value, x):
  return torch.autograd.grad(value.sum(), x)[0]


def flat_norm(x):
  return x.flatten(1).norm(dim=1)


def per_image(values):
  return values[:, None, None, None]


def bisect(net, eps, x, adversarial):
  low, high = torch.zeros(len(x), dtype=x.dtype), torch.ones(len(x), dtype=x.dtype)
  for _ in range(10):
    middle = (low + high) / 2
    projected = x + per_image(middle) * (adversarial - x)
    inside = (net.phi(projected) - net.phi(x)).norm(dim=1) <= eps
    low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
  return projected


def newton(net, eps, x, adversarial):
  target, moved = net.phi(x), adversarial.clone()
  for _ in range(10):
    moved = moved.detach().requires_grad_()
    distances = (net.phi(moved) - target).norm(dim=1)
    r = (distances - eps).clamp(min=0)
    r = torch.where(r > 0, r + 0.1, r).detach()
    slope = gradient(distances, moved)
    step = per_image(1.1 * r / flat_norm(slope) ** 2) * slope
    moved = torch.where(per_image(r > 0), (moved - step).clamp(0, 1), moved).detach()
  outside = (net.phi(moved) - target).norm(dim=1) > eps
  return torch.where(per_image(outside), bisect(net, eps, x, adversarial), moved).detach()


def lagrangian(classifier, net, eps, x, y, delta, weight, step, kappa):
  """Returns delta after one step, and what there was before it: margin and distance."""
  delta = delta.detach().requires_grad_()
  phi = net.phi(x + delta)
  margins, distances = margin(classifier(x + delta), y, kappa), (phi - net.phi(x)).norm(dim=1)
  slope = gradient(-margins + weight * (distances - eps).clamp(min=0), delta)
  slope = slope / per_image(flat_norm(slope) + 1e-8)
  m = (phi - net.phi(x + delta - 0.1 * slope)).norm(dim=1) / 0.1
  moved = (x + delta - slope * per_image(step / (m + 1e-4))).clamp(0, 1) - x
  return moved.detach(), margins.detach(), distances.detach()


def fast_lpa(classifier, net, eps, x, y, start, steps):
  delta = start - x
  for t in range(steps):
    weight, step = 10 * 0.1 ** (1 - t / steps), eps * 0.1 ** (t / steps)
    delta, _, _ = lagrangian(classifier, net, eps, x, y, delta, weight, step, np.inf)
  return newton(net, eps, x, x + delta)


def lpa(classifier, net, eps, x, y, start, steps, stays=True):
  delta, weight = start - x, torch.full((len(x),), 0.01, dtype=x.dtype)
  live = torch.ones(len(x), dtype=torch.bool)
  for _ in range(5):
    for t in range(steps):
      moved, margins, distances = lagrangian(classifier, net, eps, x, y, delta, weight, eps * 0.1 ** (t / steps), 1)
      before = live
      live = live & ~((margins >= 0) & (distances <= eps))
      delta = torch.where(per_image(live if stays else before), moved, delta)
    weight = torch.where(before & (distances >= eps), 10 * weight, weight)
  return newton(net, eps, x, x + delta)


def ppgd(classifier, net, eps, x, y, start, steps, stays=True):
  adversarial, target = start, net.phi(x)
  for _ in range(steps):
    z = adversarial.detach().requires_grad_()
    phi = net.phi(z)
    right = torch.autograd.grad(margin(classifier(z), y, 1).sum(), z)[0]
    right = right / per_image(flat_norm(right).clamp(min=1e-30))
    push = lambda v, z=z, phi=phi: ((net.phi(z.detach() + 1e-3 * v) - phi) / 1e-3).detach()
    square = lambda v, z=z, phi=phi, push=push: torch.autograd.grad((phi * push(v)).sum(), z, retain_graph=True)[0]
    found, rest, way = torch.zeros_like(right), right, right
    dot = lambda a, b: (a * b).flatten(1).sum(1)
    for _ in range(5):
      image = square(way)
      length = dot(rest, rest) / dot(way, image)
      found, left = found + per_image(length) * way, rest - per_image(length) * image
      way, rest = left + per_image(dot(left, left) / dot(rest, rest)) * way, left
    step = per_image(2 * eps / steps / push(found).norm(dim=1)) * found
    moved = newton(net, eps, x, (z.detach() + torch.nan_to_num(step)).clamp(0, 1))
    done = stays & (margin(classifier(z), y, 1) >= 0) & ((phi - target).norm(dim=1) <= eps)
    adversarial = torch.where(per_image(done), z, moved).detach()
  return adversarial


# `stays`: where an image is first broken, as in ours.
THEIRS = {'fast_lpa': fast_lpa, 'lpa': lpa, 'ppgd': ppgd}
AS_IN_THEIR_CODE = {'lpa': functools.partial(lpa, stays=False), 'ppgd': functools.partial(ppgd, stays=False)}


def to_torch(images):
  return torch.from_numpy(np.array(images, float).transpose(0, 3, 1, 2).copy())


@functools.cache
def trained(seed):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(small, 'RADIUS', RADIUS)
    return small.trained.__wrapped__(seed)


@functools.cache
def batch():
  images, labels = small.data('test', NUM_IMAGES)
  keys = boxed_linear.keys(NUM_IMAGES)
  return keys, images, labels


@pytest.mark.slow
def test_the_distance_is_the_published_one():
  _, images, _ = batch()
  params = trained(OTHER)
  distance = attacks.feature_distance(functools.partial(our_features, params))
  net = Reference(params)
  for other in (np.roll(images, 1, 0), np.clip(images + 0.01, 0, 1)):
    theirs = (net.phi(to_torch(images)) - net.phi(to_torch(other))).norm(dim=1).numpy()
    found = np.asarray(jax.jit(distance)(images, other))
    print(f'largest difference {np.abs(found - theirs).max():.1e} of {theirs.min():.3f} to {theirs.max():.3f}')
    assert np.abs(found - theirs).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'bound'), [(method, bound) for method in BOUNDS for bound in BOUNDS[method]])
@pytest.mark.parametrize('of', ['self', 'other'])
def test_as_many_images_are_broken_as_by_the_published_formulas(of, method, bound):
  ours, theirs, clean = broken(of, method, bound, THEIRS[method])
  assert clean < theirs < NUM_IMAGES
  assert abs(ours - theirs) <= 0.01 * NUM_IMAGES
  assert ours >= theirs - 0.005 * NUM_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize('method', AS_IN_THEIR_CODE)
@pytest.mark.parametrize('of', ['self', 'other'])
def test_no_fewer_images_are_broken_than_by_the_rule_of_the_authors_code(of, method):
  ours, theirs, clean = broken(of, method, 0.2, AS_IN_THEIR_CODE[method])
  assert clean < theirs < NUM_IMAGES
  assert ours >= theirs


def broken(of, method, bound, reference):
  """Returns how many images ours breaks, the reference does, and are misclassified without an attack."""
  keys, images, labels = batch()
  params, seen = trained(CLASSIFIER), trained(CLASSIFIER if of == 'self' else OTHER)
  logits_fn = functools.partial(small.logits, params)
  logits_fn.observe = lambda images: (logits_fn(images), our_features(params, images))
  distance = 'self' if of == 'self' else attacks.feature_distance(functools.partial(our_features, seen))
  attack = attacks.perceptual(distance=distance, epsilon=bound, num_steps=NUM_STEPS, projection='newton', method=method)
  result = jax.jit(lambda keys: attack(keys, logits_fn, images, labels))(keys)
  classifier, net = Reference(params), Reference(seen)
  y = torch.from_numpy(labels.astype(np.int64))
  start = to_torch(starts(threefry.own(keys), jnp.asarray(images)))
  start = start if method == 'fast_lpa' else start.clamp(0, 1)  # where a point may stay
  found = reference(classifier, net, bound, to_torch(images), y, start, NUM_STEPS)
  with torch.no_grad():
    wrong = margin(classifier(found), y, np.inf) >= 0
    again = margin(classifier(to_torch(result.images)), y, np.inf) >= 0
    distances = (net.phi(to_torch(result.images)) - net.phi(to_torch(images))).norm(dim=1)
    clean = int((margin(classifier(to_torch(images)), y, np.inf) >= 0).sum())
  ours, theirs = int(again.sum()), int(wrong.sum())
  print(f'{of} {method} {bound}: {ours} / {theirs} of {NUM_IMAGES}, {clean} before')
  assert distances.max() <= bound * (1 + 1e-5)
  assert ours == int(result.metrics['success'].sum())
  return ours, theirs, clean
