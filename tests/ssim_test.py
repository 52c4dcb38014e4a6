"""SSIM against scikit-image, and the line search against NumPy's polynomials and SciPy's bisection."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from skimage.metrics import structural_similarity
from sklearn.datasets import load_sample_image

from adversarial_augment import ssim as module
from adversarial_augment.errors import UserError
from adversarial_augment.ssim import ROOTS, correct, line_search, ssim

FUZZ = settings(max_examples=20, deadline=None, derandomize=True)
THRESHOLDS = (-1.0, 0.0, 0.3, 0.9, 1.0)
QUADRATIC_RULES = ('literal', 'first_crossing')
GAMMAS = np.linspace(0, 1, 9)


def oracle(a, b) -> float:
  return structural_similarity(
    a, b, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
  )


def oracles(images, other) -> np.ndarray:
  images, other = (np.asarray(a, np.float64) for a in (images, other))
  return np.array([oracle(a, b) for a, b in zip(images, other, strict=True)])


@functools.cache
def photographs() -> np.ndarray:
  """Six patches of two photographs, float64 [6, 32, 32, 3]."""
  patches = [
    load_sample_image(name)[::4, ::4][top : top + 32, left : left + 32]
    for name in ('china.jpg', 'flower.jpg')
    for top, left in ((10, 0), (60, 60), (60, 120))
  ]
  return np.stack(patches) / 255.0


@functools.cache
def pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Clean images with counterparts that range from equal to the worst, float64."""
  x = photographs()
  rng = np.random.default_rng(0)
  flat = np.broadcast_to(rng.uniform(size=(6, 1, 1, 3)), x.shape)
  return {
    'equal': (x, x),
    'mild': (x, (0.9 * x + 0.05)),
    'noise': (x, rng.uniform(size=x.shape)),
    'grain': (x, (x + rng.normal(0, 0.2, x.shape)).clip(0, 1)),
    'inverted': (x, 1 - x),
    'shifted': (x, np.roll(x, 5, axis=(1, 2))),
    'constant': (x, flat),
    'of a constant': (flat, x),
    'two constants': (flat, flat[::-1]),
    'other photograph': (x, x[::-1]),
    'saturated': (x, (x > 0.5).astype(float)),
    'black': (x, np.zeros_like(x)),
    'from black': (np.zeros_like(x), np.ones_like(x)),
    'checkerboard': (np.indices((6, 32, 32, 3)).sum(0) % 2.0, 1 - np.indices((6, 32, 32, 3)).sum(0) % 2.0),
  }


def everything(dtype) -> tuple[np.ndarray, np.ndarray]:
  """All pairs as one batch of 84: one shape is one compilation."""
  x, y = (np.concatenate(part).astype(dtype) for part in zip(*pairs().values(), strict=True))
  return x, y


def part(name: str) -> slice:
  """Where the six pairs of a name are in `everything`."""
  start = 6 * list(pairs()).index(name)
  return slice(start, start + 6)


@functools.partial(jax.jit, static_argnames='root')
def _jitted(images, other, min_ssim, root):
  return correct(images, other, min_ssim=min_ssim, root=root)


def run(images, other, min_ssim, root) -> module.Corrected:
  result = _jitted(images, other, np.asarray(min_ssim, images.dtype), root)
  return jax.tree.map(np.asarray, result)


