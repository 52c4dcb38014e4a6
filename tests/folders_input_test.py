"""A folder that cannot be, because a file is in its place or above it: one line, exit code 2, on every command line."""

import importlib

import pytest

from adversarial_augment import cli
from adversarial_augment.errors import UserError
from adversarial_augment.parallel import devices
from adversarial_augment.storage import files, run_directory

SMOKE = '--config=configs/ada_edsr.py:smoke'

# Program, its flags, and the beginning of what it says; {} is a file.
CASES = [
  ('train', [SMOKE, '--workdir={}/x'], "--workdir='{}/x' cannot be a folder, because '{}' is a file; name a folder in"),
  ('train', [SMOKE, '--workdir={}'], "--workdir='{}' is a file; name a folder, which is made where it does not exist."),
  ('train', [SMOKE, '--workdir=/dev/null/x/y'], "--workdir='/dev/null/x/y' cannot be a folder, because '/dev/null' is"),
  ('pretrain', ['--config=configs/pretrain_edsr.py:smoke', '--workdir={}/x'], "--workdir='{}/x' cannot be a folder"),
  ('prepare', ['cifar10', '--data_dir={}/x'], "--data_dir='{}/x' cannot be a folder, because '{}' is a file; name"),
  ('prepare', ['cifar10', '--data_dir={}'], "--data_dir='{}' is a file; name a folder"),
  ('prepare', ['cifar10_c', '--data_dir={}/x'], "--data_dir='{}/x' cannot be a folder"),
  ('prepare', ['cifar10_1', '--from={}', '--data_dir={}/x'], "--data_dir='{}/x' cannot be a folder"),
  ('prepare', ['deepaugment', '--net=edsr', '--data_dir={}/x'], "--data_dir='{}/x' cannot be a folder"),
  ('prepare', ['images', '--name=pets', '--from={}', '--data_dir={}/x'], "--data_dir='{}/x' cannot be a folder"),
  ('evaluate', ['--workdir={}/x'], "No run in '{}/x'"),
  ('evaluate', ['--workdir={}'], "No run in '{}'"),
  ('export', ['--workdir={}/x'], "No run in '{}/x'"),
  ('export', ['--workdir={}'], "No run in '{}'"),
  ('report', ['{}/x'], "'{}/x' does not exist; name the workdir of a run."),
  ('report', ['{}'], "'{}' is a file; name the workdir of a run."),
  ('convert', ['a.pt', '{}/x.safetensors'], "OUT.safetensors='{}/x.safetensors' must be in an existing folder"),
]  # fmt: skip


@pytest.mark.parametrize('program, flags, words', CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_a_file_where_a_folder_should_be(program, flags, words, tmp_path, capsys, monkeypatch):
  file = tmp_path / 'file'
  file.touch()
  monkeypatch.setattr(devices, 'virtual_devices', lambda *_: pytest.fail('devices came first'))
  main = importlib.import_module(f'adversarial_augment.{program}').main
  with pytest.raises(SystemExit) as caught:
    cli.run(main, [flag.replace('{}', str(file)) for flag in flags])
  out, err = capsys.readouterr()
  assert caught.value.code == 2, err
  assert out == ''
  assert words.replace('{}', str(file)) in err
  assert err.count('\n') == 1
  assert list(tmp_path.iterdir()) == [file]


def test_folders_that_are_there_or_can_be_made_pass(tmp_path, monkeypatch):
  (tmp_path / 'link').symlink_to(tmp_path)
  for folder in (tmp_path, tmp_path / 'link', tmp_path / 'link' / 'a' / 'b'):
    files.check_folder(folder, '--workdir')
  monkeypatch.chdir(tmp_path)
  files.check_folder(type(tmp_path)('a/b'), '--workdir')


def test_a_link_to_nothing_is_no_folder(tmp_path):
  (tmp_path / 'link').symlink_to(tmp_path / 'gone')
  with pytest.raises(UserError, match="^workdir='.*/link' is a link to nothing; name a folder"):
    run_directory.create(tmp_path / 'link')
  with pytest.raises(UserError, match="^workdir='.*/link/w' cannot be a folder, because '.*/link' is a link to noth"):
    run_directory.create(tmp_path / 'link' / 'w')
