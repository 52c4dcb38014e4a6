"""A trained classifier as a function of images.

    classify = load_classifier('runs/first')
    logits = classify(images)  # uint8 [n, h, w, 3] -> float32 [n, num_classes]

It needs only the directory of the run, not the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict
import numpy as np

from adversarial_augment import checks, results
from adversarial_augment import config as configs
from adversarial_augment.cli import progress
from adversarial_augment.datasets import cifar
from adversarial_augment.datasets.classes import Classes
from adversarial_augment.errors import UserError
from adversarial_augment.storage import files, untrusted
from adversarial_augment.storage.remote import Remote
from adversarial_augment.types import Array, PyTree, TrainState

if TYPE_CHECKING:  # wrong input is reported before JAX is imported
  from jax.sharding import Mesh

# Of data sets with fixed classes, for runs that did not record them.
_CLASS_NAMES = {'cifar10': cifar.PUBLISHED['cifar10'].class_names, 'embedded': tuple('0123456789')}


class Restored(NamedTuple):
  """The classifier of a checkpoint."""

  step: int  # updates made
  sha256: str  # of the whole state, as in the checkpoint's manifest and in results/*.json
  config_sha256: str  # of the run's config, as saved by the version that wrote it
  state: TrainState  # `params` and `model_state`; the other fields are None


class OnHost(NamedTuple):
  """The classifier of a file or of a run, with its arrays on the host of this process."""

  config: ConfigDict  # of a file: the defaults, but for the classifier and its precision
  classes: Classes
  restored: Restored  # of the checkpoint on a file's card, if it names one; else step 0, and the hash of the file
  sha256: str  # of the file; of a run: of the state


class Source(NamedTuple):
  """A classifier that another run starts from."""

  config: ConfigDict
  classes: Classes
  restore: Callable[[Mesh], Restored]  # puts it on all devices; on all processes
  origin: dict[str, Any]  # what it is, as results record it, as far as it is known before it is restored


def run_folder(text: str | os.PathLike, what: str) -> Path:
  """Returns the folder of a run that the flag or field `what` names by a path, or by the URL of its mirror.

  Of a URL it is that of a verified copy, whose files are as new as those there.

  Raises:
    UserError: it can be no path; or there is no run under the URL, or it cannot be reached.
    CheckpointError: all checkpoints under the URL are damaged.
  """
  if not isinstance(text, str) or not files.is_url(text):
    return files.user_path(text, what)
  remote = Remote(text, what)
  from adversarial_augment.storage import mirror  # imports JAX

  return mirror.local_copy(remote, what)


def find_source(path: Path) -> Source:
  """Returns the classifier of a run of `train`, or of a file; raises UserError where there is none.

  A run may go on meanwhile; its newest intact checkpoint is the one when it is restored.
  """
  from adversarial_augment.parallel import sharding
  from adversarial_augment.storage import checkpoints

  if os.path.isfile(path):
    found = read_file(path)
    to_devices = lambda mesh: found.restored._replace(state=sharding.replicate(mesh, found.restored.state))
    return Source(found.config, found.classes, to_devices, {'file': path.name, 'file_sha256': found.sha256})
  if not checkpoints.steps(path / 'checkpoints'):
    inside = path / 'classifier.safetensors'
    file = f"'{inside}'" if os.path.exists(inside) else 'a classifier.safetensors'
    raise UserError(f"No checkpoints in '{path}'; name the workdir of a run that has saved some, or {file}.")
  config, known = read_config(path), classes(path)
  to_devices = lambda mesh: restore(config, path, known.num or 1, (32, 32, 3), mesh)
  return Source(config, known, to_devices, {'workdir': path.name})


def read_config(workdir: Path, say: Callable[[str], None] = lambda line: None) -> ConfigDict:
  """Returns the config of a run of `train`; `say` gets a line about fields that did not exist when it was written.

  Raises:
    UserError: the directory has no run of `train`, or its config.json is damaged.
  """
  path = workdir / 'config.json'
  if (workdir / results.AUDIT).exists():
    raise UserError(
      f"'{workdir}' holds the audit of a model that was made elsewhere, which only adversarial_augment.audit can "
      'evaluate; name the workdir of a run of train.'
    )
  try:
    text = untrusted.read_bytes(path, untrusted.MAX_JSON).decode()
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(f"No run in '{workdir}': it has no {path.name}; name the workdir of a run of train.") from None
  except (OSError, ValueError) as error:
    raise UserError(f"Cannot read '{path}' ({error}); mend it, or name another workdir.") from error
  config = configs.from_json(text, f"'{path}'")
  if 'classifier' not in config:
    raise UserError(
      f"'{workdir}' holds a run of pretrain, which has no classifier; name the workdir of a run of train."
    )
  if added := configs.unknown_to(untrusted.parse_json(text)):
    say(configs.note(path, added))
  return config


def read_file(path: Path) -> OnHost:
  """Returns the classifier of a file of `export` or `convert classifier`, whose arrays stay on the host.

  Raises:
    UserError: as in `weight_files.read`; or the card names no classifier, or another one than the arrays are of.
  """
  from adversarial_augment.classifiers import weight_files
  from adversarial_augment.storage import artifact, state_arrays, tensor_files

  (params, model_state), card = weight_files.read(path)
  config = _config_on(card, path)
  shapes = lambda params, model_state: {
    name: leaf.shape for name, leaf in state_arrays.flatten({'params': params, 'model_state': model_state}).items()
  }
  found = shapes(params, model_state)
  num_classes = next((shape[-1] for name, shape in found.items() if name.endswith('/head/b') and shape), 1)
  expected = _shapes(config, num_classes)
  if wrong := tensor_files.wrong_shape(found, shapes(expected.params, expected.model_state)):
    raise UserError(f"'{path}' {wrong}; it is damaged, or its card is another one's: get or make it again.")
  names = (card.get('output') or {}).get('class_names') or ()
  names = tuple(names) if len(names) == num_classes and all(isinstance(name, str) for name in names) else ()
  sha256 = artifact.sha256_of(path)
  made, origin = (card.get(part) or {} for part in ('checkpoint', 'training'))
  state = TrainState(None, params, model_state, None)  # type: ignore[arg-type]
  restored = Restored(made.get('step', 0), made.get('sha256', sha256), origin.get('config_sha256', ''), state)
  return OnHost(config, Classes(num_classes, names), restored, sha256)


def _config_on(card: Mapping[str, Any], path: Path) -> ConfigDict:
  """Returns the default config with the classifier on a card."""
  config = configs.base_config()
  config.dataset = 'unknown'  # whose classes have no names but those on the card
  try:
    about = dict(card['architecture'])
    about.pop('num_parameters', None)
    config.precision = about.pop('precision')
    about |= {name: tuple(card['input']['normalisation'][name]) for name in ('mean', 'std')}
    for name, value in about.items():
      config.classifier[name] = value
    configs.validate(config)
  except (KeyError, TypeError, AttributeError, ValueError, UserError) as error:
    reason = ' '.join(f'{error}'.split())[:200]
    raise UserError(f"'{path}' has a card that this version cannot read ({reason}); export it again.") from None
  return config


def restore(
  config: ConfigDict, workdir: Path, num_classes: int, image_shape: tuple[int, int, int], mesh: Mesh
) -> Restored:
  """Restores the classifier of a run, finished or not, from its newest intact checkpoint.

  Read-only. Newer, damaged checkpoints are named on standard error. All processes call this; process 0 reads.

  Args:
    config: of the run; only the classifier's fields are used.
    workdir: of the run.
    num_classes: of the classifier.
    image_shape: (height, width, 3) of an image.
    mesh: the devices; each gets a copy of the arrays.

  Raises:
    UserError: there is no checkpoint yet, or it has another classifier or config than config.json.
    CheckpointError: all checkpoints are damaged.
  """
  import jax

  from adversarial_augment.parallel import processes, sharding
  from adversarial_augment.storage import checkpoints

  where = sharding.replicated(mesh)
  like = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  target = jax.tree.map(like, _shapes(config, num_classes, image_shape))
  about: list[str] = []  # on process 0

  def identify(manifest: Mapping[str, Any]) -> None:
    check_config(workdir, manifest)
    about[:] = manifest['state_sha256'], manifest['config_sha256']

  step, state = checkpoints.restore_subtree(
    workdir / 'checkpoints', target, ('params', 'model_state'), report=progress.log, check=identify
  )
  sha256, config_sha256 = processes.on_process_0(lambda: about)
  return Restored(step, sha256, config_sha256, state)


def read_run(workdir: Path) -> OnHost:
  """Returns the classifier of a run, from its newest intact checkpoint.

  Touches no device, so that several processes may call it before they meet.

  Raises:
    UserError, CheckpointError: as in `restore`.
  """
  import jax

  from adversarial_augment.storage import checkpoints, state_arrays

  config, known = read_config(workdir), classes(workdir)
  target = _shapes(config, known.num or 1)
  leaves = state_arrays.flatten(target)
  manifest: dict[str, Any] = {}

  def identify(found: Mapping[str, Any]) -> None:
    check_config(workdir, found)
    manifest.update(found)

  names = frozenset({'params', 'model_state'})
  step, arrays = checkpoints.read_newest(workdir / 'checkpoints', leaves, names, progress.log, identify)
  if step is None:
    raise UserError(f"No checkpoint under '{workdir}'; name the workdir of a run that has saved one.")
  state = jax.tree.unflatten(jax.tree.structure(target), [arrays[path] for path in leaves])
  sha256 = manifest['state_sha256']
  return OnHost(config, known, Restored(step, sha256, manifest['config_sha256'], state), sha256)


def _shapes(config: ConfigDict, num_classes: int, image_shape: tuple[int, int, int] = (32, 32, 3)) -> TrainState:
  """Returns `params` and `model_state` of a classifier as shapes; the parameters do not depend on the image size."""
  import jax
  import jax.numpy as jnp

  from adversarial_augment import threefry
  from adversarial_augment.training import recipe

  network = recipe.build_classifier(config, num_classes)
  init = lambda: network.init(threefry.key(0), jnp.zeros((1, *image_shape)), is_training=True)
  params, model_state = jax.eval_shape(init)
  return TrainState(step=None, params=params, model_state=model_state, opt_state=None)  # type: ignore[arg-type]


def check_config(workdir: Path, manifest: Mapping[str, Any]) -> None:
  """Raises UserError if the manifest of a checkpoint has the hash of another config than config.json in `workdir`."""
  if manifest['config_sha256'] not in configs.all_sha256(read_config(workdir)):
    raise UserError(
      f"'{workdir}/config.json' is not the config of checkpoint {manifest['step']}; restore the run's own config, or "
      'move the checkpoint of another run away.'
    )


class Classifier:
  """A trained classifier: a function of images.

  Attributes:
    num_classes: outputs.
    class_names: of the outputs, in order; None if the run did not record them.
    image_shape: (None, None, 3), because the network averages over positions and accepts any height and width. It was
      trained on one size, which data.json records (cifar10 and embedded: 32x32); resize other images to it.
    step, checkpoint_sha256: updates made, and the hash of the checkpoint's state, as in results/*.json.
    config, config_sha256: of the run, and its hash, as in the checkpoint.
    params, model_state: of the network, and its running statistics.
    logits_fn: images [n, h, w, 3] in [0, 1] -> logits [n, num_classes], which JAX can trace and differentiate; the
      argument `logits_fn` of `adversarial_augment.attacks`; it also shows the features of a perceptual distance.
  """

  image_shape = (None, None, 3)

  def __init__(
    self, config: ConfigDict, num_classes: int, restored: Restored, batch_size: int, class_names: Sequence[str] = ()
  ):
    """Compiles nothing yet; `batch_size` as in `load_classifier`, `class_names` as recorded by the run."""
    import jax

    from adversarial_augment import classifiers
    from adversarial_augment.training import recipe

    names = tuple(class_names) or _names_of(config.dataset)
    self.class_names = names if len(names) == num_classes else None
    self.config, self.num_classes = config, num_classes
    self.step, self.checkpoint_sha256, self.config_sha256 = restored.step, restored.sha256, restored.config_sha256
    self.params, self.model_state = restored.state.params, restored.state.model_state
    self._network, self._batch_size = recipe.build_classifier(config, num_classes), batch_size
    self.logits_fn = classifiers.logits_fn(self._network, self.params, self.model_state)
    self._jitted = jax.jit(self.apply)

  def apply(self, params: PyTree, model_state: PyTree, images: Array) -> Array:
    """Returns logits [n, num_classes] of images [n, h, w, 3] in [0, 1], with running statistics; a pure function."""
    from adversarial_augment import classifiers

    return classifiers.logits_fn(self._network, params, model_state)(images)

  def __call__(self, images: Any) -> np.ndarray:
    """Returns logits, float32 [n, num_classes]; those of an image are bit-identical in every batch.

    Args:
      images: uint8 [n, h, w, 3], or floats in [0, 1]; RGB, not normalised. Each new size h, w is compiled once.

    Raises:
      UserError: the images have another type, shape or range.
    """
    images = np.asarray(images)
    checks.check_images(images, ('uint8', 'floats'), channels=3, min_images=0)
    logits = np.empty((len(images), self.num_classes), np.float32)
    # One batch size, padded with black: other batch sizes would be other programs, which round differently.
    for start in range(0, len(images), self._batch_size):
      part = images[start : start + self._batch_size]
      batch = np.zeros((self._batch_size, *images.shape[1:]), np.float32)
      batch[: len(part)] = part.astype(np.float32) / 255 if part.dtype == np.uint8 else part
      logits[start : start + len(part)] = self._jitted(self.params, self.model_state, batch)[: len(part)]
    return logits


def load_classifier(workdir: str | os.PathLike, *, batch_size: int = 64) -> Classifier:
  """Returns the classifier of a run, from its newest intact checkpoint, or of a file, on the first device.

  Args:
    workdir: of a run of `train`, finished or not, or the URL of its mirror; or a file `classifier.safetensors` of
      `export` or of `convert`.
    batch_size: images per call of the program, at least 1; smaller batches are padded. Logits of different batch sizes
      agree to about six digits.

  Raises:
    UserError: as in `read_config` and `restore`, or `read_file`; a damaged data.json, or an invalid batch size.
    CheckpointError: all checkpoints are damaged.
  """
  if not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(f'batch_size={batch_size} must be an integer of at least 1.')
  path = run_folder(workdir, 'workdir')
  if os.path.isfile(path):
    found = read_file(path)
    return Classifier(found.config, found.classes.num or 0, found.restored, batch_size, found.classes.names)
  config, class_names = read_config(path), results.load_data(path).get('class_names', ())
  import jax

  from adversarial_augment.parallel import sharding

  num_classes = _num_classes(path / 'checkpoints') or 1  # `restore` reports a missing checkpoint
  mesh = jax.make_mesh((1,), (sharding.AXIS,), (jax.sharding.AxisType.Auto,), devices=jax.local_devices()[:1])
  # The parameters do not depend on the image size.
  restored = restore(config, path, num_classes, (32, 32, 3), mesh)
  return Classifier(config, num_classes, restored, batch_size, class_names)


def classes(workdir: Path) -> Classes:
  """Returns the classes of a run's classifier; raises UserError if data.json is damaged."""
  recorded = results.load_data(workdir).get('class_names')
  if names := tuple(recorded or _names_of(read_config(workdir).dataset)):
    return Classes(len(names), names)
  return Classes(_num_classes(workdir / 'checkpoints'), ())


def _names_of(dataset: str) -> tuple[str, ...]:
  return _CLASS_NAMES.get(dataset.partition(':')[0], ())


def _num_classes(directory: Path) -> int | None:
  """Returns the number of outputs in the newest intact checkpoint; None if there is no checkpoint."""
  from adversarial_augment.storage import checkpoints

  leaves = (checkpoints.newest_manifest(directory) or {}).get('leaves', {})
  return next((shape[0] for path, (shape, _) in leaves.items() if path.endswith('/head/b') and shape), None)
