"""The configs of adversarial training within l_p balls: what they set, what is refused, what a run says of itself."""

import json

import pytest

from adversarial_augment import cli, train
from adversarial_augment import config as configs
from adversarial_augment.errors import UserError
from adversarial_augment.exporting import card
from adversarial_augment.reporting import runs, training
from adversarial_augment.run import summary
from experiments import figure1_ssim, figure2_training
from tests import tiny, trainer

LINF = {'attack.name': 'lp', 'attack.norm': 'linf', 'attack.epsilon': '8/255'}
SAID = {
  'linf_adversarial': 'linf epsilon 8/255, 10 steps',
  'l2_adversarial': 'l2 epsilon 0.5, 10 steps',
  'trades': 'linf epsilon 8/255, 10 steps, TRADES 6',
}


def load(name: str, variant: str = '', **overrides: str) -> configs.ConfigDict:
  changed = {field.replace('__', '.'): value for field, value in overrides.items()}
  config = configs.override(configs.load(f'configs/{name}.py:{variant}'), changed)
  configs.validate(config)
  return config


@pytest.mark.parametrize('variant', ['', 'quickstart', 'smoke'])
def test_the_adversary_alone_differs_from_nominal_training(variant):
  nominal, linf, l2, trades = (load(name, variant) for name in ('nominal', *SAID))
  changed = lambda old, new: {line.partition(':')[0] for line in configs.differences(old, new)}
  assert changed(nominal, linf) - {'attack.num_steps'} == {'attack.name', 'attack.norm', 'attack.epsilon'}
  assert changed(linf, l2) == {'attack.norm', 'attack.epsilon', 'attack.step'}
  assert changed(linf, trades) == {'attack.trades', 'attack.init', 'attack.batch_norm'}
  assert 'ada' not in linf.evals


def test_full_settings_are_those_of_the_papers():
  linf, l2, trades = (load(name).attack for name in SAID)
  assert (linf.epsilon, linf.num_steps, linf.step, linf.init) == (8 / 255, 10, 'sign', 'ball')
  assert linf.step_fraction * linf.epsilon == pytest.approx(2 / 255)
  assert (l2.epsilon, l2.num_steps, l2.step, l2.step_fraction) == (0.5, 10, 'l2', 0.25)
  assert (trades.trades, trades.num_steps, trades.init, trades.batch_norm) == (6, 10, 'gaussian', 'running')


@pytest.mark.parametrize(
  'text, value', [('8/255', 8 / 255), ('0.5', 0.5), ('1e-2', 0.01), ('none', None), ('0/1', 0.0)]
)
def test_radii_may_be_fractions(text, value):
  assert configs.override(configs.base_config(), {'attack.epsilon': text}).attack.epsilon == value


REFUSED = [
  ({'attack.epsilon': '8'}, 'config.attack.epsilon=8 of config.attack.norm=linf must be at most 1, .* mean 8/255?'),
  ({'attack.epsilon': '8/0'}, "config.attack.epsilon='8/0' must be a number from 0 to 1000, or a fraction"),
  ({'attack.epsilon': '8/255/2'}, 'config.attack.epsilon='),
  ({'attack.epsilon': 'nan'}, 'config.attack.epsilon=nan must be'),
  ({'attack.epsilon': '-1/255'}, 'config.attack.epsilon=-0.0039'),
  ({'attack.epsilon': 'none'}, 'must have a ball, but .*epsilon=none; set for example .*--config.attack.epsilon=8/255'),
  ({'attack.norm': 'none'}, 'must have a ball, but config.attack.norm=none'),
  ({'attack.norm': 'linv'}, "config.attack.norm='linv' must be one of linf, l2, or none. Did you mean 'linf'"),
  ({'attack.norm': 'l2'}, 'config.attack.step=sign cannot go with config.attack.norm=l2, .* set one of l2, sign_l2'),
  ({'attack.step': 'l2'}, 'config.attack.step=l2 cannot go with config.attack.norm=linf, .* set one of sign, adam'),
  ({'attack.init': 'uniform'}, 'config.attack.init=uniform cannot go with config.attack.name=lp; set .*gaussian'),
  ({'attack.beta_mode': 'batch'}, 'config.attack.beta_mode=batch cannot go with config.attack.name=lp'),
  ({'attack.trades': '-1'}, 'config.attack.trades=-1.0 must be a number from 0'),
  ({'attack.trades': '6', 'attack.init': 'zero'}, 'config.attack.init=zero cannot go with config.attack.trades=6'),
  ({'attack.trades': '6', 'augment.after': 'augmix'}, 'config.augment.after=augmix cannot go with config.attack.tr'),
  ({'attack.name': 'ada'}, 'config.attack.norm=linf cannot go with config.attack.name=ada, .*attack.norm=none'),
  ({'attack.name': 'none', 'attack.norm': 'none'}, 'config.attack.epsilon=0.03.* cannot go with .*name=none'),
]  # fmt: skip


