"""Moves of an ensemble that leave the posterior invariant.

The library's own: not part of what is promised to others.
"""
