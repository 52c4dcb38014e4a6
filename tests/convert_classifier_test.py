"""`convert classifier`: the file it writes, the logits of PyTorch, the way back, and one line for bad input."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from adversarial_augment import cli, convert, export, inference
from adversarial_augment.classifiers import torch_layouts, weight_files
from tests import torch_classifiers
from tests.classifier_cases import images, random_classifier
from tests.export_torch_test import robustbench
from tests.torch_state import edsr_state, write_legacy_state, write_state

CIFAR10 = ('--mean=0.4914,0.4822,0.4465', '--std=0.2471,0.2435,0.2616')


def run(*arguments) -> int:
  with pytest.raises(SystemExit) as exit_:
    cli.run(convert.main, ['classifier', *map(str, arguments)])
  return exit_.value.code


@pytest.fixture(scope='module')
def classifier():
  return random_classifier(10, num_classes=3, width=4, shortcut='input')


@pytest.fixture(scope='module')
def state(classifier):
  return torch_layouts.to_torch(*jax.device_get((classifier.params, classifier.model_state)))


def as_safetensors(path: Path, state) -> Path:
  save_file(state, path)
  return path


FORMS = {
  'plain.pt': write_state,
  'of an older version.pth': write_legacy_state,
  'wrapped.pth.tar': lambda path, state: write_state(path, state, wrap=('state_dict',)),
  'net.ckpt': lambda path, state: write_state(path, {f'module.{key}': v for key, v in state.items()}, wrap=('net',)),
  'model.safetensors': as_safetensors,
}


@pytest.mark.parametrize('name', FORMS)
def test_the_file_has_the_classifier_of_the_state_dict(tmp_path, capsys, classifier, state, name):
  source, target = FORMS[name](tmp_path / name, state), tmp_path / 'out file.safetensors'
  assert run(f'--from={source}', f'--output={target}', *CIFAR10, '--shortcut=input') == 0
  said = capsys.readouterr().out
  assert f'Wrote {target}: preact_resnet-10, width 4, 3 classes. Start from it with ' in said
  assert f"'--config.init_from={target}' --config.classifier.name=preact_resnet" in said
  assert said.endswith('--config.classifier.width=4 --config.classifier.shortcut=input\n')  # the usual normalisation
  found = inference.read_file(target)
  jax.tree.map(np.testing.assert_array_equal, found.restored.state.params, classifier.params)
  jax.tree.map(np.testing.assert_array_equal, found.restored.state.model_state, classifier.model_state)
  card = weight_files.read(target)[1]
  assert (card['source']['file'], len(card['source']['sha256'])) == (name, 64)
  assert card['title'] == f'preact_resnet-10, width 4, converted from {name}'
  assert str(tmp_path) not in json.dumps(card)


def test_the_way_to_pytorch_and_back_changes_nothing(tmp_path):
  classifier = random_classifier(10, num_classes=3)
  export.export(classifier, tmp_path, tmp_path / 'out', ['torch'])
  target = tmp_path / 'again.safetensors'
  assert run(f'--from={tmp_path}/out/torch_state_dict.safetensors', f'--output={target}') == 0
  found = inference.read_file(target).restored.state
  jax.tree.map(np.testing.assert_array_equal, found.params, classifier.params)
  jax.tree.map(np.testing.assert_array_equal, found.model_state, classifier.model_state)


def test_what_the_file_does_not_say_is_asked_or_said(tmp_path, capsys, state):
  source, output = write_state(tmp_path / 'a.pt', state), f'--output={tmp_path}/out.safetensors'
  channels = {'mu': np.full((1, 3, 1, 1), 0.5, np.float32), 'sigma': np.full((1, 3, 1, 1), 0.25, np.float32)}
  telling = write_state(tmp_path / 'b.pt', channels | state)
  for arguments, said in (
    ([source], "--mean=0.5 --std=0.5 for AugMix's models"),
    ([source, '--mean=0.5'], '--mean and --std belong together'),
    ([source, '--mean=0.5', '--std=0'], "--std='0' must be 3 numbers"),
    ([source, '--mean=0.5,0.5', '--std=1'], "--mean='0.5,0.5' must be 3 numbers"),
    ([source, '--mean=x', '--std=1'], "--mean='x' must be"),
    ([source, '--mean=127', '--std=1'], "--mean='127' must be 3 numbers separated by commas, each from 0 to 1"),
    ([telling, '--mean=0.5', '--std=0.5'], 'leave --mean and --std out'),
  ):
    assert run('--from', *arguments, output) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count('\n') == 1
  assert run(f'--from={telling}', output) == 0
  out = capsys.readouterr().out
  assert '--config.classifier.mean=0.5,0.5,0.5 --config.classifier.std=0.25,0.25,0.25' in out
  assert 'for PreActBlock, add --shortcut=input' in out


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, state):
  source, target = write_state(tmp_path / 'a.pt', state), tmp_path / 'out.safetensors'
  wide = write_state(tmp_path / 'w.pt', torch_layouts.to_torch({'wide_resnet/stem': {'w': np.ones((3, 3, 3, 16))}}, {}))
  (tmp_path / 'cut.pt').write_bytes(source.read_bytes()[:-20])
  infinite = write_state(tmp_path / 'i.pt', state | {'linear.bias': np.full(3, np.inf, np.float32)})
  for arguments, said in (
    ([f'--output={target}'], '--from'),
    ([f'--from={source}'], '--output'),
    ([f'--from={source}', f'--output={tmp_path}/out.pt'], 'must end in .safetensors'),
    ([f'--from={source}', f'--output={tmp_path}/no/out.safetensors'], 'in a folder that exists'),
    ([f'--from={tmp_path}/none.pt', f'--output={target}'], 'No such file'),
    ([f'--from={tmp_path}', f'--output={target}'], 'Is a directory'),
    ([f'--from={tmp_path}/cut.pt', f'--output={target}'], 'is cut off'),
    (
      [f'--from={write_state(tmp_path / "e.pt", edsr_state())}', f'--output={target}'],
      "are not those of RobustBench's PreActResNet",
    ),
    ([f'--from={infinite}', f'--output={target}', *CIFAR10], 'not finite in float32'),
    ([f'--from={wide}', f'--output={target}', *CIFAR10], 'Cannot convert'),
  ):
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count('\n') == 1
    assert not target.exists()
  same = as_safetensors(tmp_path / 's.safetensors', state)
  held = same.read_bytes()
  assert run(f'--from={same}', f'--output={same}', *CIFAR10) == 2
  assert 'is the checkpoint itself' in capsys.readouterr().err
  assert same.read_bytes() == held


# ---- Against PyTorch itself.


def preact_resnet(torch, block: str, counts: list[int]):
  classes = robustbench(torch)
  return classes.PreActResNet(getattr(classes, block), counts, num_classes=7, bn_before_fc=True)


MODULES = {
  'WRN-40-2 of AugMix': (
    lambda torch: torch_classifiers.wide_resnet(torch, 7, depth=40, width=2, shortcut='conv_shortcut'),
    ('--mean=0.5', '--std=0.5'),
  ),
  'WRN-40-2 of RobustBench': (
    lambda torch: torch_classifiers.normalised(torch, torch_classifiers.wide_resnet(torch, 7, depth=40, width=2)), (),
  ),
  'WRN-16-4 of TRADES': (
    lambda torch: torch_classifiers.wide_resnet(torch, 7, depth=16, width=4, idle=True), ('--mean=0', '--std=1'),
  ),
  'ResNeXt-29 4x32d': (
    lambda torch: torch_classifiers.normalised(torch, torch_classifiers.resnext(torch, 7, depth=29)), (),
  ),
  'PreActResNet-18': (
    lambda torch: torch_classifiers.normalised(torch, preact_resnet(torch, 'PreActBlockV2', [2, 2, 2, 2]), 0.45), (),
  ),
  'PreActResNet-18 with the raw shortcut': (
    lambda torch: preact_resnet(torch, 'PreActBlock', [2, 2, 2, 2]), ('--shortcut=input', *CIFAR10),
  ),
  'ResNet-50': (
    lambda torch: torch_classifiers.resnet(torch, 7, [3, 4, 6, 3], bottleneck=True),
    ('--mean=0.4914,0.4822,0.4465', '--std=0.2023,0.1994,0.2010'),
  ),
  'ResNet-18': (lambda torch: torch_classifiers.resnet(torch, 7, [2, 2, 2, 2], bottleneck=False), CIFAR10),
  'AlexNet': (
    lambda torch: torch_classifiers.alexnet(torch, 7), ('--mean=0.485,0.456,0.406', '--std=0.229,0.224,0.225'),
  ),
  'PreActResNet-50': (lambda torch: preact_resnet(torch, 'PreActBottleneck', [3, 4, 6, 3]), CIFAR10),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', MODULES)
def test_converted_classifiers_have_the_logits_of_pytorch(tmp_path, name):
  torch = pytest.importorskip('torch')
  make, flags = MODULES[name]
  module = torch_classifiers.randomise(torch, make(torch))
  optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
  content = {'epoch': 3, 'model': 'wrn', 'state_dict': torch.nn.DataParallel(module).state_dict(), 'best_acc': 0.9}
  torch.save(content | {'optimizer': optimizer.state_dict()}, tmp_path / 'a.pt')
  assert run(f'--from={tmp_path}/a.pt', f'--output={tmp_path}/a.safetensors', *flags) == 0
  classify = inference.load_classifier(tmp_path / 'a.safetensors', batch_size=4)
  x = images(4)
  values = {
    flag.partition('=')[0]: np.float32(flag.partition('=')[2].split(',')) for flag in flags if 'short' not in flag
  }
  normalised = (x - values.get('--mean', 0)) / values.get('--std', 1)
  with torch.no_grad():
    expected = module(torch.from_numpy(normalised.astype(np.float32)).permute(0, 3, 1, 2)).numpy()
  assert expected.std(axis=0).max() > 1e-2  # images are told apart
  np.testing.assert_allclose(classify(x), expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
