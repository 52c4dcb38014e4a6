"""The command line of `plan`: what it refuses before a compiler starts, what it finds, and what it writes."""

import importlib.util
import json
import subprocess
import sys

import pytest

from adversarial_augment import attacks, cli, config, plan
from adversarial_augment.planning import compiling, targets
from adversarial_augment.planning.program import Cost
from adversarial_augment.training import builders
from tests import trainer

SMOKE = '--config=configs/ada_edsr.py:smoke'
TPU, GPU = '--topology=v5e:2x4', '--topology=h100'
KEYS = {
  'topology', 'devices', 'batch_size', 'fits', 'bytes_needed', 'bytes_available', 'seconds_per_step',
  'seconds_per_inner_step', 'hours', 'flop_per_step', 'share_of_peak', 'collectives', 'kernels_per_inner_step',
  'bytes_per_inner_step', 'compile_seconds', 'source',
}  # fmt: skip
V5E = targets.Target('v5e:1x2', targets.TPUS['v5e'], (1, 2), 0)


@pytest.fixture
def compilers(monkeypatch):
  """Both compilers seem to be installed; what comes after the last check of the arguments fails the test."""
  monkeypatch.chdir(trainer.ROOT)
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(targets, 'devices', lambda _: pytest.fail('a compiler was asked'))


def refused(argv, capsys) -> str:
  """Returns the only line that is printed."""
  with pytest.raises(SystemExit) as caught:
    cli.run(plan.main, argv)
  out, err = capsys.readouterr()
  assert (caught.value.code, out, err.count('\n')) == (2, '', 1), err
  return err


@pytest.mark.parametrize(
  'flags, words',
  [
    ([TPU], 'required: --config '),
    ([SMOKE], 'required: --topology '),
    (['--config=configs/no.py', TPU], 'Cannot read the config file configs/no.py'),
    (['--config=', TPU], "--config='' must be PATH.py"),
    (['--config=configs/ada_edsr.py:smoky', TPU], "Did you mean 'smoke'?"),
    ([SMOKE, TPU, '--config.batchsize=8'], "Did you mean 'batch_size'?"),
    ([SMOKE, TPU, '--config.batch_size=eight'], 'config.batch_size'),
    ([SMOKE, TPU, '--config.batch_size=0'], 'config.batch_size=0'),
    ([SMOKE, '--topology='], "--topology=: Unknown chip ''"),
    ([SMOKE, '--topology=v5:2x4'], 'Did you mean'),
    ([SMOKE, '--topology=v5e'], "'' is not a shape of v5e; give 2 sides"),
    ([SMOKE, '--topology=v5e:8'], "'8' is not a shape of v5e"),
    ([SMOKE, '--topology=v4:2x2'], "'2x2' is not a shape of v4; give 3 sides"),
    ([SMOKE, '--topology=v5e:0x4'], "'0x4' is not a shape"),
    ([SMOKE, '--topology=v5e:32x32'], '--topology=v5e:32x32: a slice of v5e has at most 256 chips'),
    ([SMOKE, '--topology=h100:0'], "'0' is not a number of cards"),
    ([SMOKE, '--topology=h100:-1'], "'-1' is not a number of cards"),
    ([SMOKE, '--topology=h100:'], "'' is not a number of cards"),
    ([SMOKE, TPU, '--num_processes=2'], 'unrecognized arguments: --num_processes=2'),
    ([SMOKE, TPU, '--workdir=runs/x'], 'unrecognized arguments: --workdir=runs/x'),
    ([SMOKE, TPU, '--output=/no/such/plan.json'], "--output='/no/such/plan.json'"),
    ([SMOKE, TPU, '--output=/tmp'], "--output='/tmp' must be a regular file"),
  ],
)
def test_wrong_uses_take_one_line_and_no_compiler(flags, words, compilers, capsys):
  assert words in refused(flags, capsys)


@pytest.mark.parametrize(
  'name, value',
  [
    ('JAX_NUM_CPU_DEVICES', '8'),
    ('XLA_FLAGS', '--xla_force_host_platform_device_count=8'),
    ('JAX_DISABLE_JIT', '1'),
    *(('XLA_PYTHON_CLIENT_MEM_FRACTION', share) for share in ('0', '1.5', 'all', 'nan')),
  ],
)
def test_settings_that_cannot_be_followed_are_refused(name, value, compilers, capsys, monkeypatch):
  monkeypatch.setenv(name, value)
  assert f'{name}={value}' in refused([SMOKE, GPU], capsys)


