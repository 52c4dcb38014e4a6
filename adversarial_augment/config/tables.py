"""Every field of the configs: default, rule, and meaning with the unit and, where a paper sets it, the source.

This is the only place where a default is written. A field added here can be set in config files and on the command
line, is checked, and is printed by `--print_config`.
"""

from typing import Any

from adversarial_augment.config import fields
from adversarial_augment.config.adversaries import ADVERSARIES, Adversary
from adversarial_augment.config.evaluations import EVALUATIONS, Evaluation
from adversarial_augment.config.fields import Field, boolean, choice, integer, integer_choice, names, number, optional

_PAPER = 'arXiv 2104.01086'  # AdversarialAugment
_EDSR = 'arXiv 1707.02921'
_AUGMIX = 'arXiv 1912.02781'
_TRADES = 'arXiv 1901.08573'
_COUNT, _EVERY, _SEED = integer(1, 10**9), integer(0, 10**9), integer(0, 2**31 - 1)
_IMAGES = integer(1, 2**20)
_WEIGHT = number(0, 1e3)
_NAME, _FOLDER, _WEIGHTS = fields.text('a name'), fields.text('a folder'), fields.text('a path', '.safetensors')
AUGMIX = ('augmix', 'augmix_all_ops')
# The depths that each classifier can have.
CLASSIFIER_DEPTHS = {
  'preact_resnet': (10, 18, 34, 50, 101),
  'wide_resnet': tuple(range(10, 71, 6)),
  'resnext': tuple(range(11, 102, 9)),
  'resnet': (10, 18, 34, 50, 101),
  'alexnet': (8,),
}
# The fields of `classifier` that a classifier does not have.
NOT_ITS_OWN = {'resnext': ('shortcut',), 'resnet': ('shortcut',), 'alexnet': ('shortcut', 'batch_norm_decay')}
# Their layers that RLAT can move, in the order of the network, beside the input.
CLASSIFIER_LAYERS = {
  'preact_resnet': ('stem', 'stage1', 'stage2', 'stage3', 'stage4'),
  'wide_resnet': ('stem', 'stage1', 'stage2', 'stage3'),
  'resnext': ('stem', 'stage1', 'stage2', 'stage3'),
  'resnet': ('stem', 'stage1', 'stage2', 'stage3', 'stage4'),
  'alexnet': ('conv1', 'conv2', 'conv3', 'conv4', 'conv5'),
}
_DEPTHS = sorted({depth for depths in CLASSIFIER_DEPTHS.values() for depth in depths})

# The sizes and options that each corruption network has; a field of `corruption_net` that is neither must stay none or
# false. Sizes that are none are these, as published.
NETWORK_SIZES: dict[str, dict[str, int]] = {
  'edsr': {'blocks': 16, 'features': 64, 'scale': 4},
  'cae': {'features': 64},
  'unet': {'features': 64},
  'vqvae': {'features': 64, 'codes': 512},
}
NETWORK_OPTIONS: dict[str, tuple[str, ...]] = {
  'edsr': ('perturb_mean_shift',), 'cae': ('deterministic',), 'unet': (), 'vqvae': (),
}  # fmt: skip
SIZE_KINDS = {
  'blocks': integer(1, 64),
  'features': integer(1, 512),
  'scale': integer_choice(1, 2, 4),
  'codes': integer(2, 2**16),
}
_SIZES = {
  'blocks': f'residual blocks of EDSR; none: 16, the baseline ({_EDSR})',
  'features': 'channels at full or half resolution, other layers in proportion; none: 64, as published',
  'scale': 'super-resolution factor of EDSR before going back to size; none: 4',
  'codes': 'vectors in the codebook of VQ-VAE; none: 512',
}
_CORRUPTION_NET = {
  'corruption_net.name': Field('edsr', choice(*NETWORK_SIZES), 'architecture of the corruption network c_phi'),
} | {f'corruption_net.{name}': Field(None, optional(SIZE_KINDS[name]), meaning) for name, meaning in _SIZES.items()}


def _attack_names() -> Field:
  meanings = '; '.join(f'{name} {adversary.meaning}' for name, adversary in ADVERSARIES.items())
  return Field('ada', choice(*ADVERSARIES, 'none'), f'the adversary: {meanings}; none is nominal')


def _evals() -> Field:
  meanings = ', '.join(entry.meaning for entry in EVALUATIONS.values())
  return Field(('clean',), names(*EVALUATIONS), f'evaluations to run: {meanings}')


