"""What the site shows besides docs/: other files of the repository, and the notebook.

Links between files of the repository become links between pages. `mkdocs build --strict` fails where one is broken.
"""

from collections.abc import Iterator
import json
import os
from pathlib import Path
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = 'notebooks/adversarial_augment.ipynb'
# The places in the site of what lies outside docs/; other files keep their path.
PLACES = {'README.md': 'index.md', NOTEBOOK: 'guides/notebook.md', 'LICENSE': 'LICENSE.txt'}
INCLUDED = (
  *PLACES, 'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md',
  'cluster/*', 'examples/*.py', 'experiments/results/*.*',
)  # fmt: skip
LINK = re.compile(r'(\]\()(?![a-z]+:)([^)\s#]+)')


def place(path: str) -> str:
  """Returns where the site has a file of the repository."""
  return PLACES.get(path, path.removeprefix('docs/'))


def on_files(files: Files, config: Any) -> Files:
  for pattern in INCLUDED:
    for path in sorted(ROOT.glob(pattern)):
      name = path.relative_to(ROOT).as_posix()
      text = notebook(json.loads(path.read_text())) if name == NOTEBOOK else None
      source = {'content': text} if text else {'abs_src_path': str(path)}
      files.append(File.generated(config, place(name), **source))
  return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
  here = page.file.src_uri
  source = {site: path for path, site in PLACES.items()}.get(here)
  source = source or (here if (ROOT / here).exists() else f'docs/{here}')

  def between_pages(link: re.Match) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
    if not (ROOT / path).is_file():
      return link[0]
    return link[1] + os.path.relpath(place(path), posixpath.dirname(here) or '.')

  return LINK.sub(between_pages, markdown)


def notebook(cells: dict[str, Any]) -> str:
  """Returns a notebook as Markdown: its text, its code, and what the code printed and drew."""
  return '\n\n'.join(part for cell in cells['cells'] for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> Iterator[str]:
  source = ''.join(cell['source'])
  if cell['cell_type'] == 'markdown':
    yield source
    return
  yield f'```python\n{source}\n```'
  printed = ''.join(''.join(output['text']) for output in cell['outputs'] if output['output_type'] == 'stream')
  if printed:
    yield f'```text\n{printed.rstrip()}\n```'
  for output in cell['outputs']:
    if 'image/png' in output.get('data', {}):
      yield f'![Output](data:image/png;base64,{"".join(output["data"]["image/png"].split())})'
