"""The site of the documentation: it builds without a warning, and every link, anchor and picture on it is there."""

import ast
from html.parser import HTMLParser
import os
from pathlib import Path
import posixpath
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip('mkdocs', reason="the site needs pip install -e '.[docs]'")

ROOT = Path(__file__).parent.parent
API = sorted((ROOT / 'docs' / 'api').glob('*.md'))


class Page(HTMLParser):
  """The anchors of a page, what it links to, and what a browser loads with it."""

  def __init__(self, text: str):
    super().__init__()
    self.anchors: set[str] = set()
    self.links: list[str] = []
    self.loaded: list[str] = []
    self.feed(text)

  def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
    values = {name: value for name, value in attributes if value}
    self.anchors |= {values[name] for name in ('id', 'name') if name in values}
    if tag in ('link', 'script', 'img', 'iframe'):
      self.loaded += [values[name] for name in ('href', 'src') if name in values]
    elif 'href' in values:
      self.links.append(values['href'])


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> dict[str, Page]:
  """The pages of the site by their paths."""
  folder = tmp_path_factory.mktemp('site')
  command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', f'--site-dir={folder}']
  environment = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
  built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert built.returncode == 0, built.stderr  # with --quiet, warnings would not count
  site = {path.relative_to(folder).as_posix(): Page(path.read_text()) for path in folder.rglob('*.html')}
  others = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
  return site | {path: Page('') for path in others - site.keys()}


def test_every_link_leads_somewhere(site):
  broken, followed = [], 0
  for name, page in site.items():
    for link in [*page.links, *page.loaded] if name != '404.html' else []:  # its links begin at the root
      parts = urlsplit(link)
      if parts.scheme:
        continue
      target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
      if target not in site or (parts.fragment and unquote(parts.fragment) not in site[target].anchors):
        broken.append(f'{name}: {link}')
      followed += 1
  assert broken == []
  assert followed > 500


def test_nothing_is_loaded_from_elsewhere(site):
  loaded = {link for page in site.values() for link in page.loaded}
  assert len(loaded) > 5
  assert not [link for link in loaded if urlsplit(link).scheme not in ('', 'data')]


def public_names(module: str) -> set[str]:
  """Returns the functions and classes that a module exports, or else defines, without importing it."""
  path = ROOT / 'adversarial_augment' / module
  body = ast.parse((path / '__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text()).body
  exported = [node.value for node in body if isinstance(node, ast.Assign) and '__all__' in ast.unparse(node.targets[0])]
  if exported:
    return {name for name in ast.literal_eval(exported[0]) if not name.isupper()}
  defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
  return {name for name in defined - {'main'} if not name.startswith('_')}


@pytest.mark.parametrize('module', [path.stem for path in API])
def test_the_api_has_every_public_name(site, module):
  names = public_names(module)
  assert names
  assert not names - {anchor.split('.')[-1] for anchor in site[f'api/{module}.html'].anchors}


def test_the_start_page_is_readme_and_the_notebook_is_a_guide(site):
  assert {'quick-start', 'use-it-as-a-library'} <= site['index.html'].anchors
  assert 'train-against-the-adversary' in site['guides/notebook.html'].anchors
  assert sum(link.startswith('data:image/png') for link in site['guides/notebook.html'].loaded) == 2
