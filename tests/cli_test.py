"""The command line: flags, one-line errors, exit codes, and what happens before JAX starts."""

import os
from pathlib import Path
import subprocess
import sys
import textwrap

import pytest

from adversarial_augment import cli, errors
from adversarial_augment import config as configs
from adversarial_augment.config import command_line

CONFIG = 'from adversarial_augment.config import base_config\n\ndef get_config():\n  return base_config()\n'


def python(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
  """Runs code in a fresh interpreter without the variables that choose devices and caches."""
  dropped = ('XLA_FLAGS', 'JAX_', 'SLURM_', 'TPU_', 'MEGASCALE_')
  clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *arguments],
    capture_output=True,
    text=True,
    env=clean | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(Path(cli.__file__).parents[2])} | env,
    timeout=120,
    check=False,
  )


def run(main, argv, capsys) -> tuple[int, str]:
  with pytest.raises(SystemExit) as ended:
    cli.run(main, argv)
  return ended.value.code, capsys.readouterr().err


def raising(error):
  def main(argv):
    raise error

  return main


# -- run


@pytest.mark.parametrize(
  'error, code',
  [
    (errors.UserError('wrong\ninput'), 2),
    (errors.NumericalError('loss is NaN'), 3),
    (errors.CheckpointError('none usable'), 4),
    (errors.StorageError('disk full'), 5),
    (errors.Stopped('saved'), 75),
    (errors.Interrupted('stopped by SIGTERM'), 75),
    (KeyboardInterrupt(), 130),
  ],
)
def test_known_errors_are_one_line_with_their_exit_code(error, code, capsys):
  message = ' '.join(str(error).split())
  if not isinstance(error, Exception):
    message = f'{message or "interrupted"}: what was written before is kept; run the same command again to resume.'
  assert run(raising(error), [], capsys) == (code, f'{Path(sys.argv[0]).stem}: {message}\n')
  assert run(raising(error), ['--debug'], capsys)[0] == code


def test_no_text_of_a_file_steers_the_terminal(capsys):
  error = errors.UserError('in \x1b[2J\x9bm\u202e\x7f\udcff caf\u00e9')
  said = f'{Path(sys.argv[0]).stem}: in \\x1b[2J\\x9bm\\u202e\\x7f\\udcff caf\u00e9\n'
  assert run(raising(error), [], capsys) == (2, said)


def test_debug_shows_the_traceback_too(capsys):
  _, shown = run(raising(errors.UserError('wrong')), ['--debug'], capsys)
  assert 'Traceback' in shown
  assert 'in main' in shown


def test_bugs_keep_their_traceback():
  with pytest.raises(ZeroDivisionError):
    cli.run(raising(ZeroDivisionError()), [])


@pytest.mark.parametrize('returned, code', [(None, 0), (0, 0), (7, 7)])
def test_exit_code_is_what_main_returns(returned, code, capsys):
  assert run(lambda argv: returned, [], capsys) == (code, '')


# -- flags


def test_help_exits_0_without_reading_a_config(capsys):
  code, _ = run(lambda argv: command_line.parse_train(argv) and None, ['--config=does/not/exist.py', '--help'], capsys)
  assert code == 0
  with pytest.raises(SystemExit):
    command_line.parse_train(['--help'])
  shown = capsys.readouterr().out
  flags = ('--config', '--config.FIELD', '--workdir', '--debug', '--print_config', '--list_configs', '--process_id')
  assert all(flag in shown for flag in flags)


def test_flags_become_arguments():
  arguments = command_line.parse_train(
    ['--config=a/b.py:smoke', '--config.seed=3', '--config.attack.nu', '-0.5', '--workdir', 'w', '--config.evals=']
    + ['--config.seed=4', '--debug', '--coordinator_address=localhost:1', '--num_processes=2', '--process_id=1']
  )
  assert arguments == command_line.Arguments(
    config='a/b.py:smoke',
    overrides={'seed': '4', 'attack.nu': '-0.5', 'evals': ''},
    workdir=Path('w'),
    debug=True,
    coordinator_address='localhost:1',
    num_processes=2,
    process_id=1,
  )


