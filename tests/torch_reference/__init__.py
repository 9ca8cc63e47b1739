"""Reference networks in plain PyTorch, with the parameter names that published checkpoints use.

Written from the papers' descriptions as independent oracles for the Equinox networks: batches, channels first, no code
in common with the package.
"""
