"""The package's metadata; build system and tools are in pyproject.toml."""

from pathlib import Path
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent

# requirements.txt holds the same lines. Tried: the newest of everything, and JAX 0.8.0 with the newest of the rest; the
# other lower bounds are judgement. JAX 0.12 is the newest line that exists.
RUNTIME = [
  'jax>=0.8,<0.13',
  'jaxlib>=0.8,<0.13',
  'dm-haiku>=0.0.17',
  'optax>=0.2.8',
  'ml-collections>=1.1',
  'numpy>=2.0',
  'orbax-checkpoint>=0.12',
  'safetensors>=0.5',
  'tensorflow-datasets>=4.9.10',
  'array_record>=0.5',  # of tensorflow-datasets too
  'importlib_resources>=6',  # tensorflow-datasets needs it and does not say so
  'pillow>=10',
  'scikit-learn>=1.5',
  'scikit-image>=0.24',
  'scipy>=1.13',
  'tqdm>=4.60',
  'msgspec>=0.19',
  'jinja2>=3.1',
]

EXTRAS = {
  'plots': ['matplotlib>=3.8'],
  'logging': ['tensorboardX>=2.6'],
  'frost': ['imagecorruptions>=1.1.2'],  # its photographs, without which the corruption 'frost' is made up
  'plan-tpu': [
    'jax[tpu]>=0.8,<0.13'
  ],  # the compilers of `plan`, which run on any CPU: the one of the JAX that is installed
  'plan-gpu': ['jax[cuda13-local]>=0.8,<0.13'],  # without CUDA's libraries
  'autoattack': ['torch>=2.2', 'pyautoattack>=0.2', 'foolbox>=3.3'],  # which slow tests compare the attacks with
  'export': ['flatbuffers>=24'],  # jax.export needs it and does not say so
}
EXTRAS['dev'] = [
  *EXTRAS['plots'],
  *EXTRAS['logging'],
  *EXTRAS['export'],
  'build>=1.2',
  'hypothesis>=6.100',
  'ipykernel>=6',
  'mypy>=1.10',
  'nbclient>=0.10',
  'opencv-python-headless>=4.9',
  'pytest>=8',
  'pytest-xdist>=3.5',
  'ruff>=0.9',
  'setuptools>=77',  # a test builds without isolation
]

VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'adversarial_augment' / '__init__.py').read_text())[1]


class BuildPy(build_py):
  """Puts the configs into the package; in a checkout they lie beside it, where users look for them."""

  def run(self):
    super().run()
    if not self.editable_mode:
      folder = Path(self.build_lib, 'adversarial_augment', 'configs')
      self.mkpath(str(folder))
      for path in sorted((HERE / 'configs').glob('*.py')):
        self.copy_file(str(path), str(folder / path.name))


setup(
  name='adversarial-augment',
  version=VERSION,
  description='AdversarialAugment (AdA) in JAX: image classifiers hardened against corruptions by adversarial ones',
  long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  license_files=['LICENSE'],
  author='The adversarial_augment authors',
  keywords=['adversarial training', 'data augmentation', 'image corruptions', 'robustness', 'JAX', 'CIFAR-10'],
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX :: Linux',
    'Programming Language :: Python :: 3 :: Only',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Topic :: Scientific/Engineering :: Image Recognition',
  ],
  python_requires='>=3.11',
  install_requires=RUNTIME,
  extras_require=EXTRAS,
  packages=find_packages(include=['adversarial_augment', 'adversarial_augment.*']),
  # So that an editable installation is a path, not an import hook. Hooks come after the path, on which a script in the
  # folder above a clone finds the clone first, as a namespace package of the same name. On a path stands the package
  # itself, which goes before namespaces wherever it is.
  package_dir={'': '.'},
  cmdclass={'build_py': BuildPy},
  entry_points={'console_scripts': ['adversarial-augment = adversarial_augment.__main__:main']},
  package_data={'adversarial_augment': ['corruption_nets/shipped/*.safetensors', 'reporting/templates/*']},
  include_package_data=False,
)
