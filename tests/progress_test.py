"""Lines of progress where there is no terminal."""

from adversarial_augment.cli import progress


def test_a_line_every_ten_seconds_with_the_time_left(monkeypatch, capsys):
  clock = iter([100.0, 101.0, 110.0, 111.0, 120.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
  with progress.images(4000) as advance:
    for name in ('fog 1', 'fog 2', 'fog 3', 'fog 4'):
      advance(name, 1000)
  assert capsys.readouterr().err.splitlines() == [
    '  fog 2: 2,000 of 4,000 images  200 images/s  ETA 0:00:10',
    '  fog 4: 4,000 of 4,000 images  200 images/s  ETA 0:00:00',
  ]


def test_what_has_begun_and_is_not_done_is_not_counted(monkeypatch):
  monkeypatch.setattr(progress, '_SECONDS', 0)
  said: list[str] = []
  lines = progress.Lines(10, said.append, done=-4)
  for _ in range(3):
    lines.advance('clean', 4)
  assert [line.partition(' of ')[0] for line in said] == ['  clean: 4', '  clean: 8']


def test_a_compilation_counts_as_progress_for_an_hour(monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])

  def rises() -> bool:
    before, now[0] = progress.count(), now[0] + 100
    return progress.count() > before

  with progress.compiling():
    assert all(rises() for _ in range(36))
    assert not rises()
  with progress.compiling():
    assert rises()
  assert not rises()
