"""What the public functions take can be read from their signatures."""

import importlib
import inspect
import pkgutil
import re

import pytest

import adversarial_augment
from adversarial_augment import attacks
from adversarial_augment.attacks.adversary import adversary

MODULES = [info.name for info in pkgutil.walk_packages(adversarial_augment.__path__, 'adversarial_augment.')]


def public_functions(module):
  """Yields the public functions of a module, and the public methods of its public classes, by qualified name."""
  for name, member in vars(module).items():
    if name.startswith('_') or getattr(member, '__module__', None) != module.__name__:
      continue
    if inspect.isfunction(member):
      yield name, member
    elif inspect.isclass(member):
      methods = inspect.getmembers(member, inspect.isfunction)
      # A subclass of another library's class hands on what its base takes.
      made_here = '__init__' if member.__bases__ == (object,) else ''
      own = (method for method in methods if not method[0].startswith('_') or method[0] == made_here)
      yield from ((f'{name}.{key}', method) for key, method in own if method.__module__ == module.__name__)


@pytest.mark.parametrize('name', [name for name in MODULES if not name.endswith('__main__')])
def test_no_public_function_takes_options_that_it_does_not_name(name):
  if name == 'adversarial_augment.pytorch':
    pytest.importorskip('torch')
  for function, member in public_functions(importlib.import_module(name)):
    kinds = [parameter.kind for parameter in inspect.signature(member).parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds, f'{name}.{function}'


@pytest.mark.parametrize('attack', [attacks.ada, attacks.advmix, attacks.lp], ids=lambda attack: attack.__name__)
def test_what_adversaries_share_has_the_same_defaults(attack):
  shared, own = (inspect.signature(function).parameters for function in (adversary, attack))
  names = [name for name in own if name in shared and name != 'loss']
  assert {'num_steps', 'step', 'step_fraction', 'keep_best'} <= {*names}
  assert {name: own[name].default for name in names} == {name: shared[name].default for name in names}


@pytest.mark.parametrize('name', ['ada', 'advmix', 'lp', 'pgd', 'apgd', 'fab', 'square', 'multitargeted', 'autoattack'])
def test_every_argument_of_an_attack_is_explained(name):
  """In the block of its arguments, by itself or in a list that says where they are described."""
  attack = getattr(attacks, name)
  block = attack.__doc__.partition('Args:\n')[2].partition('\n\n')[0]
  explained = {
    argument for names in re.findall(r'^    (\w+(?:, \w+)*): ', block, re.M) for argument in names.split(', ')
  }
  assert explained == set(inspect.signature(attack).parameters)
