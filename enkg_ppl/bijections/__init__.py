"""Maps of latent vectors that straighten a posterior.

The library's own: not part of what is promised to others.
"""
