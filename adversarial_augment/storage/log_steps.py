"""Which steps the lines of a log are of, as a few runs of equal distance: [first, last, distance]."""

from collections.abc import Iterable, Iterator, Sequence

Runs = list[list[int]]


def append(runs: Runs, step: int) -> None:
  """Adds a step that is larger than those of `runs`, in place."""
  if runs:
    first, last, distance = runs[-1]
    if first == last or last + distance == step:
      runs[-1] = [first, step, step - last]
      return
  runs.append([step, step, 1])


def of(steps: Iterable[int]) -> Runs:
  """Returns the runs of rising steps."""
  runs: Runs = []
  for step in steps:
    append(runs, step)
  return runs


def expand(runs: Iterable[Sequence[int]]) -> Iterator[int]:
  """Yields every step."""
  for first, last, distance in runs:
    yield from range(first, last + 1, distance)


def spell(steps: Sequence[int]) -> str:
  """Returns rising steps in words: 'step 3', 'steps 10, 40', 'steps 10 to 90 (9 lines) and 7 more'."""
  if len(steps) <= 5:
    return f'step{"s" if len(steps) > 1 else ""} {", ".join(map(str, steps))}'
  parts = [(first, last, (last - first) // distance + 1) for first, last, distance in of(steps)]
  shown = ', '.join(
    f'{first} to {last} ({count} lines)' if count > 1 else f'{first}' for first, last, count in parts[:5]
  )
  left = sum(count for _, _, count in parts[5:])
  return f'steps {shown}' + (f' and {left} more' if left else '')
