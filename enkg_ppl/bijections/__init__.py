"""Maps of latent vectors that straighten a posterior."""