def test_default_workdir():
  for spec, folder in (
    ('configs/ada_edsr.py', 'ada_edsr'),
    ('configs/ada_edsr.py:quickstart', 'ada_edsr_quickstart'),
    ('/somewhere/x.py:', 'x'),
  ):
    assert command_line.parse_train([f'--config={spec}']).workdir == Path('runs') / folder


PROCESSES = ['--coordinator_address=localhost:1', '--num_processes=2', '--process_id=1']
BAD_FLAGS = [
  ([], '--config is missing'),
  (['--config'], '--config'),
  (['--config='], '--config is missing'),
  (['--workdir=x'], '--config is missing'),
  (['--confg=a.py'], "'--confg'. Did you mean '--config'"),
  (['--config=a.py', '--work=x'], "'--work'"),
  (['--config=a.py', '--batch_size=3'], "'--batch_size'. Did you mean '--config.batch_size'"),
  (['--config=a.py', '--seed', '3'], "'--config.seed'"),
  (['--config=a.py', '--config.seed'], '--config.seed needs a value'),
  (['--config=a.py', '--config.seed', '--print_config'], '--config.seed needs a value'),
  (['--config=a.py', 'b.py'], "'b.py'"),
  (['--config=a.py', '-x'], "'-x'"),
  (['--config=a.py', '--workdir='], '--workdir'),
  (['--config=a.py', '--debug=1'], '--debug'),
  (['--config=a.py', '--process_id=one', *PROCESSES[:2]], '--process_id'),
  (['--config=a.py', PROCESSES[0]], 'go together'),
  (['--config=a.py', *PROCESSES[1:]], 'go together'),
  (['--config=a.py', *PROCESSES, '--coordinator_address=localhost'], '--coordinator_address'),
  (['--config=a.py', *PROCESSES, '--coordinator_address=localhost:99999'], '--coordinator_address'),
  (['--config=a.py', *PROCESSES, '--num_processes=0'], '--num_processes'),
  (['--config=a.py', *PROCESSES, '--process_id=2'], '--process_id=2'),
  (['--config=a.py', *PROCESSES, '--process_id=-1'], '--process_id=-1'),
]


@pytest.mark.parametrize('argv, expected', BAD_FLAGS)
def test_bad_flags_are_one_line_and_exit_2(argv, expected, capsys):
  code, shown = run(lambda argv: command_line.parse_train(argv) and None, argv, capsys)
  assert code == 2
  assert len(shown.splitlines()) == 1
  assert expected in shown


# -- configs


def test_resolve_config_overrides_and_checks(tmp_path, capsys):
  (tmp_path / 'a.py').write_text(CONFIG)
  spec = f'--config={tmp_path / "a.py"}'
  config = command_line.resolve_config(command_line.parse_train([spec, '--config.seed=5']))
  assert config is not None
  assert config.seed == 5
  with pytest.raises(errors.UserError, match=r'config\.seed=-1'):
    command_line.resolve_config(command_line.parse_train([spec, '--config.seed', '-1']))
  assert capsys.readouterr().out == ''


def test_print_config_prints_the_resolved_config(tmp_path, capsys):
  (tmp_path / 'a.py').write_text(CONFIG)
  arguments = command_line.parse_train([f'--config={tmp_path / "a.py"}', '--print_config', '--config.seed=5'])
  assert command_line.resolve_config(arguments) is None
  assert capsys.readouterr().out.rstrip('\n') == configs.describe(
    configs.override(configs.base_config(), {'seed': '5'})
  )


def test_wrong_input_is_reported_before_jax_is_imported(tmp_path):
  (tmp_path / 'a.py').write_text(CONFIG)
  code = """
    import sys
    from adversarial_augment import cli
    from adversarial_augment.config import command_line
    def main(argv):
      try:
        command_line.resolve_config(command_line.parse_train(argv))
      finally:
        assert 'jax' not in sys.modules
    cli.run(main)
  """
  done = python(code, f'--config={tmp_path / "a.py"}', '--config.bath_size=3')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.splitlines() == [
    "-c: Unknown config field 'bath_size'. Did you mean 'batch_size'? (--print_config lists all fields.)"
  ]