def test_the_share_of_the_card_that_jax_takes(compilers, monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  monkeypatch.delenv('XLA_CLIENT_MEM_FRACTION', raising=False)
  card = targets.GPUS['h100'].memory
  assert targets.target('h100:8').available == int(0.75 * card)
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
  assert targets.target('h100:8').available == int(0.9 * card)
  assert targets.target('v5e:2x4').available == int(15.75 * 2**30)


@pytest.mark.parametrize('topology, extra', [(TPU, 'plan-tpu'), (GPU, 'plan-gpu')])
def test_a_missing_compiler_is_named_with_the_command_that_installs_it(topology, extra, compilers, capsys, monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)
  assert f"pip install -e '.[{extra}]'" in refused([SMOKE, topology], capsys)


def test_help_names_topologies_and_exit_codes(capsys):
  with pytest.raises(SystemExit) as caught:
    cli.run(plan.main, ['--help'])
  out, err = capsys.readouterr()
  assert (caught.value.code, err) == (0, '')
  assert 'v5e:2x4' in out
  assert 'exit codes: 0 planned' in out


def test_cifar10_is_planned_without_it(monkeypatch, tmp_path):
  monkeypatch.chdir(trainer.ROOT)
  paper = config.override(config.load('configs/ada_edsr.py'), {'data_dir': str(tmp_path), 'holdout': '5000'})
  dataset, note = plan._images(paper)
  assert (dataset.num_examples, dataset.num_classes, dataset.image_shape) == (45_000, 10, (32, 32, 3))
  assert '50,000 images' in note
  assert not list(tmp_path.iterdir())


# The search for what fits, without a compiler: memory is a straight line of the images.


def made(needed: int, available: int = 1000) -> compiling.Estimate:
  return compiling.Estimate(needed, available, 0.0, Cost(), None)


@pytest.mark.parametrize(
  'fixed, each, whole, divisor, most',
  [
    (0, 10, 256, 1, 100), (300, 7, 256, 1, 100), (990, 10, 64, 1, 1), (2000, 1, 8, 1, None),
    (0, 10, 256, 8, 96), (0, 10, 256, 64, 64), (0, 10, 256, 128, None),
  ],
)  # fmt: skip
def test_the_largest_batch_that_fits(fixed, each, whole, divisor, most):
  tried = [whole]

  def estimate(images):
    tried.append(images)
    return made(fixed + each * images)

  found = compiling.largest(whole, made(fixed + each * whole), estimate, lambda images: images % divisor == 0)
  assert (found and found[0]) == most
  assert found is None or found[1].fits
  assert len(tried) == len(set(tried)) <= 5  # with the one that did not fit


def test_what_the_compiler_refused_does_not_fit():
  message = 'Ran out of memory in memory space hbm. Used 15.75G of 15.75G hbm. Exceeded hbm capacity by 3.1M.'
  assert compiling._too_much(message) == (int(15.75 * 2**30),) * 2
  assert not compiling.Estimate(*compiling._too_much(message), 0.0, None, None).fits
  message = 'the total memory required for HLO temporaries (53.67G) exceeds available HBM (15.75G).'
  assert compiling._too_much(message) == (int(53.67 * 2**30), int(15.75 * 2**30))
  assert compiling._too_much('INTERNAL: another reason') is None


BATCH, PARTS = '--config.batch_size=', '--config.attack.batch_norm=running --config.attack.microbatch='


@pytest.mark.parametrize(
  'values, available, smaller',
  [
    ({'batch_size': '32'}, 88, [f'{BATCH}16', f'{PARTS}4']),
    # The images of a device under attack are whole groups, as are the parts of them.
    ({'batch_size': '64', 'attack.beta_mode': 'group', 'attack.group': '8'}, 112, [f'{BATCH}16', f'{PARTS}8']),
    # An evaluation attacks all images of a device: its parts divide 30, beside the 18 of a step.
    ({'batch_size': '60', 'attack.fraction': '0.6'}, 88, [f'{BATCH}24', f'{PARTS}3']),
    # Parts are tried below those that do not fit.
    ({'batch_size': '32', 'attack.batch_norm': 'running', 'attack.microbatch': '8'}, 88, [f'{BATCH}16', f'{PARTS}4']),
  ],
)
def test_smaller_settings_are_tried(values, available, smaller, monkeypatch):
  """An image takes 1, and 10 more while it is attacked, on each of two devices."""
  monkeypatch.chdir(trainer.ROOT)
  compiled = []

  def planned(changed):
    config.validate(changed)
    builders.check_parts(changed, 2)
    each = changed.batch_size // 2
    attacked = changed.attack.microbatch or attacks.attacked_images(changed.attack.fraction, each)
    compiled.append((each, attacked))
    return plan.Plan(changed, V5E, 2, 1, 0, 0, made(each + 10 * attacked, available))

  flags = dict(plan._smaller(planned(config.override(config.load('configs/ada_edsr.py'), values)), planned))
  assert list(flags) == smaller
  assert all(found is not None and found.estimate.fits for found in flags.values())
  assert len(set(compiled)) == len(compiled)


# With the compilers.


def needs(module: str, extra: str):
  try:
    missing = importlib.util.find_spec(module) is None
  except ModuleNotFoundError:
    missing = True
  return pytest.mark.skipif(missing, reason=f"no compiler; pip install -e '.[{extra}]'")


@pytest.mark.slow
@pytest.mark.parametrize(
  'topology, devices',
  [
    pytest.param('v5e:1x1', 1, marks=needs('libtpu', 'plan-tpu')),
    pytest.param('v4:2x1x1', 4, marks=needs('libtpu', 'plan-tpu')),
    pytest.param('h100', 1, marks=needs('jax_plugins.xla_cuda13', 'plan-gpu')),
    pytest.param('a100:2', 2, marks=needs('jax_plugins.xla_cuda13', 'plan-gpu')),
  ],
)
def test_a_plan_has_every_figure(topology, devices, tmp_path):
  path = tmp_path / 'plan.json'
  command = ['-m', 'adversarial_augment.plan', SMOKE, f'--topology={topology}', f'--output={path}']
  done = subprocess.run([sys.executable, *command], cwd=trainer.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads(path.read_text())
  assert found.keys() == KEYS
  assert (found['topology'], found['devices'], found['batch_size']) == (topology, devices, 8)
  assert found['fits']
  assert 0 < found['bytes_needed'] < found['bytes_available']
  assert 0 < found['seconds_per_inner_step'] < found['seconds_per_step'] < 1
  assert found['hours'] == pytest.approx(2 * found['seconds_per_step'] / 3600)
  assert 0 < found['share_of_peak'] < 1
  assert ('all-reduce' in found['collectives']) == (devices > 1)
