"""Wrong input to `python -m adversarial_augment.train`: one line on standard error, exit code 2, nothing trained."""

from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pytest

from adversarial_augment import cli, corruption_nets, train
from adversarial_augment.datasets import writer
from adversarial_augment.parallel import devices
from adversarial_augment.run import loop, train_job
from tests import trainer

SMOKE = '--config=configs/ada_edsr.py:smoke'
CONFIG = """from adversarial_augment import config
def get_config(variant=''):
  c = config.base_config()
  {}
  return c
"""

# Config files: name -> (content, words of the message).
FILES = {
  'empty': ('', 'get_config'),
  'syntax': ('def get_config(:', 'SyntaxError'),
  'import': ('import no_such_module', 'no_such_module'),
  'nothing': ('def get_config():\n  return None', 'must return a ConfigDict'),
  'typo': (CONFIG.format('c.optimizer.learning_rat = 1.0'), 'learning_rate'),
  'type': (CONFIG.format("c.batch_size = 'many'"), 'batch_size'),
  'range': (CONFIG.format('c.batch_size = 0'), 'batch_size'),
  'nan': (CONFIG.format("c.attack.nu = float('nan')"), 'attack.nu'),
  'crash': (CONFIG.format('1 / 0'), 'ZeroDivisionError'),
  'exit': ('raise SystemExit(0)', 'SystemExit'),
  'binary': ('\0', 'null bytes'),
  'variant': (CONFIG.format("config.choose_variant('x', {'y': 1})"), "unknown variant 'x'"),
}

# Flags, and words of the message.
FLAGS = [
    ([], '--config is missing'),
    (['--config=configs/no_such.py'], 'no_such.py'),
    (['--config=configs/ada_edsr.py:smok'], 'smoke'),
    (['--config=configs'], 'PATH.py'),
    (['--config=configs/pretrain_edsr.py'], 'adversarial_augment.pretrain'),
    ([SMOKE, '--confg.seed=1'], '--confg.seed'),
    ([SMOKE, 'seed=1'], 'seed=1'),
    ([SMOKE, '--config.sed=1'], 'seed'),
    ([SMOKE, '--config.seed'], 'needs a value'),
    ([SMOKE, '--config.seed=-1'], 'seed'),
    ([SMOKE, '--config.seed=one'], 'seed'),
    ([SMOKE, '--config.attack=none'], 'group'),
    ([SMOKE, '--config.batch_size=1e9'], 'batch_size'),
    ([SMOKE, '--config.num_epochs=nan'], 'num_epochs'),
    ([SMOKE, '--config.optimizer.learning_rate=inf'], 'learning_rate'),
    ([SMOKE, '--config.classifier.depth=51'], 'depth'),
    ([SMOKE, '--config.classifier.name=preact'], 'preact_resnet'),
    ([SMOKE, '--config.attack.root=newton'], 'root'),
    ([SMOKE, '--config.evals=clean,aa'], 'evals'),
    ([SMOKE, '--config.augment.before=augmix'], 'augment.before'),
    ([SMOKE, '--config.attack.microbatch=2'], 'microbatch'),
    ([SMOKE, '--config.dataset=imagenet22k'], 'imagenet22k'),
    ([SMOKE, '--config.dataset=cifar10', '--config.data_dir=/no/such/folder'], 'prepare'),
    ([SMOKE, '--config.holdout=12000'], 'holdout'),
    ([SMOKE, '--config.corruption_net.blocks=7'], 'weights'),
    ([SMOKE, '--config.corruption_net.weights=/no/such.safetensors'], 'such.safetensors'),
    ([SMOKE, '--config.batch_size=6', '--config.num_steps=1'], 'multiple of the 8 devices'),
    ([SMOKE, '--config.batch_size=16000', '--config.num_steps=none', '--config.num_epochs=0.1',
      '--config.optimizer.warmup_epochs=0'], 'make no batch'),
    ([SMOKE, '--coordinator_address=localhost:1'], 'go together'),
    ([SMOKE, '--workdir='], '--workdir is empty'),
]  # fmt: skip


def refusal(argv: list[str], capsys, monkeypatch) -> str:
  """Returns the only line that the trainer prints."""
  monkeypatch.setattr(devices, 'compilation_cache', lambda: None)
  monkeypatch.setattr(loop, 'run', lambda *_: pytest.fail('it trained'))
  monkeypatch.setattr(train_job, 'compile_step', lambda *_: pytest.fail('it compiled'))
  with pytest.raises(SystemExit) as caught:
    cli.run(train.main, argv)
  out, err = capsys.readouterr()
  assert caught.value.code == 2, err
  assert out == ''
  (line,) = trainer.complaints(err)
  return line


