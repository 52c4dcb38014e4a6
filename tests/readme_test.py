"""What README and the pages of docs/ say: commands, fields, links, and the Python examples, which run as they stand."""

import importlib.util
from pathlib import Path
import re
import shlex
import tomllib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial_augment import attacks, audit, datasets, evaluate, export, plan, prepare, report
from adversarial_augment import config as configs
from adversarial_augment.config import command_line
from adversarial_augment.errors import UserError
from tests import classifier_cases
from tests.test_architecture import LAYERS

ROOT = Path(__file__).parent.parent
PAGES = sorted({*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')})
README = (ROOT / 'README.md').read_text()
TEXT = ''.join(page.read_text() for page in PAGES)
MODULE = 'python -m adversarial_augment.'
PARSERS = {'prepare': prepare._parser, 'report': report._parser, 'export': export._parser, 'plan': plan._parser}


def blocks(language: str, text: str) -> list[str]:
  return re.findall(rf'^```{language}\n(.*?)^```', text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
  """Every command line of this package on any page, without comments."""
  lines = '\n'.join([*blocks('bash', TEXT), *blocks('sh', TEXT)]).replace('\\\n', ' ').splitlines()
  lines = [part for line in lines for part in re.split(r'&&|;', line)] + re.findall(rf'`({MODULE}[^`]*)`', TEXT)
  found = [MODULE + line.split(MODULE)[1].split(' #')[0].rstrip("' &") for line in lines if MODULE in line]
  return sorted({re.sub(' +', ' ', command) for command in found} - {f'{MODULE}train ...'})


def example(name: str) -> str:
  """Returns the one Python example, on any page, that uses a name."""
  [found] = [block for block in blocks('python', TEXT) if name in block]
  return found


def test_readme_and_the_map_are_short():
  assert len(README.splitlines()) <= 200
  assert len((ROOT / 'docs' / 'design.md').read_text().splitlines()) <= 150


def test_the_first_two_blocks_are_one_command_line_each():
  first, second = blocks('bash', README)[:2]
  for command in (first, second):
    assert len(command.splitlines()) == 1
    assert command.startswith('python3 -m venv .venv && . .venv/bin/activate && pip install -e ')
  assert first.rstrip().endswith(f'&& {MODULE}train --config=configs/ada_edsr.py:quickstart --workdir=runs/quickstart')
  assert second.rstrip().endswith("'.[dev]' && python -m pytest -n 2 --dist loadfile")


def test_there_are_commands_of_every_module():
  modules = {command.removeprefix(MODULE).split()[0] for command in commands()}
  assert modules == {'train', 'evaluate', 'audit', 'report', 'export', 'prepare', 'pretrain', 'convert', 'plan'}


def test_extras_that_a_page_installs_are_there():
  named = {name for extras in re.findall(r"'\.\[([\w,-]+)\]'", TEXT) for name in extras.split(',')}
  assert len(named) > 4
  assert named <= tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies'].keys()


def test_experiments_and_benchmarks_that_a_page_runs_are_there():
  named = set(re.findall(r'python -m ((?:experiments|benchmarks)\.\w+)', TEXT))
  assert len(named) > 5
  assert not [name for name in named if not (ROOT / name.replace('.', '/')).with_suffix('.py').exists()]


@pytest.mark.parametrize('command', commands())
def test_every_command_parses(command):
  module, *arguments = shlex.split(command.removeprefix(MODULE).replace('$i', '0'))
  assert importlib.util.find_spec(f'adversarial_augment.{module}')
  if module in ('train', 'pretrain'):
    parsed = command_line.parse(arguments, module, '', 'configs/ada_edsr.py')
    if parsed.config:
      configs.validate(configs.override(configs.load(str(ROOT / parsed.config), module), parsed.overrides))
  elif module == 'evaluate':
    overrides, rest = command_line.split_overrides(arguments)
    evals = evaluate._parser().parse_args(rest).evals
    configs.validate(configs.override(configs.base_config(), overrides | ({'evals': evals} if evals else {})))
  elif module == 'audit':
    audit._parser().parse_args(command_line.split_overrides(arguments)[1])
  elif module in PARSERS and arguments:  # a bare name is a mention
    overrides, rest = command_line.split_overrides(arguments)
    PARSERS[module]().parse_args(rest)
    configs.validate(configs.override(configs.base_config(), overrides))


def test_every_setting_exists_and_is_valid():
  guides = README + ''.join(page.read_text() for page in (ROOT / 'docs' / 'guides').glob('*.md'))
  prose = re.sub(r'^```.*?^```', '', guides, flags=re.MULTILINE | re.DOTALL)  # the others are parts of commands
  settings = re.findall(r'--config\.([\w.]+)=(\S+?)[`\s]', prose)
  assert len(settings) > 8
  configs.validate(configs.override(configs.base_config(), dict(settings)))
  named = set(re.findall(r'`((?:attack|optimizer|classifier|corruption_net|augment)\.[a-z_]+)(?:=\w+)?`', TEXT))
  named -= {'classifier.safetensors', 'classifier.jax_export', 'classifier.onnx'}  # files
  assert named <= configs.TRAIN.keys()


def anchors(page: Path) -> set[str]:
  """Returns the anchors of a page's headings, as GitHub names them."""
  headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
  return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_links_and_pictures_are_there(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text().replace('\n', ' ')):
    if not target.startswith('https://'):
      path, _, anchor = target.partition('#')
      linked = page.parent / path if path else page
      assert linked.exists(), f'{page.name}: {target}'
      assert not anchor or anchor in anchors(linked), f'{page.name}: {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_the_files_and_tests_that_a_page_names_are_there(page):
  text = page.read_text()
  folders = ('adversarial_augment', 'benchmarks', 'cluster', 'configs', 'docs', 'experiments', 'notebooks', 'tests')
  known = {path.name for folder in folders for path in (ROOT / folder).rglob('*')} | {
    path.name for path in ROOT.iterdir()
  }
  made_by_runs = {'metrics.jsonl', 'config.json', 'data.json', 'train.json', 'NAME.json', 'provenance.json'} | {
    'environment.json',
    'card.json',
    'classifier_torch.py',
    'robustness_ATTACK_NORM_EPSILON.json',
    'net.py',  # a user's
  }
  named = set(re.findall(r'`(?:[\w./-]+/)?([\w-]+\.(?:py|md|json|jsonl|toml|txt|cff))`', text))
  assert named - known - made_by_runs == set()
  tests = re.findall(
    r'^def (test_\w+)', ''.join(path.read_text() for path in (ROOT / 'tests').glob('*.py')), re.MULTILINE
  )
  named = set(re.findall(r'`(test_\w+)`', text))
  assert named - set(tests) == set()


def test_the_map_of_the_design_page_names_every_room():
  tree, _ = re.findall(r'^```\n(.*?)^```', (ROOT / 'docs' / 'design.md').read_text(), re.MULTILINE | re.DOTALL)
  assert {name for name in LAYERS if not re.search(rf'\b{name}(\.py|/)', tree)} == set()


def test_the_library_example_corrupts_a_batch():
  code = example('attacks.ada')
  assert len([line for line in code.splitlines() if line]) <= 8
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(4))
  images, labels = jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels)
  head = 0.1 * jax.random.normal(jax.random.key(1), (32 * 32 * 3, 10))
  logits_fn = lambda images: images.reshape(len(images), -1) @ head
  names = {'images': images, 'labels': labels, 'logits_fn': logits_fn}
  exec(compile(code, 'README.md', 'exec'), names)
  corrupted, metrics = names['corrupted'], names['metrics']
  assert corrupted.shape == images.shape
  assert 0 <= float(corrupted.min()) <= float(corrupted.max()) <= 1
  assert bool((corrupted != images).any((1, 2, 3)).all())
  assert bool((metrics['attack_loss_end'] > metrics['attack_loss_start']).all())
  assert bool((metrics['ssim'] > 0.3).all())


def attacked_example(logits_fn=None, **names) -> dict:
  """Runs the AutoAttack example on 4 images, with its line for Haiku or another logits_fn."""
  code = example('attacks.autoattack')
  assert len([line for line in code.splitlines() if line]) <= 10
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(4))
  names |= {'images': np.float32(images) / 255, 'labels': labels}
  if logits_fn is not None:
    line = next(line for line in code.splitlines() if line.startswith('logits_fn = '))
    code, names['logits_fn'] = code.replace(line, ''), logits_fn
  exec(compile(code, 'docs/guides/audit.md', 'exec'), names)
  return names


