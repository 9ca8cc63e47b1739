"""A prior without closed forms, so that everything about it has to come from its denoiser."""

from enkg_ppl import Prior


class Bare(Prior):
    """A prior known by its denoiser alone."""

    inner: Prior

    dim = property(lambda self: self.inner.dim)
    location = property(lambda self: self.inner.location)
    scale = property(lambda self: self.inner.scale)

    def denoise(self, x, sigma):
        return self.inner.denoise(x, sigma)
