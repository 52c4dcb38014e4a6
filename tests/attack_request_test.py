"""The flags of `evaluate --attack`: what they ask for, and what is refused in one line before anything runs."""

import pytest

from adversarial_augment import evaluate, results
from adversarial_augment.attacks import suites
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_request, attack_run
from tests import classifier_cases

PGD = '--attack=pgd --norm=linf --epsilon=0.1'


@pytest.fixture
def ask(tmp_path, monkeypatch):
  """Returns the request that some flags make; nothing runs."""
  classifier_cases.save_run(tmp_path / 'w')
  monkeypatch.setattr(attack_run, 'run', lambda config, workdir, test, request, overwrite: request)
  return lambda flags: evaluate.main([f'--workdir={tmp_path}/w', *flags.split()])


@pytest.mark.parametrize('flags, message', [
  ('--attack=autoatack --norm=linf --epsilon=8/255', "Unknown --attack 'autoatack'.*Did you mean 'autoattack"),
  ('--attack=pgd --norm=linf --epsilon=8', 'did you mean 8/255'),
  ('--attack=pgd --norm=linf --epsilon=4/255,8', 'did you mean 8/255'),
  ('--attack=pgd --norm=l1 --epsilon=8/255', "Unknown norm 'l1'"),
  ('--attack=pgd --norm=linf --epsilon=8/0', "--epsilon='8/0' must be a number or a fraction"),
  ('--attack=pgd --norm=linf --epsilon=eight', "--epsilon='eight'"),
  ('--attack=pgd --norm=linf --epsilon=-1/255', "--epsilon='-1/255' must be a number or a fraction without a sign"),
  ('--attack=pgd --norm=linf --epsilon=-8/-255', "--epsilon='-8/-255' must be a number or a fraction without a sign"),
  ('--attack=pgd --norm=linf --epsilon=-0', "--epsilon='-0' must be a number or a fraction without a sign"),
  ('--attack=pgd --norm=linf --epsilon=nan', "--epsilon='nan'"),
  ('--attack=pgd --norm=l2 --epsilon=inf', 'epsilon=inf'),
  ('--attack=pgd --norm=l2 --epsilon=128', '--norm=l2 must be at most 55.43, .* did you mean 128/255'),
  ('--attack=pgd --norm=linf', 'needs --epsilon, for example --epsilon=8/255'),
  ('--attack=pgd --epsilon=8/255', 'needs --norm'),
  ('--attack=table2 --norm=linf', 'sets its balls itself; leave --norm out'),
  ('--norm=linf', '--norm needs --attack'),
  ('--distance=self', '--distance needs --attack'),
  ('--attack=perceptual --epsilon=0.5', 'perceptual needs --distance, for example --distance=alexnet'),
  ('--attack=perceptual --distance=self', 'needs --epsilon, for example --epsilon=0.5'),
  ('--attack=perceptual --distance=slef --epsilon=1', "Unknown --distance 'slef'.*Did you mean 'self'"),
  ('--attack=perceptual --distance=self --epsilon=0', "--epsilon='0' of a perceptual distance must be above 0"),
  ('--attack=perceptual --distance=self --epsilon=1 --norm=l2', '--norm cannot go with --attack=perceptual'),
  ('--attack=perceptual --distance=self --epsilon=1 --surrogate=x', '--surrogate cannot go with --attack=perceptual'),
  ('--attack=perceptual --distance=self --epsilon=1 --distance_from=x', "_from='x' needs --distance=alexnet"),
  ('--attack=perceptual --distance=alexnet --epsilon=1 --distance_from=x', "--distance_from='x' does not exist"),
  (f'{PGD} --distance=self', '--distance cannot go with --attack=pgd, which has --norm'),
  ('--norm=', '--norm needs --attack'),
  ('--distance=alexnet', '--distance needs --attack, such as --attack=perceptual'),
  ('--attack=pgd --distance=alexnet --epsilon=1', '--distance cannot go with --attack=pgd'),
  ('--attack=perceptual --distance=alexnet --epsilon=1e300', 'above 0 and at most 1000'),
  ('--attack=perceptual --distance=alexnet --epsilon=1 --distance_from=', '--distance_from= must name'),
  ('--seed=0', '--seed needs --attack'),
  ('--save_images', '--save_images needs --attack'),
  ('--surrogate=x', '--surrogate needs --attack'),
  (f'{PGD} --surrogate=', '--surrogate= must name'),
  (f'{PGD} --evals=clean', '--attack and --evals'),
  (f'{PGD} --num_examples=0', "--num_examples: '0' must be an integer from 1"),
  (f'{PGD} --num_examples=1e3', "--num_examples: '1e3' must be an integer from 1"),
  (f'{PGD} --num_examples=2001', 'at most 2000'),
  (f'{PGD} --seed=-1', "--seed: '-1' must be an integer from 0"),
  (f'{PGD} --config.eval_images=5', 'config.eval_images has no effect with --attack; leave it out'),
  (f'{PGD} --config.attack.num_steps=100', 'config.attack.num_steps has no effect with --attack; leave it out'),
])  # fmt: skip
def test_bad_flags_are_refused(ask, flags, message):
  with pytest.raises(UserError, match=message) as caught:
    ask(flags)
  assert '\n' not in str(caught.value)


def test_table_2_is_the_papers_suite_within_the_papers_balls(ask):
  request = ask('--attack=table2')
  assert request.suite == 'paper'
  balls = [(norm, epsilon) for norm, epsilon, _ in request.balls]
  assert balls == [('l2', 0.5), ('l2', 1.0), ('linf', 1 / 255), ('linf', 2 / 255), ('linf', 4 / 255)]
  assert set(attack_request.ATTACKS) == {*suites.SUITES, 'table2'}


def test_radii_keep_all_their_digits_and_name_the_files(ask):
  request = ask('--attack=pgd --norm=linf --epsilon=0.1234567,0.1234568,1E-3,8/255,8.0/255,0.50')
  assert [ball.text for ball in request.balls] == ['0.1234567', '0.1234568', '0.001', '8/255', '8/255', '0.5']
  assert results.robustness_name('paper', 'linf', '4/255') == 'robustness_paper_linf_4-255'
  assert results.robustness_name('paper', 'l2', '0.5') == 'robustness_paper_l2_0.5'