jitted_ssim = jax.jit(ssim)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('dtype, atol', [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_equals_scikit_image(dtype, atol):
  x, y = everything(dtype)
  found = jitted_ssim(x, y)
  assert found.dtype == dtype
  np.testing.assert_allclose(found, oracles(x, y), atol=atol)


def test_equals_scikit_image_on_other_shapes():
  rng = np.random.default_rng(1)
  for shape in ((2, 11, 11, 1), (1, 12, 27, 3)):
    x, y = (rng.uniform(size=shape).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(ssim(x, y), oracles(x, y), atol=1e-5)


@pytest.mark.usefixtures('x64')
def test_identities():
  x, y = everything(np.float64)
  s = jitted_ssim(x, y)
  np.testing.assert_allclose(jitted_ssim(x, x), 1, atol=1e-14)
  np.testing.assert_allclose(jitted_ssim(y, x), s, atol=1e-12)
  for move in (lambda a: a[:, ::-1], lambda a: a[:, :, ::-1], lambda a: a.swapaxes(1, 2), lambda a: a[..., ::-1]):
    np.testing.assert_allclose(jitted_ssim(move(x), move(y)), s, atol=1e-12)
  np.testing.assert_allclose(ssim(x[20:21], y[20:21])[0], s[20], atol=1e-12)
  assert np.abs(s).max() <= 1 + 1e-12
  assert np.min(s) < -0.5  # a checkerboard and its negative
  a, b = (x[:, 0, 0].mean(-1)[:, None, None, None] * np.ones_like(x) for x in (x, y))  # constant: a closed form
  closed = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
  np.testing.assert_allclose(jitted_ssim(a, b), closed[:, 0, 0, 0], atol=1e-6)


def test_gradients_are_finite():
  x, y = everything(np.float32)
  gradients = jax.jit(jax.grad(lambda x, y: ssim(x, y).sum(), argnums=(0, 1)))(x, y)
  assert all(np.isfinite(g).all() for g in gradients)


def test_other_shapes_are_refused():
  for a, b in (((1, 32, 32, 3), (1, 32, 31, 3)), ((32, 32, 3), (32, 32, 3)), ((1, 10, 32, 3), (1, 10, 32, 3))):
    with pytest.raises(UserError, match='ssim'):
      ssim(jnp.zeros(a), jnp.zeros(b))
  with pytest.raises(UserError, match="root 'strickt'.*Did you mean 'strict'"):
    line_search(jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 32, 32, 3)), min_ssim=0.3, root='strickt')


# The line search.


@pytest.mark.parametrize('min_ssim', THRESHOLDS)
def test_strict_keeps_its_promise(min_ssim):
  x, y = everything(np.float32)
  result = run(x, y, min_ssim, 'strict')
  reached = oracles(x, result.images)
  assert reached.min() >= min_ssim - 1e-4
  np.testing.assert_allclose(result.ssim_after, reached, atol=1e-5)
  np.testing.assert_allclose(result.ssim, oracles(x, y), atol=1e-5)
  # gamma is 1 for the mild only
  assert (result.gamma[oracles(x, y) < min_ssim - 1e-5] < 1).all()


@pytest.mark.parametrize('root', list(ROOTS))
@pytest.mark.parametrize('min_ssim', THRESHOLDS)
def test_mild_images_are_untouched_bit_for_bit(root, min_ssim):
  x, y = everything(np.float32)
  result = run(x, y, min_ssim, root)
  mild = result.ssim >= min_ssim
  assert mild.all() == (min_ssim == -1)
  np.testing.assert_array_equal(result.images[mild], y[mild])
  assert (result.gamma[mild] == 1).all()
  for values in (result.images, result.gamma):
    assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.usefixtures('x64')
def test_strict_finds_the_true_crossing():
  x, y = everything(np.float64)
  gammas = run(x, y, 0.3, 'strict').gamma
  corrected = 0
  for image, other, gamma in zip(x, y, gammas, strict=True):
    curve = lambda g, image=image, other=other: oracle(image, image + g * (other - image)) - 0.3
    values = [curve(g) for g in GAMMAS]
    if values[-1] >= 0:
      assert gamma == 1
      continue
    last = max(k for k in range(9) if values[k] >= 0)
    true = scipy.optimize.brentq(curve, GAMMAS[last], GAMMAS[last + 1], xtol=1e-12)
    assert gamma == pytest.approx(true, abs=1e-3)
    assert 0 <= curve(gamma) + 1e-12 < 1e-2
    corrected += 1
  assert corrected > 20


def reference_gamma(values, min_ssim, root) -> float:
  """The appendix by NumPy: a fitted quadratic, its real roots, and the choice among them."""
  if values[-1] >= min_ssim:
    return 1.0
  roots = np.roots(np.polyfit(GAMMAS, values - min_ssim, 2))
  real = sorted(roots[np.abs(roots.imag) < 1e-9].real)
  if root == 'literal':
    return max((float(np.clip(r, 0, 1)) for r in real), default=1.0)
  inside = [r for r in real if 0 <= r <= 1]
  if inside:
    return inside[0]
  h = values - min_ssim
  m = int(np.argmax(h < 0)) - 1
  return (m + h[m] / (h[m] - h[m + 1])) / 8


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('root', QUADRATIC_RULES)
@pytest.mark.parametrize('min_ssim', [0.3, 0.7])
def test_quadratic_rules_are_the_appendix_by_numpy(root, min_ssim):
  x, y = everything(np.float64)
  gammas = run(x, y, min_ssim, root).gamma
  corrected = 0
  for name in ('noise', 'inverted', 'other photograph', 'constant', 'saturated', 'shifted'):
    for image, other, gamma in zip(x[part(name)], y[part(name)], gammas[part(name)], strict=True):
      values = np.array([oracle(image, image + g * (other - image)) for g in GAMMAS])
      expected = reference_gamma(values, min_ssim, root)
      assert gamma == pytest.approx(expected, abs=1e-6)
      corrected += expected < 1
  assert corrected >= 5


CURVES = {
  'linear': lambda g: 1 - 1.2 * g,
  'convex': lambda g: np.exp(-4 * g),
  'concave': lambda g: 1 - g**2,
  'quadratic': lambda g: 1 - 0.3 * g - 0.6 * g**2,
  'cosine': lambda g: np.cos(2.5 * g),
  'cliff': lambda g: np.where(g < 0.8, 1.0, -0.2),
  'dip': lambda g: np.where(g < 1, 1 - 8 * g * (1.05 - g), 0.2),
  'late cliff': lambda g: np.where(g > 0.99, 0.2, 1.0),
}


@functools.partial(jax.jit, static_argnums=0)
def _root_of(root, values, min_ssim):
  return ROOTS[root](None, values[None], min_ssim)[0][0]


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', list(CURVES))
@pytest.mark.parametrize('root', QUADRATIC_RULES)
def test_roots_of_given_curves(name, root):
  curve = CURVES[name]
  gamma = float(_root_of(root, jnp.asarray(curve(GAMMAS)), 0.3))
  assert gamma == pytest.approx(reference_gamma(curve(GAMMAS), 0.3, root), abs=1e-7)
  exact = {'linear': 0.7 / 1.2, 'concave': np.sqrt(0.7)}
  if root == 'first_crossing' and name in exact:
    assert gamma == pytest.approx(exact[name], abs=1e-12)
  elif root == 'first_crossing' and 'cliff' not in name and name != 'dip':  # a falling curve, by bisection
    assert gamma == pytest.approx(scipy.optimize.brentq(lambda g: curve(g) - 0.3, 0, 1), abs=0.1)


@FUZZ
@given(st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8), st.sampled_from([-0.9, 0.0, 0.3, 0.999]))
def test_any_nine_values_give_a_gamma_between_0_and_1(values, min_ssim):
  for root in QUADRATIC_RULES:
    gamma = _root_of(root, np.float32([1.0, *values]), jnp.float32(min_ssim))
    assert values[-1] >= min_ssim or 0 <= gamma <= 1  # `correct` does not use the gamma of images that are mild


