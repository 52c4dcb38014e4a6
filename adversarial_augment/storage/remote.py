"""Files under a URL: a bucket, a folder that machines share, or another file system of fsspec.

What fsspec raises is `Unreachable` here. Credentials are its business: it finds them in the environment or its files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
import re
import shutil

from adversarial_augment.errors import UserError
from adversarial_augment.storage import artifact, files

_PACKAGES = {'s3': 's3fs', 's3a': 's3fs', 'gs': 'gcsfs', 'gcs': 'gcsfs', 'abfs': 'adlfs', 'az': 'adlfs'}


class Unreachable(Exception):
  """A file system could not be used; the message is its reason, in one line."""


class Remote:
  """Files by their path below a URL; all methods raise `Unreachable`."""

  def __init__(self, url: str, what: str):
    """Contacts nobody yet.

    Args:
      url: of a folder, or the path of one that machines share.
      what: the flag or field that has it, for messages.

    Raises:
      UserError: it cannot be used, or has a password, which would be recorded with the command.
    """
    if not files.is_url(url):
      url = files.user_path(url, what).absolute().as_uri() if url else ''
    protocol = url.partition('://')[0]
    if re.search('://[^/@]*:[^/@]*@', url):
      raise UserError(
        f'{what} has a password in its URL, which would be recorded; give it to fsspec by the environment or its files.'
      )
    import fsspec

    try:
      self._fs, self._root = fsspec.core.url_to_fs(url)
    except ImportError as error:
      package = _PACKAGES.get(protocol, 'the package that fsspec has for it')
      raise UserError(f"{what}='{url}' needs a package for {protocol}://; pip install {package}.") from error
    except Exception as error:  # each file system has errors of its own
      raise UserError(f"{what}='{url}' cannot be used ({artifact.one_line(error)}); name another URL.") from error
    self._root = self._root.rstrip('/')
    if not url or not self._root.strip('/'):
      raise UserError(f"{what}='{url}' must be a folder, such as gs://bucket/run, s3://bucket/run or /shared/run.")
    self._local = protocol == 'file'
    self.url = url

  def sizes(self, folder: str = '') -> dict[str, int]:
    """Returns the bytes of every file below a folder; {} if there is none."""
    top = f'{self._root}/{folder}' if folder else self._root
    with _reached():
      self._fs.invalidate_cache()
      found = self._fs.find(top, detail=True)
    return {name.removeprefix(f'{self._root}/'): int(about['size'] or 0) for name, about in found.items()}

  def get(self, name: str, path: Path) -> None:
    """Copies a file to `path`, whose folder exists."""
    with _reached():
      self._fs.get_file(f'{self._root}/{name}', str(path))

  def put(self, path: Path, name: str) -> None:
    """Writes a file, whole or not at all where the file system can."""
    with _reached():
      target = f'{self._root}/{name}'
      if not self._local:
        self._fs.put_file(str(path), target)
        return
      Path(target).parent.mkdir(parents=True, exist_ok=True)
      with open(path, 'rb') as source, artifact.writing(Path(target)) as copy:
        shutil.copyfileobj(source, copy)

  def delete(self, names: Sequence[str]) -> None:
    """Deletes files, and in a file system with folders those that it leaves empty."""
    with _reached():
      for name in names:
        self._fs.rm_file(f'{self._root}/{name}')
      for name in names if self._local else ():
        for folder in PurePosixPath(name).parents[:-1]:
          with suppress(OSError):  # not empty, or gone
            Path(self._root, folder).rmdir()


@contextmanager
def _reached() -> Iterator[None]:
  try:
    yield
  except Exception as error:  # each file system has errors of its own
    raise Unreachable(artifact.one_line(error)) from error
