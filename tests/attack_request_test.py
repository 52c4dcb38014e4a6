"""The flags of `evaluate --attack`: what they ask for, and what is refused in one line before anything runs."""

from pathlib import Path

import pytest

from adversarial_augment import evaluate, results
from adversarial_augment.attacks import suites
from adversarial_augment.errors import UserError
from adversarial_augment.evaluation import attack_request, attack_run
from tests import classifier_cases


@pytest.fixture
def run(tmp_path) -> Path:
  classifier_cases.save_run(tmp_path / 'w')
  return tmp_path / 'w'


def command(run: Path, *flags: str) -> int | None:
  return evaluate.main([f'--workdir={run}', *flags])


@pytest.mark.parametrize(
  'flags, message',
  [
    (
      ['--attack=autoatack', '--norm=linf', '--epsilon=8/255'],
      "Unknown --attack 'autoatack'.*Did you mean 'autoattack",
    ),
    (['--attack=pgd', '--norm=linf', '--epsilon=8'], 'did you mean 8/255'),
    (['--attack=pgd', '--norm=linf', '--epsilon=4/255,8'], 'did you mean 8/255'),
    (['--attack=pgd', '--norm=l1', '--epsilon=8/255'], "Unknown norm 'l1'"),
    (['--attack=pgd', '--norm=linf', '--epsilon=8/0'], "--epsilon='8/0' must be a number or a fraction"),
    (['--attack=pgd', '--norm=linf', '--epsilon=eight'], "--epsilon='eight'"),
    (['--attack=pgd', '--norm=linf', '--epsilon=-1/255'], 'epsilon=-0.0039'),
    (['--attack=pgd', '--norm=linf', '--epsilon=nan'], "--epsilon='nan'"),
    (['--attack=pgd', '--norm=l2', '--epsilon=inf'], 'epsilon=inf'),
    (['--attack=pgd', '--norm=linf'], 'needs --epsilon, for example --epsilon=8/255'),
    (['--attack=pgd', '--epsilon=8/255'], 'needs --norm'),
    (['--attack=table2', '--norm=linf'], 'has norms and radii of its own'),
    (['--norm=linf'], '--norm belongs to --attack'),
    (['--norm='], '--norm belongs to --attack'),
    (['--attack=pgd', '--norm=linf', '--epsilon=0.1', '--surrogate='], '--surrogate= must name'),
    (['--attack=pgd', '--norm=linf', '--epsilon=-8/-255'], "--epsilon='-8/-255' must be written without a sign"),
    (['--attack=pgd', '--norm=linf', '--epsilon=-0'], "--epsilon='-0' must be written without a sign"),
    (['--save_images'], '--save_images belongs to --attack'),
    (['--surrogate=x'], '--surrogate belongs to --attack'),
    (['--attack=pgd', '--norm=linf', '--epsilon=0.1', '--evals=clean'], '--attack and --evals'),
    (['--attack=pgd', '--norm=linf', '--epsilon=0.1', '--num_examples=0'], "--num_examples='0'"),
    (['--attack=pgd', '--norm=linf', '--epsilon=0.1', '--num_examples=1e3'], "--num_examples='1e3'"),
    (['--attack=pgd', '--norm=linf', '--epsilon=0.1', '--num_examples=2001'], 'at most 2000'),
    (['--attack=pgd', '--norm=linf', '--epsilon=0.1', '--seed=-1'], "--seed='-1'"),
  ],
)
def test_bad_flags_are_refused(run, flags, message, monkeypatch):
  monkeypatch.setattr(attack_run, 'run', lambda *_, **__: pytest.fail('it ran'))
  with pytest.raises(UserError, match=message) as caught:
    command(run, *flags)
  assert '\n' not in str(caught.value)


def test_table_2_is_the_papers_suite_within_the_papers_balls(run, monkeypatch):
  asked = []
  monkeypatch.setattr(attack_run, 'run', lambda config, workdir, test, request, overwrite: asked.append(request))
  command(run, '--attack=table2')
  (request,) = asked
  assert request.suite == 'paper'
  balls = [(norm, epsilon) for norm, epsilon, _ in request.balls]
  assert balls == [('l2', 0.5), ('l2', 1.0), ('linf', 1 / 255), ('linf', 2 / 255), ('linf', 4 / 255)]
  assert set(attack_request.ATTACKS) == {*suites.SUITES, 'table2'}


def test_radii_keep_all_their_digits(run, monkeypatch):
  asked = []
  monkeypatch.setattr(attack_run, 'run', lambda config, workdir, test, request, overwrite: asked.append(request))
  command(run, '--attack=pgd', '--norm=linf', '--epsilon=0.1234567,0.1234568,1E-3,8/255,8.0/255,0.50')
  texts = [ball.text for ball in asked[0].balls]
  assert texts == ['0.1234567', '0.1234568', '0.001', '8/255', '8/255', '0.5']


def test_files_are_named_by_attack_norm_and_radius():
  assert results.robustness_name('paper', 'linf', '4/255') == 'robustness_paper_linf_4-255'
  assert results.robustness_name('paper', 'l2', '0.5') == 'robustness_paper_l2_0.5'