@pytest.mark.parametrize('name', FILES)
def test_bad_config_files(name, tmp_path, capsys, monkeypatch):
  content, words = FILES[name]
  (tmp_path / 'config.py').write_text(content)
  line = refusal([f'--config={tmp_path}/config.py', f'--workdir={tmp_path}/w'], capsys, monkeypatch)
  assert 'config.py' in line or 'config.' in line
  assert words in line
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('flags, words', FLAGS, ids=[words for _, words in FLAGS])
def test_bad_flags_and_values(flags, words, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(trainer.ROOT)
  workdir = [] if '--workdir=' in flags else [f'--workdir={tmp_path}/w']
  line = refusal([*flags, *workdir], capsys, monkeypatch)
  assert words in line


# Folders and files.


@pytest.fixture(scope='module')
def prepared(tmp_path_factory) -> Path:
  """A data_dir with the data set 'pets'."""
  data_dir = tmp_path_factory.mktemp('data')
  rng = np.random.default_rng(0)
  describe = writer.Description('pets', '1.0.0', 'Pets.', ('cat', 'dog'), (8, 8, 3), 'own', 'ab' * 32)
  split = lambda n: writer.Split(n, zip(rng.integers(0, 256, (n, 8, 8, 3), np.uint8), np.arange(n) % 2, strict=True))
  writer.write(describe, {'train': split(20), 'test': split(8)}, data_dir, False)
  return data_dir


def truncate_records(folder: Path) -> None:
  for path in folder.glob('*train*array_record*'):
    path.write_bytes(path.read_bytes()[:100])


def delete_records(folder: Path) -> None:
  for path in folder.glob('*test*array_record*'):
    path.unlink()


DATA = {
  'truncated': truncate_records,
  'records missing': delete_records,
  'info missing': lambda folder: (folder / 'dataset_info.json').unlink(),
  'info spoilt': lambda folder: (folder / 'dataset_info.json').write_text('{'),
  'features spoilt': lambda folder: (folder / 'features.json').write_text('[]'),
  'empty': lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize('name', DATA)
def test_bad_data_folders(name, prepared, tmp_path, capsys, monkeypatch):
  data_dir = Path(shutil.copytree(prepared, tmp_path / 'data'))
  DATA[name](data_dir / 'pets' / '1.0.0')
  flags = [SMOKE, '--config.dataset=pets', f'--config.data_dir={data_dir}', f'--workdir={tmp_path}/w']
  assert 'pets' in refusal(flags, capsys, monkeypatch)
  assert not (tmp_path / 'w').exists()


def shipped() -> bytes:
  return corruption_nets.find('edsr_4x16_x1').read_bytes()


WEIGHTS = {
  'empty': lambda: b'',
  'no safetensors': lambda: b'PK\3\4' + bytes(100),
  'truncated': lambda: shipped()[:-10],
  'huge header': lambda: (1 << 60).to_bytes(8, 'little') + shipped()[8:],
  'flipped': lambda: shipped()[:-100] + bytes([shipped()[-100] ^ 1]) + shipped()[-99:],
}


@pytest.mark.parametrize('name', WEIGHTS)
def test_bad_weight_files(name, tmp_path, capsys, monkeypatch):
  path = tmp_path / 'phi.safetensors'
  path.write_bytes(WEIGHTS[name]())
  flags = [SMOKE, f'--config.corruption_net.weights={path}', f'--workdir={tmp_path}/w']
  assert 'phi.safetensors' in refusal(flags, capsys, monkeypatch)
  assert not (tmp_path / 'w').exists()


def test_bad_init_from_and_workdirs(tmp_path, capsys, monkeypatch):
  nominal = [SMOKE, '--config.attack.name=none', '--config.evals=clean']
  (tmp_path / 'file').touch()
  assert '--workdir' in refusal([*nominal, f'--workdir={tmp_path}/file'], capsys, monkeypatch)
  for source in (tmp_path / 'nowhere', tmp_path / 'file', tmp_path):
    flags = [*nominal, f'--config.init_from={source}', f'--workdir={tmp_path}/w']
    assert str(source) in refusal(flags, capsys, monkeypatch)
  assert not (tmp_path / 'w').exists()


def test_a_missing_tensorboardx_is_said_before_the_run(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  line = refusal([SMOKE, '--config.tensorboard=true', f'--workdir={tmp_path}/w'], capsys, monkeypatch)
  assert 'tensorboardX' in line


def test_real_command_lines_end_with_one_line_and_2(tmp_path):
  """And so soon that JAX has not been started."""
  cases = (
    ['--config=configs/ada_edsr.py:smok'],
    [SMOKE, '--config.seed=-1'],
    [SMOKE, '--config.dataset=cifar10', '--config.data_dir=/no/such/folder'],
    [SMOKE, '--config.corruption_net.weights=/no/such.safetensors'],
  )
  command = [sys.executable, '-m', 'adversarial_augment.train', f'--workdir={tmp_path}/w']
  started = [
    subprocess.Popen([*command, *flags], cwd=trainer.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for flags in cases
  ]
  for process in started:
    out, err = process.communicate(timeout=trainer.PATIENCE)
    assert process.returncode == 2, err
    assert out == ''
    (line,) = trainer.complaints(err)
    assert line.startswith('train: ')
  assert not (tmp_path / 'w').exists()


def test_a_second_trainer_is_refused_and_a_dead_ones_lock_is_taken_over(tmp_path):
  rig = trainer.Rig(tmp_path)
  rig.env = {}
  first = rig.start(tmp_path / 'w', '--config.num_steps=100000')
  first.wait_for(lambda: (tmp_path / 'w' / 'config.json').exists())
  second = rig.start(tmp_path / 'w', '--config.num_steps=100000')
  assert second.wait() == 2
  assert 'is in use by process' in second.err
  assert len(trainer.complaints(second.err)) == 1
  first.kill()
  third = rig.start(tmp_path / 'w', '--config.num_steps=100000')
  third.wait_for_line('compiling')
  assert third.process.poll() is None
  third.kill()
