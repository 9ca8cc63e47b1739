"""Moves of an ensemble that leave the posterior invariant."""
