"""The numbers of figures, which others may have written."""

import base64

import pytest

from adversarial_augment.errors import UserError
from experiments import figure_files


@pytest.mark.parametrize('content', [b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'GIF89a', b''])
def test_pictures_other_than_png_are_not_opened(content):
  with pytest.raises(UserError, match='damaged picture; compute them again with --overwrite'):
    figure_files.decoded([base64.b64encode(content).decode()])