@pytest.mark.parametrize('changes, words', REFUSED)
def test_what_does_not_go_together_is_one_line(changes, words):
  with pytest.raises(UserError, match=words) as error:
    configs.validate(configs.override(configs.base_config(), LINF | changes))
  assert '\n' not in str(error.value)
  assert str(error.value).startswith('config.')


@pytest.mark.parametrize('field, value', [('init', 'gaussian'), ('trades', '6'), ('epsilon', '8/255'), ('name', 'lp')])
def test_one_field_alone_is_refused(field, value):
  with pytest.raises(UserError, match=f'^config.attack.{field}='):
    configs.validate(configs.override(configs.base_config(), {f'attack.{field}': value}))


def test_wrong_input_ends_with_2_and_one_line(tmp_path, capsys):
  flags = ['--config=configs/linf_adversarial.py:smoke', '--config.attack.epsilon=8', f'--workdir={tmp_path}/w']
  with pytest.raises(SystemExit) as caught:
    cli.run(train.main, flags)
  out, err = capsys.readouterr()
  assert (caught.value.code, out, len(trainer.complaints(err))) == (2, '', 1)
  assert 'did you mean 8/255?' in err
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('name', SAID)
def test_reports_and_cards_name_the_ball(name):
  config = load(name).to_dict()
  about = training.about(runs.Run(None, '', config))
  assert about['training'] == f'lp, {SAID[name]}'
  assert about['corruption network'] == training.NONE
  title = card.title(config)
  method = 'TRADES (arXiv 1901.08573)' if name == 'trades' else 'adversarial training (arXiv 1706.06083)'
  assert title == f'preact_resnet-50, width 64, trained on cifar10 by {method}, {SAID[name]}'
  data = {'test': {'name': 'cifar10', 'origin': 'own'}}
  found = {'provenance': {'data': data, 'config': config, 'seed': 0, 'versions': {'jax': '0'}}, 'split': 'test'}
  found |= {'origin': 'own', 'num_images': 3, 'checkpoint_sha256': '', 'step': 1}
  assert f'trained with lp, {SAID[name]}; classifier' in ' '.join(figure2_training.about(found))


@pytest.mark.parametrize('change', [{'epsilon': None}, {'norm': 'l3'}, {'trades': 'six'}])
def test_a_report_refuses_a_damaged_ball(tmp_path, change):
  config = load('trades').to_dict()
  config['attack'] |= change
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match=f'config.json.*attack.{next(iter(change))}='):
    runs.collect([tmp_path])


def test_figure_1_takes_its_own_adversary():
  changed = figure1_ssim.adversary(load('linf_adversarial'), {})
  assert (changed.attack.name, changed.attack.norm, changed.attack.epsilon) == ('ada', None, None)


def test_opening_lines_name_the_ball_and_no_network():
  overrides = {name.replace('.', '__'): value for name, value in LINF.items()}
  config, recipe, phi, state = tiny.make(2, **overrides, attack__fraction='0.5')
  text = '\n'.join(summary.opening(config, recipe, {'train': tiny.dataset()}, state, phi))
  assert 'adversary: linf epsilon 8/255, 2 steps\n' in text
  assert '2 of the 4 images on each device are attacked' in text
  assert 'with 2 images under attack at a time' in text
  assert 'edsr' not in text
  assert summary._weights(config) is None
