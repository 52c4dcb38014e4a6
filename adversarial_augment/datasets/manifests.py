"""Manifests of generated sets: the records they have in common, and a comparison of how two sets were made."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

# By algorithm and version, the SHA-256 of its code, which release 0.1.0 recorded instead of the version.
_CODE = {
  'corruptions': {'2': 'dfd618a228205d3ce1a345bc7ced3d1585f4143bc31b6b64e4f25013d3dad28c'},
  'deepaugment': {'1': '401a052ff54915b636dd78316a6ecd2f0c0f9040fd0ae0e80053e308d55a8762'},
}


class Source(Struct):
  """The split that a set was made from."""

  sha256: str


class File(Struct):
  bytes: int
  sha256: str
  frost: str | None = None  # of frost.npy

  def __post_init__(self) -> None:
    if self.frost is not None and not self.frost.isprintable():
      raise ValueError(f'frost={self.frost!r}')


def with_code(made_with: Any, algorithm: str) -> Any:
  """Returns `made_with` of a manifest or a result with both the version of an algorithm and the hash of its code.

  Args:
    made_with: as recorded; it may have one of them, both, or none.
    algorithm: 'corruptions' or 'deepaugment'.
  """
  if not isinstance(made_with, Mapping):
    return made_with
  code = _CODE[algorithm]
  version, sha256 = made_with.get(algorithm), made_with.get('code_sha256')
  if version is None:
    version = next((known for known, hashed in code.items() if hashed == sha256), None)
  if sha256 is None:
    sha256 = code.get(str(version))
  found = {algorithm: version, **dict(sorted(made_with.items()))} | {algorithm: version, 'code_sha256': sha256}
  return {key: value for key, value in found.items() if value is not None}


def comparable(manifest: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
  """Returns what equal sets have in common: all but the files, their source, and the version of this package."""
  about = {key: value for key, value in manifest.items() if key not in ('files', 'source')}
  made_with = with_code(about.get('made_with'), algorithm)
  if isinstance(made_with, Mapping):
    made_with = {key: value for key, value in made_with.items() if key != 'adversarial_augment'}
  return {**about, 'made_with': made_with}