TRAIN: dict[str, Field] = {
  'dataset': Field('cifar10', _NAME, "a data set under data_dir, or 'embedded' (needs no download)"),
  'data_dir': Field('~/tensorflow_datasets', _FOLDER, 'folder of the prepared data sets'),
  'batch_size': Field(256, _IMAGES, 'images per step over all processes; the unit of learning_rate'),
  'num_epochs': Field(300.0, number(0, 1e6, above=True), f'passes over the training images ({_PAPER}, App. A)'),
  'num_steps': Field(None, optional(_COUNT), 'updates; where set, it overrides num_epochs'),
  'seed': Field(0, _SEED, 'of initialisation, data order, augmentation and adversary'),
  'init_from': Field(
    None,
    optional(_FOLDER),
    'workdir of the run whose parameters start this one, or a classifier.safetensors; where classes differ, only the '
    'body is taken, and the head is new',
  ),
  'freeze': Field(
    'none',
    choice('none', 'body', 'body_parameters'),
    'what stays as in init_from: body is all but the linear head, and norms keep their running statistics and '
    'normalise by them; with body_parameters the statistics follow the new images',
  ),
  'holdout': Field(0, _SEED, 'training images set aside as a validation set'),
  'precision': Field(
    'float32',
    choice('float32', 'bfloat16'),
    'compute type of the networks; phi + beta, norms, SSIM and loss stay float32. GPUs round products of float32 to '
    'TF32, TPUs to bfloat16, unless JAX_DEFAULT_MATMUL_PRECISION=highest is set in the environment',
  ),
  'log_every': Field(50, _COUNT, 'steps between lines of metrics.jsonl'),
  'checkpoint_every': Field(1000, _EVERY, 'steps between checkpoints; 0 saves at the end only'),
  'eval_every': Field(0, _EVERY, 'steps between evaluations; 0 evaluates at the end only'),
  'keep_checkpoints': Field(3, integer(2, 1000), 'newest checkpoints kept'),
  'evals': _evals(),
  'eval_images': Field(None, optional(_COUNT), 'how many images they use, the first of the set; None: all'),
  **{name: field for entry in EVALUATIONS.values() for name, field in entry.fields.items()},
  'tensorboard': Field(False, boolean(), 'write TensorBoard files too; needs the extra [logging]'),
  'classifier.name': Field('preact_resnet', choice(*CLASSIFIER_DEPTHS), 'architecture of the classifier'),
  'classifier.depth': Field(
    50, integer_choice(*_DEPTHS), f'layers; wide_resnet: 6 n + 4, resnext: 9 n + 2, alexnet: 8 ({_PAPER}, section 4)'
  ),
  'classifier.width': Field(
    64,
    integer(1, 4096),
    'channels of the first stage, or of the first convolution of alexnet; of each of the 4 groups of resnext; the '
    'widening factor of wide_resnet',
  ),
  'classifier.batch_norm_decay': Field(
    0.99, number(0, 1, above=True, below=True), 'decay of the running mean and variance, per step'
  ),
  'classifier.shortcut': Field(
    'preact', choice('preact', 'input'), 'what a projection shortcut sees: after norm and ReLU, or before'
  ),
  'classifier.padding': Field('torch', choice('torch', 'same'), 'of strided convolutions: symmetric, or as XLA pads'),
  'classifier.stem_stride': Field(
    None,
    optional(integer(1, 2)),
    'stride of the first convolution; None: 1, and 2 for Tiny ImageNet and alexnet; 2 suits images of 64 pixels',
  ),
  'classifier.mean': Field(
    None,
    optional(fields.numbers(3, 0, 1)),
    'of the channels of images in [0, 1], subtracted from them; None: of CIFAR-10, or of CIFAR-100 and Tiny ImageNet',
  ),
  'classifier.std': Field(
    None, optional(fields.numbers(3, 0, 10, above=True)), 'by which they are divided then; None: as for mean'
  ),
  **_CORRUPTION_NET,
  'corruption_net.weights': Field(None, optional(_WEIGHTS), 'file of phi; None: what ships for this architecture'),
  'corruption_net.perturb_mean_shift': Field(False, boolean(), 'also move the fixed colour-mean layers of EDSR'),
  'corruption_net.deterministic': Field(
    False, boolean(), 'bits of the CAE are rounded; otherwise they are drawn, once for all steps of an attack'
  ),
  'attack.name': _attack_names(),
  'attack.nu': Field(0.015, _WEIGHT, f'relative radius: nu_i = nu * ||phi_i||_2 ({_PAPER}, section 2)'),
  'attack.num_steps': Field(10, integer(0, 10_000), f'ascent steps per batch ({_PAPER}, App. A)'),
  'attack.step': Field(
    'sign', choice('sign', 'sign_l2', 'l2', 'sgd', 'adam'), f'ascent rule; sign is iterated FGSM ({_PAPER}, App. A)'
  ),
  'attack.step_fraction': Field(
    0.25,
    number(0, 100, above=True),
    f'step size over the median block radius ({_PAPER}, App. A), over each own one for sign_l2, l2',
  ),
  'attack.init': Field(
    'ball',
    choice('ball', 'uniform', 'zero', 'gaussian'),
    'where beta starts: uniform in the balls, at a uniform distance from their centres, or there; gaussian: of lp '
    f'alone, 0.001 N(0, 1) as TRADES ({_TRADES}); an evaluation under AdA then has ball',
  ),
  'attack.keep_best': Field(False, boolean(), 'return the iterate of highest loss, not the last one'),
  'attack.batch_norm': Field(
    'batch',
    choice('batch', 'device', 'running'),
    'statistics that the classifier uses under attack: those of the attacked images of all devices, of each device '
    'alone, which then waits for none, or the running ones',
  ),
  'attack.min_ssim': Field(
    0.3, number(-1, 1), f'SSIM to the clean image below which the line search corrects ({_PAPER}, App. G)'
  ),
  'attack.root': Field(
    'strict',
    choice('literal', 'first_crossing', 'strict'),
    'line search: as the paper has it, its first crossing, or guaranteed to reach min_ssim',
  ),
  **{name: field for adversary in ADVERSARIES.values() for name, field in adversary.fields.items()},
  'attack.fraction': Field(
    1.0,
    number(0, 1, above=True),
    'share of each batch that is attacked, the rest stays clean; below 1 it departs from Eq. 3',
  ),
  'attack.beta_mode': Field(
    'example',
    choice('example', 'group', 'batch'),
    f'images with one beta: each its own (Eq. 3), attack.group, or all of a batch (IRM, {_PAPER}, App. C)',
  ),
  'attack.group': Field(1, _IMAGES, 'images that share a beta where attack.beta_mode=group'),
  'attack.warmup_epochs': Field(0.0, number(0, 1e6), 'first epochs, which train on clean images'),
  'attack.every': Field(
    1,
    integer(1, 10**6),
    'of so many steps after these, the last has the adversary; the others train on clean images',
  ),
  'attack.microbatch': Field(None, optional(_IMAGES), 'most images attacked at a time on each device, to save memory'),
  'augment.before': Field(
    ('pad_crop', 'flip'),
    names('pad_crop', 'flip', *AUGMIX),
    'augmentations before the adversary, in order; AugMix is for rlat',
  ),
  'augment.after': Field(
    (),
    names('pad_crop', 'flip', *AUGMIX),
    f'augmentations after the adversary, in order; augmix_all_ops has four corruptions more ({_AUGMIX})',
  ),
  'augment.jsd': Field(
    0.0, _WEIGHT, f'weight of the Jensen-Shannon divergence of an image and two AugMix versions; 12 in {_AUGMIX}'
  ),
  'deepaugment.sets': Field((), fields.labels('sets'), 'sets of `prepare deepaugment` to mix into the training images'),
  'deepaugment.copies': Field(None, optional(integer(1, 1000)), 'how many copies of each set are used; None: all'),
  'deepaugment.mix': Field(
    'concat',
    choice('concat', 'half', 'only'),
    'images and copies alike, a clean image with probability 1/2, or copies only; epochs stay as long',
  ),
  'optimizer.learning_rate': Field(
    0.1, _WEIGHT, f'base; the effective one is max(lr * batch_size / 256, lr) ({_PAPER}, App. A)'
  ),
  'optimizer.head_learning_rate': Field(
    None, optional(_WEIGHT), 'that of the linear head, scaled and scheduled alike; None: learning_rate'
  ),
  'optimizer.momentum': Field(0.9, number(0, 1, below=True), 'of SGD'),
  'optimizer.nesterov': Field(True, boolean(), f'Nesterov momentum ({_PAPER}, App. A)'),
  'optimizer.weight_decay': Field(1e-4, _WEIGHT, f'L2 regularisation coefficient ({_PAPER}, App. A)'),
  'optimizer.decay_batch_norm': Field(False, boolean(), 'weight decay on scales and offsets of norms too'),
  'optimizer.warmup_epochs': Field(
    5.0, number(0, 1e6), f'epochs of linear warm-up, below num_epochs ({_PAPER}, App. A)'
  ),
  'optimizer.schedule': Field(
    'cosine', choice('cosine', 'steps'), f'the learning rate after it: a cosine to 0 ({_PAPER}, App. A), or steps'
  ),
  'optimizer.drops': Field(
    (), fields.increasing(0, 1), 'shares of the run after which schedule=steps lowers the learning rate to a tenth'
  ),
  'optimizer.clip': Field(
    None,
    optional(number(0, 1e6, above=True)),
    'largest absolute value of each number of the gradient, clipped before weight decay; None: any',
  ),
}

