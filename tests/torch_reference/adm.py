"""The U-Net of guided diffusion (Dhariwal & Nichol 2021, arXiv 2105.05233)."""

import math

import torch
from torch import nn
from torch.nn import functional


class ResBlock(nn.Module):
    def __init__(self, inputs, embedding, outputs, scale_shift, change=None):
        super().__init__()
        self.scale_shift, self.change = scale_shift, change
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def resized(self, x):
        if self.change == "up":
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        return functional.avg_pool2d(x, 2) if self.change == "down" else x

    def forward(self, x, e):
        h = self.in_layers[2](self.resized(self.in_layers[:2](x)))
        p = self.emb_layers(e)[:, :, None, None]
        if self.scale_shift:
            scale, shift = p.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + p)
        return self.skip_connection(self.resized(x)) + h


class AttentionBlock(nn.Module):
    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, e):
        b, c = x.shape[:2]
        flat = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:  # (query, key, value), then heads
            q, k, v = (p.reshape(b, self.heads, c // self.heads, -1) for p in qkv.chunk(3, dim=1))
        else:  # heads, then (query, key, value)
            q, k, v = qkv.reshape(b, self.heads, 3 * c // self.heads, -1).chunk(3, dim=2)
        share = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(c // self.heads), dim=-1)
        mixed = torch.einsum("bhqk,bhck->bhcq", share, v).reshape(b, c, -1)
        return (flat + self.proj_out(mixed)).reshape(x.shape)


class Downsample(nn.Module):
    def __init__(self, channels, learned):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x, e):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels, learned):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x, e):
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


class Stem(nn.Conv2d):
    def forward(self, x, e):
        return super().forward(x)


class UNetModel(nn.Module):
    def __init__(
        self, channels, *, width, outputs, blocks, attention_factors, mults, resample="block", scale_shift=True,
        head=None, heads=1, new_order=False,
    ):  # fmt: skip
        super().__init__()
        self.width, size = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, size), nn.SiLU(), nn.Linear(size, size))

        def attention(n):
            return AttentionBlock(n, heads if head is None else n // head, new_order)

        def resized(n, change):
            if resample == "block":
                return ResBlock(n, size, n, scale_shift, change)
            return (Downsample if change == "down" else Upsample)(n, resample == "conv")

        at, factor = mults[0] * width, 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([Stem(channels, at, 3, padding=1)])])
        kept = [at]
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                layers = [ResBlock(at, size, mult * width, scale_shift)]
                at = mult * width
                if factor in attention_factors:
                    layers.append(attention(at))
                self.input_blocks.append(nn.ModuleList(layers))
                kept.append(at)
            if level < len(mults) - 1:
                self.input_blocks.append(nn.ModuleList([resized(at, "down")]))
                kept.append(at)
                factor *= 2
        self.middle_block = nn.ModuleList(
            [ResBlock(at, size, at, scale_shift), attention(at), ResBlock(at, size, at, scale_shift)]
        )
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(mults))):
            for i in range(blocks + 1):
                layers = [ResBlock(at + kept.pop(), size, mults[level] * width, scale_shift)]
                at = mults[level] * width
                if factor in attention_factors:
                    layers.append(attention(at))
                if level and i == blocks:
                    layers.append(resized(at, "up"))
                    factor //= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, at), nn.SiLU(), nn.Conv2d(at, outputs, 3, padding=1))

    def forward(self, x, noise):
        half = self.width // 2
        angles = noise[:, None] * torch.exp(-math.log(1e4) * torch.arange(half) / half)[None]
        e = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], 1))
        kept = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, e)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, e)
        for layers in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for layer in layers:
                x = layer(x, e)
        return self.out(x)
