"""Mixtures of multivariate Student-t distributions, and fits of them."""
