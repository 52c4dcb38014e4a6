"""Table 3 of arXiv 2104.01086: perceptual and relaxed adversarial training beside the rows of Table 1 on CIFAR-10-C.

  python -m experiments.table3_perceptual --scale=laptop                                # every row, one seed
  python -m experiments.table3_perceptual --scale=laptop --rows=rlat,pat_self --seeds=0,1,2
  python -m experiments.table3_perceptual --scale=gpu                                   # ResNet-18, on one GPU
  python -m experiments.table3_perceptual --scale=full                                  # the published settings

As table1_corruptions.py, whose runs and starts it shares. In the published settings, PAT sees 100 epochs of images,
RLAT 150 and the rows of Table 1 300; at other scales, all see as many. At the scales full and gpu, the AlexNet of PAT
is trained first; the others have the small one that ships. RLAT is in the text of the paper alone (11.47 %
with AugMix), so its rows have no numbers of the paper beside them.
"""

from collections.abc import Sequence

from adversarial_augment import cli
from experiments import table1_corruptions

# As table1_corruptions.ROWS.
ROWS: dict[str, str | None] = {
  'nominal_pat': 'Nominal, Laidlaw et al.',
  'linf_adversarial_pat': 'l_inf, Laidlaw et al.',
  'l2_adversarial_pat': 'l_2, Laidlaw et al.',
  'pat_self': 'PAT-self',
  'pat_alexnet': 'PAT-AlexNet',
  'rlat': None,
  'rlat_augmix': None,
  'rlat_deepaugment': None,
  **table1_corruptions.ROWS,
}


def main(argv: Sequence[str]) -> None:
  about = table1_corruptions.Table('table3', 'experiments.table3_perceptual', __doc__, ROWS, ('full',))
  table1_corruptions.make(about, argv)


if __name__ == '__main__':
  cli.run(main)
