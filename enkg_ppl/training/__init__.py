"""Training of diffusion priors: the denoising loss, the data, the loop, and checkpoints.

`train_prior` trains any network of the form that `enkg_ppl.networks` describes, under any
`enkg_ppl.priors.preconditioning.Preconditioning`; `LogNormalNoise` is the distribution of the training's noise
levels. A run that is stopped raises `TrainingInterrupted`, and continues from its checkpoint.
"""

from enkg_ppl.training._loss import LogNormalNoise
from enkg_ppl.training._train import TrainingInterrupted, train_prior

__all__ = ["LogNormalNoise", "TrainingInterrupted", "train_prior"]