@pytest.mark.usefixtures('x64')
def test_the_fit_has_the_published_coefficients():
  by_33 = np.array([64, 16, -128 / 7, -272 / 7, -320 / 7, -272 / 7, -128 / 7, 16, 64]) / 33
  np.testing.assert_allclose(module._QUADRATIC[0], by_33, atol=1e-13)
  c = [109 / 165, 21 / 55, 9 / 55, 1 / 165, -1 / 11, -7 / 55, -17 / 165, -1 / 55, 7 / 55]
  np.testing.assert_allclose(module._QUADRATIC[2], c, atol=1e-13)


def test_literal_leaves_convex_curves_uncorrected_where_the_others_correct():
  """The appendix to the letter: the larger root lies beyond 1, is clipped to 1, and nothing happens."""
  x, y = everything(np.float32)
  noise = part('noise')
  assert (run(x, y, 0.3, 'strict').gamma[part('mild')] == 1).all()  # .3 is a similarity, as in section 2: no distance
  results = {root: jax.tree.map(lambda a: a[noise], run(x, y, 0.3, root)) for root in ROOTS}
  assert (results['literal'].ssim < 0.3).all()
  assert (results['literal'].gamma == 1).all()
  np.testing.assert_array_equal(results['literal'].images, y[noise])
  assert (results['first_crossing'].ssim_after > results['first_crossing'].ssim).all()
  assert (results['strict'].ssim_after >= 0.3 - 1e-4).all()


def test_a_higher_threshold_never_lets_more_through():
  x, y = everything(np.float32)
  gammas = np.stack([run(x, y, min_ssim, 'strict').gamma for min_ssim in THRESHOLDS])
  assert (np.diff(gammas, axis=0) <= 1e-3).all()


@pytest.mark.parametrize('root', list(ROOTS))
def test_images_do_not_depend_on_their_batch(root):
  x, y = everything(np.float32)
  order = np.random.default_rng(0).permutation(len(x))
  whole = run(x, y, 0.3, root).images
  np.testing.assert_array_equal(run(x[order], y[order], 0.3, root).images, whole[order])


def test_line_search_is_correct_under_vmap():
  x, y = everything(np.float32)
  one = lambda a, b: line_search(a[None], b[None], min_ssim=0.3, root='strict')[0]
  np.testing.assert_allclose(jax.jit(jax.vmap(one))(x, y), run(x, y, 0.3, 'strict').images, atol=1e-4)


@FUZZ
@given(st.integers(0, 2**31), st.sampled_from(THRESHOLDS))
def test_fuzzed_pairs_pass_strict(seed, min_ssim):
  rng = np.random.default_rng(seed)
  x, y = rng.uniform(size=(2, 84, 32, 32, 3))
  blocks = np.kron(rng.uniform(size=(84, 4, 4, 3)), np.ones((1, 8, 8, 1)))
  smooth, changed = rng.uniform(size=(2, 84, 1, 1, 1)).round(1)
  x = (smooth * blocks + (1 - smooth) * x).round(rng.integers(0, 8)).astype(np.float32)
  y = np.where(rng.uniform(size=y.shape) < changed, y, x).round(rng.integers(0, 8)).astype(np.float32)
  result = run(x, y, min_ssim, 'strict')
  assert np.isfinite(result.images).all()
  assert oracles(x, result.images).min() >= min_ssim - 1e-4
