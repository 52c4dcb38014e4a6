"""The AdA step of benchmarks/train_step.py in PyTorch, with grouped convolutions and without a line search."""

import numpy as np
import torch
from torch.nn import functional

from benchmarks import torch_classifier


def make(setting):
  """Returns one training step as a function without arguments."""
  torch.manual_seed(0)
  n = setting.batch_size
  features, blocks = setting.features, setting.blocks
  widths = [(3, features)] + [(features, features)] * (2 * blocks + 1) + [(features, 3)]
  phi = [t for a, b in widths for t in (_uniform(b, a, 3, 3, fan=9 * a), _uniform(b, fan=9 * a))]
  model = torch_classifier.PreActResNet((2, 2, 2, 2), 16)
  optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
  images, labels = torch.rand(n, 3, 32, 32), torch.randint(10, (n,))

  def edsr(betas, x):
    """Runs each convolution of all images as one grouped convolution."""
    layers = iter(zip(phi[::2], phi[1::2], betas[::2], betas[1::2], strict=True))

    def layer(x):
      w, b, dw, db = next(layers)
      weight = (w + dw).reshape(-1, *w.shape[1:])
      y = functional.conv2d(x.reshape(1, -1, 32, 32), weight, (b + db).reshape(-1), padding=1, groups=n)
      return y.reshape(n, -1, 32, 32)

    x = skip = layer(255 * x - 112)
    for _ in range(blocks):
      x = x + layer(layer(x).relu())
    return ((layer(layer(x) + skip) + 112) / 255).clamp(0, 1)

  radii = [0.015 * p.norm() for p in phi]
  size = 0.25 * torch.stack(radii).median()

  def step():
    betas = [torch.randn(n, *p.shape) * r / p.numel() ** 0.5 for p, r in zip(phi, radii, strict=True)]
    for _ in range(setting.num_steps):
      betas = [beta.detach().requires_grad_() for beta in betas]
      loss = functional.cross_entropy(model(edsr(betas, images)), labels, reduction='sum')
      gradients = torch.autograd.grad(loss, betas)
      with torch.no_grad():
        moved = [beta + size * g.sign() for beta, g in zip(betas, gradients, strict=True)]
        norms = [m.flatten(1).norm(dim=1).reshape(-1, *[1] * (m.ndim - 1)) for m in moved]
        betas = [m * (r / norm).clamp(max=1) for m, r, norm in zip(moved, radii, norms, strict=True)]
    with torch.no_grad():
      corrupted = edsr(betas, images)
    optimizer.zero_grad()
    functional.cross_entropy(model(corrupted), labels).backward()
    optimizer.step()
    return np.zeros(1)

  return step


def _uniform(*shape: int, fan: int) -> torch.Tensor:
  return (2 * torch.rand(*shape) - 1) / fan**0.5
