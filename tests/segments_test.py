"""What a run records of its starts, and how it takes files that are missing, damaged, or of other versions."""

import json

import pytest

from adversarial_augment.run import segments

OTHER = {'devices': 3, 'device_kind': 'TPU v5 lite', 'processes': 2, 'versions': {'jax': '0.9.0'}, 'host': 'elsewhere'}


def write(workdir, *first_steps: int, **changes) -> None:
  records = [OTHER | {'first_step': step} | changes for step in first_steps]
  (workdir / 'segments.json').write_text(json.dumps(records))


def spans(workdir, step: int) -> list[tuple[int, int, int]]:
  return [(one['first_step'], one['last_step'], one['devices']) for one in segments.until(workdir, step)]


def test_a_start_ends_the_one_before_and_drops_those_of_lost_steps(tmp_path):
  write(tmp_path, 1, 11, 21, 31)
  said = segments.begin(tmp_path, 20)
  assert said == ' on 8 devices (cpu) in 1 process; until here 3 devices (TPU v5 lite) in 2 processes'
  assert spans(tmp_path, 40) == [(1, 10, 3), (11, 20, 3), (21, 40, 8)]
  assert segments.begin(tmp_path, 30) == ''  # on the same devices
  assert spans(tmp_path, 40) == [(1, 10, 3), (11, 20, 3), (21, 30, 8), (31, 40, 8)]
  assert segments.begin(tmp_path, 40) == ''  # it makes no step
  assert spans(tmp_path, 40) == [(1, 10, 3), (11, 20, 3), (21, 30, 8), (31, 40, 8)]
  segments.begin(tmp_path, 0)
  assert spans(tmp_path, 40) == [(1, 40, 8)]


def test_devices_of_one_kind_are_counted_only(tmp_path):
  write(tmp_path, 1, devices=1, device_kind='cpu')
  assert segments.begin(tmp_path, 2) == ' on 8 devices in 1 process; until here 1 device in 2 processes'


@pytest.mark.parametrize('content', ['', '{', '3', '[3]', '[{"first_step": 0}]', '[' * 10**5, '[{"first_step": 1e9}]'])
def test_a_damaged_file_is_a_warning(content, tmp_path, capsys):
  (tmp_path / 'segments.json').write_text(content)
  assert segments.until(tmp_path, 9) == []
  assert segments.begin(tmp_path, 5) == ''
  assert spans(tmp_path, 9) == [(6, 9, 8)]
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  assert all("segments.json'" in line and 'the starts that it held are not known any more' in line for line in lines)


def test_starts_in_another_order_are_damage(tmp_path, capsys):
  write(tmp_path, 5, 5)
  assert segments.until(tmp_path, 9) == []
  assert 'first_step=[5, 5], which must rise;' in capsys.readouterr().err


def test_a_run_of_an_older_version_begins_in_its_middle(tmp_path):
  assert segments.until(tmp_path, 5) == []
  assert segments.begin(tmp_path, 5) == ''
  assert spans(tmp_path, 9) == [(6, 9, 8)]