# -- before JAX starts

DEVICES = """
  import sys
  from adversarial_augment.parallel import devices
  devices.usable_cores = lambda: 4
  known = devices.virtual_devices(int(sys.argv[1]))
  import jax
  print(known, jax.local_device_count())
"""
ZERO = 'asks for 0 devices of the CPU; ask for at least 1, or leave it out.'


@pytest.mark.parametrize(
  'batch_size, env, out, error',
  [
    (8, {}, '4 4', ''),  # the largest divisor of the batch size
    (6, {}, '3 3', ''),
    (7, {}, '1 1', ''),
    (8, {'JAX_NUM_CPU_DEVICES': '3'}, '3 3', ''),  # the user's choice stands
    (8, {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}, '2 2', ''),
    (8, {'JAX_NUM_CPU_DEVICES': '0'}, '', f'JAX_NUM_CPU_DEVICES {ZERO}'),
    (8, {'XLA_FLAGS': '--xla_force_host_platform_device_count=0'}, '', f'XLA_FLAGS {ZERO}'),
  ],
)
def test_virtual_devices(batch_size, env, out, error):
  done = python(DEVICES, str(batch_size), **env)
  assert done.stdout.strip() == out
  assert done.stderr.endswith(f'UserError: {error}\n' if error else '')
  assert error or not done.stderr


def test_devices_that_exist_stand():
  done = python('import jax; jax.devices()\n' + textwrap.dedent(DEVICES), '8')
  assert (done.stdout, done.stderr) == ('1 1\n', '')


def test_how_many_devices_there_will_be_is_known_on_a_cpu_alone():
  code = 'from adversarial_augment.parallel import devices; print(devices._cpu_only())'
  for platforms, known in (('cpu', True), ('cuda,cpu', False), ('tpu', False)):
    assert python(code, JAX_PLATFORMS=platforms).stdout == f'{known}\n'


CACHE = """
  from adversarial_augment.parallel import devices
  devices.compilation_cache()
  import jax
  print(jax.config.jax_compilation_cache_dir)
"""


def test_compilation_cache_is_in_the_users_cache_folder_unless_chosen(tmp_path):
  folder = tmp_path / 'adversarial_augment' / 'xla'
  assert python(CACHE, XDG_CACHE_HOME=str(tmp_path)).stdout == f'{folder}\n'
  assert folder.is_dir()
  assert python(CACHE, XDG_CACHE_HOME='', HOME=str(tmp_path)).stdout.startswith(f'{tmp_path}/.cache/')
  assert python(CACHE, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'own')).stdout == f'{tmp_path / "own"}\n'
  off = python(CACHE, XDG_CACHE_HOME=str(tmp_path / 'unused'), JAX_ENABLE_COMPILATION_CACHE='0')
  assert off.stdout == 'None\n'
  assert not (tmp_path / 'unused').exists()


def test_a_cache_folder_that_cannot_be_made_is_said_and_does_no_harm(tmp_path):
  (tmp_path / 'file').write_text('')
  done = python(CACHE, XDG_CACHE_HOME=str(tmp_path / 'file'))
  assert (done.returncode, done.stdout) == (0, 'None\n')
  assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error():
  command = [sys.executable, '-m', 'adversarial_augment.train', '--config=configs/ada_edsr.py', '--print_config']
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
    process.stdout.close()
    assert process.stderr.read() == ''
    assert process.wait(60) == 141


def test_a_stop_before_the_run_says_how_to_go_on():
  code = 'import signal; from adversarial_augment import cli; cli.run(lambda _: signal.raise_signal(signal.SIGTERM))'
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert ended.returncode == 75
  assert ended.stderr.count('\n') == 1
  assert 'run the same command again' in ended.stderr


@pytest.mark.parametrize('name', ['~nouser/x', 'a' * 300, 'a\0b'])
def test_paths_that_no_system_takes_are_user_errors(name):
  with pytest.raises(errors.UserError, match="--workdir='.*cannot be the name of a file or folder"):
    command_line.parse_train(['--config=a.py', f'--workdir={name}'])
