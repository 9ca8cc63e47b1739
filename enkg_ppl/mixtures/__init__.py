"""Mixtures of multivariate Student-t distributions, and fits of them.

The library's own: not part of what is promised to others.
"""
