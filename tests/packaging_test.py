"""What is installed: metadata that agrees with the code, and a wheel that works away from the checkout."""

import ast
import functools
import importlib.metadata
import importlib.util
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest

import adversarial_augment
from adversarial_augment import config as configs
from adversarial_augment.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
# A distribution's name where it is not that of what is imported.
IMPORTS = {
  'dm-haiku': 'haiku', 'ml-collections': 'ml_collections', 'orbax-checkpoint': 'orbax', 'pillow': 'PIL',
  'scikit-image': 'skimage', 'scikit-learn': 'sklearn', 'tensorflow-datasets': 'tensorflow_datasets',
}  # fmt: skip
NOT_IMPORTED = {
  'flatbuffers',  # needed by jax.export, which does not declare it
  'imagecorruptions',  # only its photographs are read
  'importlib_resources',  # needed by tensorflow-datasets, which does not declare it
  'jaxlib',  # held to the versions of jax
  'skimage',  # only its photographs are read
  'sklearn',  # only its photographs and digits are read
}
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def distribution(requirement: str) -> str:
  return re.match(r'[\w-]+', requirement)[0]


def imported_packages() -> set[str]:
  found = set()
  for path in [*(ROOT / 'adversarial_augment').rglob('*.py'), *(ROOT / 'configs').glob('*.py')]:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        found |= {alias.name.split('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and not node.level:
        found.add(node.module.split('.')[0])
  return found - set(sys.stdlib_module_names) - {'adversarial_augment'}


def test_requirements_are_those_of_the_project():
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  assert [line for line in lines if not line.startswith('#')] == PROJECT['dependencies']


def test_what_is_imported_is_declared_and_the_other_way_round():
  name = lambda requirement: IMPORTS.get(distribution(requirement), distribution(requirement))
  runtime = {name(requirement) for requirement in PROJECT['dependencies']}
  optional = {
    name(one) for extra in ('plots', 'logging', 'torch', 'onnx') for one in PROJECT['optional-dependencies'][extra]
  }
  assert imported_packages() - runtime - optional == set()
  assert (runtime | optional) - imported_packages() <= NOT_IMPORTED


def test_metadata_of_this_installation():
  try:
    metadata = importlib.metadata.metadata('adversarial-augment')
  except importlib.metadata.PackageNotFoundError:
    pytest.skip('the package is imported from a folder and not installed')
  assert metadata['Version'] == adversarial_augment.__version__
  assert metadata['Requires-Python'] == '>=3.11'
  assert set(metadata.get_all('Provides-Extra')) == set(PROJECT['optional-dependencies'])


def test_version_is_that_of_the_changelog_and_the_citation():
  version = adversarial_augment.__version__
  assert re.search(r'^## \[(\d.*?)\]', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)[1] == version
  assert re.search(r'^version: (.*)$', (ROOT / 'CITATION.cff').read_text(), re.MULTILINE)[1] == version


def test_nominal_has_the_variants_of_ada_and_their_start():
  lines = configs.list_configs().splitlines()
  of = lambda name: lines[lines.index(f'configs/{name}.py') + 2]
  assert of('nominal').replace(', :laptop_start', '') == of('ada_edsr')


def run(*command, **options) -> str:
  done = subprocess.run(command, capture_output=True, text=True, **options)
  assert done.returncode == 0, done.stderr
  return done.stdout


def borrow(venv: Path) -> str:
  """Makes a virtual environment with the dependencies of this one, and no pip; returns its Python."""
  run(sys.executable, '-m', 'venv', '--without-pip', str(venv))
  python = str(venv / 'bin' / 'python')
  paths = 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
  paths_of_this = [path for path in sys.path if path.endswith('-packages')]
  Path(run(python, '-c', paths).strip(), 'zz_borrowed.pth').write_text('\n'.join(paths_of_this))
  return python


def test_the_folder_of_a_clone_does_not_hide_the_package(tmp_path):
  """`git clone` names the folder as the package; from the folder above, Python finds it first, as a namespace."""
  above, runs = tmp_path / 'above', tmp_path / 'elsewhere' / 'adversarial_augment' / 'runs'
  clone = above / 'adversarial_augment'
  left_out = shutil.ignore_patterns('.*', 'build', 'dist', 'runs', 'tests', '*.egg-info', '__pycache__')
  shutil.copytree(ROOT, clone, ignore=left_out)
  runs.mkdir(parents=True)  # another folder of that name, where a script may run
  python = borrow(tmp_path / 'venv')
  isolation = ['--no-build-isolation'] if importlib.util.find_spec('setuptools') else []
  pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps']
  run(*pip, '--ignore-installed', *isolation, '-e', str(clone))
  code = 'from adversarial_augment import __version__, attacks, config\nprint(__version__, attacks.__file__)\n'
  expected = f'{adversarial_augment.__version__} {clone}/adversarial_augment/attacks/__init__.py\n'
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  for folder in (above, runs.parent.parent, clone, tmp_path):
    (folder / 'script.py').write_text(code)
    started = functools.partial(run, cwd=folder, env=environment)
    assert started(python, 'script.py') == expected
    assert started(python, '-c', code) == expected
  console = tmp_path / 'venv' / 'bin' / 'adversarial-augment'
  module = [python, '-m']
  for command in (
    [*module, 'adversarial_augment.train'],
    [*module, 'adversarial_augment', 'train'],
    [console, 'train'],
  ):
    assert run(*command, '--list_configs', cwd=above, env=environment) == configs.list_configs() + '\n'


@pytest.mark.slow
def test_wheel_and_sdist_work_outside_the_checkout(tmp_path):
  source, dist, venv, elsewhere = (tmp_path / name for name in ('source', 'dist', 'venv', 'else where'))
  left_out = shutil.ignore_patterns('.*', 'build', 'dist', 'runs', 'site', '*.egg-info', '__pycache__')
  shutil.copytree(ROOT, source, ignore=left_out)
  files = {path.relative_to(source).as_posix() for path in source.rglob('*') if path.is_file()}
  run(sys.executable, '-m', 'build', '--outdir', str(dist), str(source))  # the sdist, and the wheel from the sdist
  (wheel,), (sdist,) = dist.glob('*.whl'), dist.glob('*.tar.gz')
  run(sys.executable, '-m', 'twine', 'check', '--strict', str(wheel), str(sdist))
  with tarfile.open(sdist) as archive:
    assert files <= {name.partition('/')[2] for name in archive.getnames()}
  shutil.rmtree(source)

  # The new environment borrows the dependencies of this one; .ci/run installs them afresh.
  python = borrow(venv)
  pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps']
  run(*pip, '--ignore-installed', str(wheel))

  elsewhere.mkdir()
  environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  started = functools.partial(run, cwd=elsewhere, env=environment)
  package = Path(started(python, '-c', 'import adversarial_augment as a; print(a.__file__)').strip()).parent
  assert package.is_relative_to(venv)
  for folder in ('classifiers/shipped', 'corruption_nets/shipped', 'reporting/templates'):
    own = {path.name for path in (ROOT / 'adversarial_augment' / folder).iterdir()}
    assert {path.name for path in (package / folder).iterdir()} == own
  assert (package / 'reporting' / 'published.csv').exists()

  console = str(venv / 'bin' / 'adversarial-augment')
  for name in COMMANDS:
    said = started(console, name, '--help')
    assert said.startswith('usage: ')
    assert said == started(python, '-m', f'adversarial_augment.{name}', '--help')
  assert started(console, 'train', '--list_configs') == configs.list_configs() + '\n'
  started(console, 'train', '--config=configs/ada_edsr.py:smoke', '--workdir=here')
  assert (elsewhere / 'here' / 'results' / 'train.json').exists()
  started(python, '-m', 'adversarial_augment.report', 'here')
  assert '<h1>here</h1>' in (elsewhere / 'here' / 'report.html').read_text()
