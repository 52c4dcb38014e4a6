"""What is traced for a mesh follows from the mesh's devices, not from those of the process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import per_example_conv
from adversarial_augment.parallel import platforms, sharding


class Device:
  def __init__(self, platform):
    self.platform = platform


class Mesh:
  """As much of a mesh as is asked for its platform."""

  def __init__(self, platform):
    self.devices = np.array([Device(platform)])


def text(mesh, channels=64):
  images, kernels = jnp.zeros((2, 8, 8, channels)), jnp.zeros((2, 3, 3, channels, channels))
  return str(jax.jit(platforms.for_mesh(mesh, per_example_conv.per_example_conv)).trace(images, kernels).jaxpr)


def test_names_and_default():
  assert [platforms.of(Mesh(name)) for name in ('cpu', 'cuda', 'rocm', 'gpu', 'tpu')] == ['cpu', *['gpu'] * 3, 'tpu']
  assert platforms.current() == jax.default_backend() == 'cpu'
  with platforms.tracing_for(Mesh('tpu')):
    assert platforms.current() == 'tpu'
    with platforms.tracing_for(Mesh('cuda')):
      assert platforms.current() == 'gpu'
    assert platforms.current() == 'tpu'
  assert platforms.current() == 'cpu'


def test_one_process_makes_the_form_of_each_platform():
  of_cpu, of_gpu, of_tpu = (text(Mesh(name)) for name in ('cpu', 'cuda', 'tpu'))
  assert len({of_cpu, of_gpu, of_tpu}) == 3
  assert 'scan' in of_cpu  # one example after the other
  assert 'scan' not in of_gpu + of_tpu
  assert 'feature_group_count=2' in of_gpu  # cuDNN's grouped convolution
  assert text(Mesh('cpu')) == of_cpu == text(sharding.data_mesh())  # nothing is left of the others


def test_an_error_while_tracing_leaves_the_default():
  def fails():
    raise ValueError(platforms.current())

  with pytest.raises(ValueError, match='tpu'):
    jax.jit(platforms.for_mesh(Mesh('tpu'), fails))()
  assert platforms.current() == 'cpu'