PRETRAIN: dict[str, Field] = {
  'dataset': Field('photographs', _NAME, "'photographs' (bundled, no download), or a data set under data_dir"),
  'data_dir': TRAIN['data_dir'],
  'batch_size': Field(16, _IMAGES, f'patches per step; EDSR: 16 ({_EDSR})'),
  'num_steps': Field(100_000, _COUNT, 'updates'),
  'seed': Field(0, _SEED, 'of initialisation and patches'),
  'learning_rate': Field(1e-4, number(0, 10), f'of Adam; EDSR: 1e-4 ({_EDSR})'),
  'log_every': TRAIN['log_every'],
  'checkpoint_every': TRAIN['checkpoint_every']._replace(default=500),
  'eval_every': TRAIN['eval_every']._replace(default=500),
  'patch': Field(32, integer(8, 512), 'side of an input patch in pixels'),
  'reconstruction_weight': Field(1.0, number(0, 1e6), "weight of EDSR's identity term ||D(E(x)) - x||_1"),
  'accept_ssim': Field(0.97, number(-1, 1), 'mean SSIM(x, c_phi(x)) on unseen images below which weights fail'),
  'accept_psnr': Field(
    None, optional(number(0, 100)), 'mean PSNR in dB of the same below which they fail; none: no bar'
  ),
  'output': Field(None, optional(_WEIGHTS), 'file to write; None: WORKDIR/weights.safetensors'),
  **_CORRUPTION_NET,
}

