"""The two U-Nets of Karras et al. 2022 (arXiv 2206.00364) and the four preconditionings of their table 1."""

import math

import torch
from torch import nn
from torch.nn import functional


class Positional(nn.Module):
    def __init__(self, size, endpoint):
        super().__init__()
        self.size, self.endpoint = size, endpoint

    def forward(self, noise):
        exponents = torch.arange(self.size // 2) / (self.size // 2 - int(self.endpoint))
        angles = noise[:, None] * (1e-4**exponents)[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], 1)


class Fourier(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(size // 2))

    def forward(self, noise):
        angles = 2 * math.pi * noise[:, None] * self.freqs[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], 1)


class Conv(nn.Module):
    """A convolution with an optional change of resolution; ``kernel=0`` changes the resolution only."""

    def __init__(self, inputs, outputs, kernel, change=None, taps=(1, 1), fused=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.randn(outputs)) if kernel else None
        self.change, self.fused = change, fused
        if change:
            f = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", torch.outer(f, f)[None, None] / f.sum() ** 2)

    def forward(self, x):
        half = 0 if self.weight is None else self.weight.shape[-1] // 2
        if self.change is None:
            return functional.conv2d(x, self.weight, self.bias, padding=half)
        f, n = self.resample_filter, x.shape[1]
        edge = (f.shape[-1] - 1) // 2
        if self.fused:  # convolution first, at the higher resolution, with room for the filter
            x = functional.conv2d(x, self.weight, padding=half + edge)
            x = functional.conv2d(x, f.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])
        else:
            if self.change == "up":
                x = functional.conv_transpose2d(x, 4 * f.repeat(n, 1, 1, 1), stride=2, padding=edge, groups=n)
            else:
                x = functional.conv2d(x, f.repeat(n, 1, 1, 1), stride=2, padding=edge, groups=n)
            if self.weight is not None:
                x = functional.conv2d(x, self.weight, padding=half)
        return x if self.bias is None else x + self.bias[None, :, None, None]


