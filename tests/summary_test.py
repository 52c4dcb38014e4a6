"""What a run says of its adversary, in captions and reports."""

import jax
import jax.numpy as jnp
import pytest

from adversarial_augment import config as configs
from adversarial_augment.parallel import platforms
from adversarial_augment.reporting import figures, training
from adversarial_augment.run import summary
from adversarial_augment.types import AttackResult
from tests import tiny

AUGMENTED = {'attack__nu': '0.03', 'attack__num_steps': '7'}


def caption(tmp_path, monkeypatch, **overrides: str) -> str:
  """The title of the picture of examples."""
  config, recipe, phi, state = tiny.make(1, **AUGMENTED, **overrides)
  titles = []
  monkeypatch.setattr(figures, 'training_curves', lambda *_: None)
  monkeypatch.setattr(figures, 'ada_examples', lambda *arguments: titles.append(arguments[-1]))
  same = lambda keys, logits_fn, images, labels, frozen: AttackResult(images, {'ssim': jnp.ones(len(images))})
  summary.draw(tmp_path / 'figures' / 'e.png', config, recipe, tiny.dataset(), state, same, phi)
  return titles[0]


@pytest.mark.parametrize('name, trained', [('ada', ''), ('none', ''), ('advmix', ' (trained with advmix)')])
def test_the_picture_names_the_adversary_of_the_evaluation(tmp_path, monkeypatch, name, trained):
  pytest.importorskip('matplotlib')
  assert caption(tmp_path, monkeypatch, attack__name=name) == f'edsr, AdA, nu 0.03, 7 steps{trained}, step 0'


def test_the_picture_of_training_within_a_ball_names_it(tmp_path, monkeypatch):
  pytest.importorskip('matplotlib')
  ball = {'attack__name': 'lp', 'attack__norm': 'linf', 'attack__epsilon': '4/255'}
  assert caption(tmp_path, monkeypatch, **ball) == 'linf epsilon 4/255, 7 steps, step 0'


@pytest.mark.parametrize(
  'name, said', [('ada', 'ada, nu 0.03, 7 steps'), ('advmix', 'advmix, 7 steps'), ('none', 'no adversary')]
)
def test_reports_say_nu_where_it_plays_a_part(name, said):
  pairs = {'attack.name': name, 'attack.nu': '0.03', 'attack.num_steps': '7'}
  config = configs.override(configs.base_config(), pairs).to_dict()
  assert training.about(training.Run(None, '', config))['training'] == said


@pytest.mark.parametrize(
  'platform, precision, asked, said',
  [
    ('cpu', 'float32', None, ''),
    ('gpu', 'float32', None, 'precision: float32, products rounded to TF32, where the card has it, unless'),
    ('tpu', 'float32', None, 'precision: float32, products rounded to bfloat16 unless JAX_DEFAULT_MATMUL_PRECISION'),
    ('tpu', 'float32', 'highest', 'precision: float32, products as JAX_DEFAULT_MATMUL_PRECISION=highest has them'),
    ('cpu', 'bfloat16', None, 'precision: bfloat16 in the networks, float32 elsewhere'),
  ],
)
def test_a_run_says_what_its_products_are_rounded_to(monkeypatch, platform, precision, asked, said):
  config, recipe, phi, state = tiny.make(1, attack__name='none', precision=precision)
  monkeypatch.setattr(platforms, 'of', lambda mesh: platform)
  with jax.default_matmul_precision(asked):
    lines = list(summary.opening(config, recipe, {'train': tiny.dataset()}, state, phi))
  (line,) = [line for line in lines if line.startswith('precision')] or ['']
  assert bool(line) == bool(said)
  assert line.startswith(said)
