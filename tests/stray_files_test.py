"""Files that nobody lists, beside those that are listed: what file managers, editors and NFS leave changes nothing."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from adversarial_augment import config, corruption_nets, export, inference, report, results
from adversarial_augment.datasets import cifar10_c, mixture
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files
from tests import deepaugment_sets
from tests.classifier_cases import save_run
from tests.corrupted_pets import NAMES, copy, hashes, load, run
from tests.reporting_fixtures import write_attacks, write_run

JUNK = ('.DS_Store', '.nfs000000000a1b2c3d00000001', 'Thumbs.db', 'desktop.ini', '#notes#')


def litter(folder: Path) -> None:
  """Leaves something beside every file of a folder, and in every folder below it."""
  for place in [folder, *(path for path in folder.rglob('*') if path.is_dir())]:
    present = [path.name for path in place.iterdir() if path.is_file()]
    for name in (*JUNK, *(f'._{name}' for name in present), *(f'{name}~' for name in present)):
      (place / name).write_bytes(b'\x00\x05\x16\x07 no file of ours')
    for name in present:
      (place / f'.#{name}').symlink_to('user@host.1234:1700000000')  # an editor's lock: a link to nothing
      if '.' in name:
        stem, _, suffix = name.rpartition('.')
        shutil.copy(place / name, place / f'{stem} copy.{suffix}')


def test_a_prepared_set(pets, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  before = load(data_dir)
  litter(data_dir)
  after = load(data_dir)
  assert after.provenance == before.provenance
  np.testing.assert_array_equal(after.read(np.arange(40)).images, before.read(np.arange(40)).images)


@pytest.mark.parametrize('flags', [(), ('--format=array_record',)])
def test_a_set_of_corruptions_is_whole(pets, tmp_path, capsys, flags):
  data_dir = run(copy(pets, tmp_path / 'data'), *flags, '--names=brightness')
  litter(data_dir)
  capsys.readouterr()
  run(data_dir, *flags, '--names=brightness')
  assert '; 0 images written' in capsys.readouterr().out


def test_a_set_of_corruptions_is_verified_and_completed(whole, tmp_path):
  data_dir = copy(whole, tmp_path / 'data')
  folder = data_dir / 'pets_c'
  kept = hashes(folder)
  (folder / 'gaussian_noise.npy').unlink()
  litter(data_dir)
  run(data_dir)
  assert hashes_of(folder, kept) == kept
  found = cifar10_c.open_set(folder, NAMES, load(data_dir), verify=True)
  assert found.origin.startswith('generated')


def hashes_of(folder: Path, names: dict[str, str]) -> dict[str, str]:
  clean = folder.parent / 'clean'
  clean.mkdir()
  for name in names:
    shutil.copy(folder / name, clean / name)
  return hashes(clean)


def test_a_folder_with_nothing_but_such_files_takes_a_new_set(pets, tmp_path):
  data_dir = copy(pets, tmp_path / 'data')
  (data_dir / 'pets_c').mkdir()
  for name in (*JUNK, '._labels.npy', '.#fog.npy'):
    (data_dir / 'pets_c' / name).write_text('x')
  run(data_dir, '--names=brightness')
  assert (data_dir / 'pets_c' / 'MANIFEST.json').exists()


def test_a_deepaugment_set(tmp_path):
  data_dir = deepaugment_sets.write(tmp_path / 'data')
  litter(data_dir)
  assert deepaugment_sets.write_some(data_dir) == (0, 0)
  copies = mixture.load(deepaugment_sets.load(data_dir), str(data_dir), ('some',), None)
  assert [found.num_examples for found in copies] == [deepaugment_sets.N] * 2


def test_a_deepaugment_set_that_was_begun_goes_on(tmp_path):
  data_dir = deepaugment_sets.write_pets(tmp_path / 'data')
  calls = []

  def fails_late(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
      raise UserError('enough')
    return deepaugment_sets.make(*arguments)

  with pytest.raises(UserError, match='enough'):
    deepaugment_sets.write_some(data_dir, make=fails_late)
  litter(data_dir)
  assert deepaugment_sets.write_some(data_dir) == (deepaugment_sets.N, 0)


def test_a_run_its_checkpoints_and_its_export(tmp_path):
  save_run(tmp_path / 'w')
  before = inference.load_classifier(tmp_path / 'w')
  export.main([f'--workdir={tmp_path / "w"}', '--formats=safetensors'])
  litter(tmp_path / 'w')
  after = inference.load_classifier(tmp_path / 'w')
  assert (after.step, after.checkpoint_sha256) == (before.step, before.checkpoint_sha256)
  with pytest.raises(UserError, match='--overwrite'):
    export.main([f'--workdir={tmp_path / "w"}', '--formats=safetensors'])
  export.main([f'--workdir={tmp_path / "w"}', '--formats=safetensors', '--overwrite'])
  card = json.loads((tmp_path / 'w' / 'export' / 'card.json').read_text())
  assert list(card['files']) == ['classifier.safetensors']


def test_results_and_the_report(tmp_path):
  workdir = write_run(tmp_path / 'w')
  write_attacks(workdir)
  known = results.load_robustness(workdir)
  assert known
  report.report([workdir], tmp_path / 'before.html')
  litter(workdir)
  (workdir / 'results' / 'robustness.json').write_text('{}')
  assert results.load_robustness(workdir) == known
  report.report([workdir], tmp_path / 'after.html')
  titled = [path.read_text() for path in (tmp_path / 'before.html', tmp_path / 'after.html')]
  assert titled[0] == titled[1]


def test_what_ships(monkeypatch, tmp_path):
  shipped, configs = tmp_path / 'shipped', tmp_path / 'configs'
  shutil.copytree(corruption_nets._SHIPPED, shipped)
  shutil.copytree(config._shipped(), configs)
  before = config.list_configs()
  for folder in (shipped, configs):
    for path in sorted(folder.glob('*.*')):
      (folder / f'._{path.name}').write_bytes(b'\xff')
  monkeypatch.setattr(corruption_nets, '_SHIPPED', shipped)
  monkeypatch.setattr(config, '_shipped', lambda: configs)
  assert config.list_configs() == before
  with pytest.raises(UserError) as caught:
    corruption_nets.find('nothing')
  assert '._' not in str(caught.value)


def test_named_leaves_hidden_files_out(tmp_path):
  for name in ('b.npy', 'a.npy', '._a.npy', '.#a.npy', 'a.npy~', 'a.json'):
    (tmp_path / name).touch()
  assert [path.name for path in files.named(tmp_path, '*.npy')] == ['a.npy', 'b.npy']