def group_norm(channels, eps):
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class Block(nn.Module):
    def __init__(self, inputs, outputs, embedding, *, change=None, heads=0, song, taps=(1, 1)):
        super().__init__()
        eps = 1e-6 if song else 1e-5
        self.adaptive, self.heads, self.rate = not song, heads, math.sqrt(0.5) if song else 1.0
        self.in_channels, self.out_channels = inputs, outputs
        self.norm0 = group_norm(inputs, eps)
        self.conv0 = Conv(inputs, outputs, 3, change, taps)
        self.affine = nn.Linear(embedding, outputs * (1 if song else 2))
        self.norm1 = group_norm(outputs, eps)
        self.conv1 = Conv(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or change:
            self.skip = Conv(inputs, outputs, int(song or inputs != outputs), change, taps)
        if heads:
            self.norm2 = group_norm(outputs, eps)
            self.qkv = Conv(outputs, 3 * outputs, 1)
            self.proj = Conv(outputs, outputs, 1)

    def forward(self, x, e):
        h = self.conv0(functional.silu(self.norm0(x)))
        p = self.affine(e)[:, :, None, None]
        if self.adaptive:
            scale, shift = p.chunk(2, dim=1)
            h = functional.silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = functional.silu(self.norm1(h + p))
        x = self.rate * (self.conv1(h) + (x if self.skip is None else self.skip(x)))
        if self.heads:
            b, c, rows, columns = x.shape
            # Heads are slowest, then the channels of a head, then (query, key, value), then pixels.
            parts = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, rows * columns)
            q, k, v = parts[:, :, :, 0], parts[:, :, :, 1], parts[:, :, :, 2]
            share = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(c // self.heads), dim=-1)
            mixed = torch.einsum("bhqk,bhck->bhcq", share, v).reshape(b, c, rows, columns)
            x = self.rate * (x + self.proj(mixed))
        return x


class SongUNet(nn.Module):
    def __init__(
        self, side, channels, *, width, mults, blocks, attention, features="positional", feature_mult=1,
        encoder="standard", decoder="standard", taps=(1, 1), augment=0,
    ):  # fmt: skip
        super().__init__()
        size = 4 * width
        self.decoder_type = decoder
        self.map_noise = (
            Positional(width * feature_mult, True) if features == "positional" else Fourier(width * feature_mult)
        )
        if augment:
            self.map_augment = nn.Linear(augment, width * feature_mult, bias=False)
        self.map_layer0 = nn.Linear(width * feature_mult, size)
        self.map_layer1 = nn.Linear(size, size)
        settings = {"song": True, "taps": taps}
        enc, dec = nn.ModuleDict(), nn.ModuleDict()
        at, aux = width, channels
        kept = []
        for level, mult in enumerate(mults):
            r = side >> level
            if level == 0:
                enc[f"{r}x{r}_conv"] = Conv(channels, width, 3)
            else:
                enc[f"{r}x{r}_down"] = Block(at, at, size, change="down", **settings)
                if encoder == "skip":
                    enc[f"{r}x{r}_aux_down"] = Conv(aux, aux, 0, "down", taps)
                    enc[f"{r}x{r}_aux_skip"] = Conv(aux, at, 1)
                if encoder == "residual":
                    enc[f"{r}x{r}_aux_residual"] = Conv(aux, at, 3, "down", taps, fused=True)
                    aux = at
            kept.append(at)
            for i in range(blocks):
                enc[f"{r}x{r}_block{i}"] = Block(at, width * mult, size, heads=int(r in attention), **settings)
                at = width * mult
                kept.append(at)
        for level in reversed(range(len(mults))):
            r = side >> level
            if level == len(mults) - 1:
                dec[f"{r}x{r}_in0"] = Block(at, at, size, heads=1, **settings)
                dec[f"{r}x{r}_in1"] = Block(at, at, size, **settings)
            else:
                dec[f"{r}x{r}_up"] = Block(at, at, size, change="up", **settings)
            for i in range(blocks + 1):
                heads = int(r in attention and i == blocks)
                dec[f"{r}x{r}_block{i}"] = Block(at + kept.pop(), width * mults[level], size, heads=heads, **settings)
                at = width * mults[level]
            if decoder == "skip" or level == 0:
                if decoder == "skip" and level < len(mults) - 1:
                    dec[f"{r}x{r}_aux_up"] = Conv(channels, channels, 0, "up", taps)
                dec[f"{r}x{r}_aux_norm"] = group_norm(at, 1e-6)
                dec[f"{r}x{r}_aux_conv"] = Conv(at, channels, 3)
        self.enc, self.dec = enc, dec

    def forward(self, x, noise):
        e = self.map_noise(noise)
        cosines, sines = e.chunk(2, dim=1)
        e = functional.silu(self.map_layer0(torch.cat([sines, cosines], 1)))
        e = functional.silu(self.map_layer1(e))
        kept, aux = [], x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = kept[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = kept[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, e) if isinstance(layer, Block) else layer(x)
                kept.append(x)
        out = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                out = layer(out)
            elif name.endswith("aux_norm"):
                normal = layer(x)
            elif name.endswith("aux_conv"):
                image = layer(functional.silu(normal))
                out = image if out is None else out + image
            else:
                if "_block" in name:
                    x = torch.cat([x, kept.pop()], 1)
                x = layer(x, e)
        return out


class DhariwalUNet(nn.Module):
    def __init__(self, side, channels, *, width, mults, blocks, attention, head=64, augment=0):
        super().__init__()
        size = 4 * width
        self.map_noise = Positional(width, False)
        if augment:
            self.map_augment = nn.Linear(augment, width, bias=False)
        self.map_layer0 = nn.Linear(width, size)
        self.map_layer1 = nn.Linear(size, size)
        enc, dec = nn.ModuleDict(), nn.ModuleDict()
        kept = []
        at = width * mults[0]
        for level, mult in enumerate(mults):
            r = side >> level
            if level == 0:
                enc[f"{r}x{r}_conv"] = Conv(channels, at, 3)
            else:
                enc[f"{r}x{r}_down"] = Block(at, at, size, change="down", song=False)
            kept.append(at)
            for i in range(blocks):
                out = width * mult
                heads = out // head if r in attention else 0
                enc[f"{r}x{r}_block{i}"] = Block(at, out, size, heads=heads, song=False)
                at = out
                kept.append(at)
        for level in reversed(range(len(mults))):
            r, out = side >> level, width * mults[level]
            if level == len(mults) - 1:
                dec[f"{r}x{r}_in0"] = Block(at, at, size, heads=at // head, song=False)
                dec[f"{r}x{r}_in1"] = Block(at, at, size, song=False)
            else:
                dec[f"{r}x{r}_up"] = Block(at, at, size, change="up", song=False)
            for i in range(blocks + 1):
                heads = out // head if r in attention else 0
                dec[f"{r}x{r}_block{i}"] = Block(at + kept.pop(), out, size, heads=heads, song=False)
                at = out
        self.enc, self.dec = enc, dec
        self.out_norm = group_norm(at, 1e-5)
        self.out_conv = Conv(at, channels, 3)

    def forward(self, x, noise):
        e = functional.silu(self.map_layer0(self.map_noise(noise)))
        e = functional.silu(self.map_layer1(e))
        kept = []
        for layer in self.enc.values():
            x = layer(x, e) if isinstance(layer, Block) else layer(x)
            kept.append(x)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, kept.pop()], 1)
            x = layer(x, e)
        return self.out_conv(functional.silu(self.out_norm(x)))


class Precond(nn.Module):
    """Wraps a network as `model`; `forward(x, sigma)` is the denoiser of table 1."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, sigma):
        skip, out, scale, noise = (torch.as_tensor(c, dtype=torch.float32) for c in self.coefficients(float(sigma)))
        f = self.model(scale * x, noise.expand(x.shape[0]))
        return skip * x + out * f[:, : x.shape[1]]


class EDMPrecond(Precond):
    sigma_data = 0.5

    def coefficients(self, s):
        total = s**2 + self.sigma_data**2
        return self.sigma_data**2 / total, s * self.sigma_data / total**0.5, total**-0.5, math.log(s) / 4


class VPPrecond(Precond):
    beta_d, beta_min, steps = 19.9, 0.1, 1000

    def coefficients(self, s):
        # sigma(t)^2 + 1 = exp(beta_d t^2 / 2 + beta_min t), solved for t by bisection.
        low, high = 0.0, 2.0
        for _ in range(200):
            t = (low + high) / 2
            below = 0.5 * self.beta_d * t**2 + self.beta_min * t < math.log1p(s**2)
            low, high = (t, high) if below else (low, t)
        return 1.0, -s, (1 + s**2) ** -0.5, (self.steps - 1) * t


class VEPrecond(Precond):
    def coefficients(self, s):
        return 1.0, s, 1.0, math.log(s / 2)
