"""Training of diffusion priors: the denoising loss, the data, the loop, and checkpoints."""

from enkg_ppl.training._loss import LogNormalNoise
from enkg_ppl.training._train import TrainingInterrupted, train_prior

__all__ = ["LogNormalNoise", "TrainingInterrupted", "train_prior"]
