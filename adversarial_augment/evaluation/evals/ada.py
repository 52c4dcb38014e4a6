"""Accuracy on images that AdA corrupts against the very classifier, each by itself."""

from adversarial_augment.evaluation.evals import Evaluation, Result


class UnderAda(Evaluation):
  name, order = 'ada', 1
  title, meaning = 'accuracy under AdA', 'under AdA'
  headline = 2, 'Accuracy under AdA', 'accuracy'
  under_attack = True

  def conditions(self, bench):
    config = bench.config.to_dict()
    return {field: config[field] for field in ('attack', 'corruption_net')}

  def lines(self, values: Result, result: Result) -> list[str]:
    attack = result['config']['attack']
    about = f'nu {attack["nu"]:g}, {attack["num_steps"]} steps, running statistics, fixed seed'
    ssim = f'{values["ssim"]:.4f}  (before the line search, {values["num_images"]:,} images)'
    return [*super().lines(values, result), f'  {"":<20} {about}', f'  {"mean SSIM":<20} {ssim}']


ENTRY = UnderAda()