TABLES: dict[str, fields.Table] = {'train': TRAIN, 'pretrain': PRETRAIN}  # by the program that reads such a config

# Fields that came after the first runs, oldest first, with what a config.json without one means. A new field goes to
# the end, with the value that leaves things as they were before it.
ADDED: dict[str, Any] = {
  'frost_dir': None, 'corruption_net.codes': None, 'corruption_net.deterministic': False, 'attack.fraction': 1.0,
  'attack.beta_mode': 'example', 'attack.group': 1, 'augment.jsd': 0.0, 'deepaugment.sets': (),
  'deepaugment.copies': None, 'deepaugment.mix': 'concat', 'accept_psnr': None, 'attack.norm': None,
  'attack.epsilon': None, 'attack.trades': 0.0, 'corrupted_images': None,
  'classifier.mean': None, 'classifier.std': None, 'freeze': 'none', 'optimizer.head_learning_rate': None,
  'classifier.stem_stride': None, 'optimizer.schedule': 'cosine', 'optimizer.drops': (), 'optimizer.clip': None,
  'attack.layers': None, 'attack.distance': None, 'attack.distance_from': None, 'attack.moved': 'all',
  'attack.every': 1, 'attack.growth_epochs': 0.0, 'attack.measure_end': True, 'attack.replay': 1,
}  # fmt: skip

# A run may go on with other values of these: they do not change what it computes. The last three are of `pretrain`.
RESUMABLE = ('log_every', 'checkpoint_every', 'eval_every', 'evals', 'data_dir', 'accept_ssim', 'accept_psnr', 'output')


def register(name: str, entry: Adversary | Evaluation) -> None:
  """Adds an adversary to `attack.name` or an evaluation to `evals`, with its fields; before commands are imported."""
  if isinstance(entry, Adversary):
    ADVERSARIES[name] = entry
  else:
    EVALUATIONS[name] = entry
    ADDED.update({field: about.default for field, about in entry.fields.items()})  # older runs have not measured it
  TRAIN.update(entry.fields)
  TRAIN.update({'attack.name': _attack_names(), 'evals': _evals()})
