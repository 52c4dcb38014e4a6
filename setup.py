"""One build step; the package's metadata and dependencies are in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
  """Puts the configs into the package; in a checkout they lie beside it, where users look for them."""

  def run(self):
    super().run()
    if not self.editable_mode:
      folder = Path(self.build_lib, 'adversarial_augment', 'configs')
      self.mkpath(str(folder))
      for path in sorted((Path(__file__).parent / 'configs').glob('*.py')):
        self.copy_file(str(path), str(folder / path.name))


setup(cmdclass={'build_py': BuildPy})
