"""The hash by which a result names its data."""

from collections.abc import Iterable
import hashlib

import numpy as np

from adversarial_augment.types import Batch


def fingerprint(batches: Iterable[Batch]) -> str:
  """Returns the SHA-256 of a split: the bytes of all images in order, then all labels as little-endian int32.

  Args:
    batches: the split in pieces of any size; images uint8 [n, h, w, c], labels [n].

  Returns:
    64 hexadecimal digits; they do not depend on how the split was cut into pieces.
  """
  digest = hashlib.sha256()
  labels = []
  for batch in batches:
    digest.update(np.ascontiguousarray(batch.images).data)
    labels.append(np.asarray(batch.labels))
  for part in labels:
    digest.update(part.astype('<i4').tobytes())
  return digest.hexdigest()