def check_attacked(names: dict) -> None:
  images, result = names['images'], names['result']
  assert float(jnp.abs(result.images - images).max()) <= 8 / 255 * (1 + 1e-6) + 1e-7
  right = jnp.argmax(names['logits_fn'](result.images), -1) == names['labels']
  assert float(names['robust_accuracy']) == float(right.mean())


def test_the_autoattack_example_attacks_a_haiku_model():
  network = hk.transform(lambda x: hk.Linear(10)(hk.Flatten()(x)))
  params = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  check_attacked(attacked_example(network=network, params=params))


@pytest.mark.slow
def test_the_autoattack_example_attacks_a_flax_model():
  flax = pytest.importorskip('flax', reason='Flax is not installed')
  model = flax.linen.Dense(10)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 32 * 32 * 3)))
  [line] = re.findall(r'`logits_fn = (lambda images: model.apply\(variables, images\))`', TEXT)
  flat = lambda images: images.reshape(len(images), -1)
  apply = eval(line, {'model': model, 'variables': variables})
  check_attacked(attacked_example(lambda images: apply(flat(images))))


def test_the_trained_classifier_example_classifies(tmp_path, monkeypatch):
  (tmp_path / 'runs').mkdir()
  classifier_cases.save_run(tmp_path / 'runs' / 'quickstart')
  monkeypatch.chdir(tmp_path)
  names = {'images': datasets.load('embedded', 'test', '').read(np.arange(3)).images}
  exec(compile(example('load_classifier('), 'README.md', 'exec'), names)
  assert names['logits'].shape == (3, 10)
  assert np.ptp(names['logits']) > 0
  logits_fn = names['classify'].logits_fn
  check_attacked(attacked_example(logits_fn))
  images, labels = datasets.load('embedded', 'test', '').read(np.arange(4))
  images, keys = np.float32(images) / 255, jax.random.split(jax.random.key(0), 4)
  np.testing.assert_allclose(logits_fn(images), names['classify'](images), atol=1e-5)
  np.testing.assert_allclose(jax.jit(logits_fn)(images), names['classify'](images), atol=1e-5)
  assert 'nan' not in attacks.validity.of_classifier(logits_fn, images, labels)
  for attack in (
    attacks.pgd(norm='l2', epsilon=0.5, num_steps=2),
    attacks.square(norm='l2', epsilon=0.5, num_queries=2),
  ):
    assert attack(keys, logits_fn, images, labels).images.shape == images.shape
  with pytest.raises(UserError, match='classify.logits_fn'):
    attacks.pgd(norm='l2', epsilon=0.5)(keys, names['classify'], images, labels)
