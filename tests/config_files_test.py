"""Config files: what `config.load` and `config.list_configs` make of them."""

import pytest

from adversarial_augment import config as configs
from adversarial_augment.errors import UserError


def write(folder, body: str, name: str = 'some.py') -> str:
  (folder / name).write_text(body)
  return str(folder / name)


GOOD = '''"""First line.

More."""
from adversarial_augment.config import base_config, choose_variant

VARIANTS = {'': {}, 'quickstart': {'num_epochs': 6.0, 'attack.num_steps': 2}}

def get_config(variant=''):
  config = base_config()
  config.update_from_flattened_dict(choose_variant(variant, VARIANTS))
  return config
'''


def test_load_runs_get_config_with_its_variant(tmp_path):
  path = write(tmp_path, GOOD)
  assert configs.load(path) == configs.base_config()
  quick = configs.load(f'{path}:quickstart')
  assert (quick.num_epochs, quick.attack.num_steps) == (6.0, 2)
  assert configs.load(f'{path}:') == configs.base_config()


def test_a_config_file_may_start_from_another(tmp_path):
  path = write(tmp_path, GOOD)
  other = write(
    tmp_path, f'from adversarial_augment import config\ndef get_config():\n  return config.load({path!r})', 'b.py'
  )
  assert configs.load(other) == configs.base_config()


def test_shipped_configs_are_found_from_elsewhere_and_listed(tmp_path, monkeypatch):
  (tmp_path / 'package').mkdir()
  shipped = tmp_path / 'package' / 'configs'
  shipped.mkdir()
  write(shipped, GOOD, 'one.py')
  write(shipped, GOOD.replace('VARIANTS', 'OTHER').replace('First line', 'Second'), 'two.py')
  write(shipped, 'raise 1', '__init__.py')
  monkeypatch.setattr(configs, '_shipped', lambda: shipped)
  monkeypatch.chdir(tmp_path)
  assert configs.load('configs/one.py:quickstart').num_epochs == 6.0
  assert configs.list_configs().splitlines() == [
    'configs/one.py',
    '  First line.',
    '  variants: :quickstart',
    'configs/two.py',
    '  Second.',
  ]
  (tmp_path / 'configs').mkdir()
  write(tmp_path / 'configs', GOOD.replace('6.0', '7.0'), 'one.py')
  assert configs.load('configs/one.py:quickstart').num_epochs == 7.0, 'the file in the current folder comes first'
  with pytest.raises(UserError, match="Did you mean 'one.py'"):
    configs.load('configs/ones.py')


CALL = 'from adversarial_augment.config import base_config, pretrain_config\n'
CHANGE = f'{CALL}def get_config():\n  c = base_config()\n  '  # line 4 of the file
UNLOCKED = f'{CALL}def get_config():\n  c = base_config().unlock()\n  '
BAD_FILES = [
  ('missing.py', None, 'No such file'),
  ('a.py:quikstart', GOOD, "Did you mean 'quickstart'"),
  ('a.py:x', 'def get_config():\n  pass\n', 'TypeError'),
  ('a.txt', GOOD, 'PATH.py'),
  ('', GOOD, 'PATH.py'),
  ('a', GOOD, 'PATH.py'),
  ('a.py', '', 'get_config'),
  ('a.py', 'get_config = 3', 'get_config'),
  ('a.py', 'x = (\n', 'a.py:1: SyntaxError'),
  ('a.py', '\n\n  x = 1\n', 'a.py:3: IndentationError'),
  ('a.py', 'x = "\0"', 'SyntaxError'),
  ('a.py', '\nimport no_such_module\n', "a.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
  ('a.py', 'def get_config():\n  return 1 / 0', 'a.py:2: ZeroDivisionError'),
  ('a.py', 'def get_config():\n  return get_config()', 'a.py:2: RecursionError'),
  ('a.py', 'import sys\nsys.exit(0)', 'a.py:2: SystemExit'),
  ('a.py', 'def get_config():\n  raise ValueError("two\\nlines")', 'a.py:2: ValueError: two lines'),
  ('a.py', 'def get_config():\n  pass\n', 'ConfigDict, not None'),
  ('a.py', 'def get_config():\n  return {}\n', 'ConfigDict'),
  ('a.py', f'{CHANGE}c.batchsize = 3\n  return c', "a.py:4: unknown field 'batc"),
  ('a.py', f'{CHANGE}c.attack.n_u = 3', "a.py:4: unknown field 'n_u'"),
  ('a.py', f'{CHANGE}c.update_from_flattened_dict({{"attack.foo": 1}})', "'foo'"),
  ('a.py', f'{CALL}def get_config():\n  return base_config().sede', "unknown field 'sede'. Did you mean 'seed'"),
  ('a.py', f'{CHANGE}c.batch_size = "x"', 'a.py:4: TypeError: Could not override fi'),
  ('a.py', f'{CHANGE}c.attack.nu = True', "'nu'. True is a bool"),
  ('a.py', f'{CHANGE}c.attack = 3', "'attack'"),
  ('a.py', f'{UNLOCKED}c.extra = 3\n  return c', "unknown field 'extra'"),
  ('a.py', f'{UNLOCKED}del c.seed\n  return c', "'seed' is missing"),
  ('a.py', f'{CHANGE}c.attack = dict(nu=1.0)\n  return c', "'attack.name' is miss"),
  ('a.py', f'{CALL}get_config = pretrain_config', 'not of adversarial_augment.train'),
  ('a.py', 'from ml_collections import ConfigDict\nget_config = ConfigDict', 'missing'),
]


@pytest.mark.parametrize('spec, body, expected', BAD_FILES)
def test_bad_config_file_is_one_line_with_its_path(tmp_path, monkeypatch, spec, body, expected):
  monkeypatch.chdir(tmp_path)
  if body is not None:
    (tmp_path / 'a.py').write_text(body)
  with pytest.raises(UserError) as error:
    configs.load(spec)
  assert expected in str(error.value)
  assert spec.partition(':')[0] in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_a_folder_or_unreadable_bytes_are_no_config(tmp_path):
  (tmp_path / 'folder.py').mkdir()
  with pytest.raises(UserError, match='Is a directory'):
    configs.load(str(tmp_path / 'folder.py'))
  (tmp_path / 'bytes.py').write_bytes(b'\xff\xfe\x00x')
  with pytest.raises(UserError, match='SyntaxError'):
    configs.load(str(tmp_path / 'bytes.py'))


@pytest.mark.parametrize('spec', ['configs/' + 'a' * 300 + '.py', 'configs/\0.py', '~nobody_here/a.py', 'a\nb.py'])
def test_names_that_no_file_can_have_are_one_line(spec):
  with pytest.raises(UserError) as error:
    configs.load(spec)
  assert len(str(error.value).splitlines()) == 1
