"""Training steps per second beside a plain PyTorch loop of the same U-Net, on the CPU.

    python -m validation.train_speed --batch-size 32 --rounds 5

Both sides do the same: denoising loss of EDM at random noise levels, gradient clipping, Adam, a moving average of the
weights, batches from an array in memory. Ours shares every batch between one JAX device for each core
(``jax_num_cpu_devices`` and the `devices` of `train_prior`), since a convolution of XLA keeps one core busy. The two
take turns, a few steps each, so that whatever else the machine does meets both alike; the best round of each counts.
PyTorch gets pooling and repetition for its changes of resolution, which are faster than the filters of the published
code, and is tried with channels first and last.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from enkg_ppl.networks import SongUNet
from enkg_ppl.priors.preconditioning import EDM
from enkg_ppl.training import LogNormalNoise
from enkg_ppl.training._step import Frozen, Program, Settings, advance, initial

NETWORK = {"width": 32, "multipliers": (1, 2, 2), "num_blocks": 2, "attention_resolutions": (16,)}
SIDE = 32


class Ours:
    """`train_prior`'s compiled step, one step a call."""

    def __init__(self, data: np.ndarray, batch_size: int):
        import equinox as eqx

        network = SongUNet((1, SIDE, SIDE), **NETWORK, key=jr.key(0))
        params, static = eqx.partition(network, eqx.is_inexact_array)
        self.num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.program = Program(Frozen(static), Frozen(EDM()), LogNormalNoise(), 1.0, 0.0, None)
        self.settings = Settings(1e-3, 100.0, 10_000.0, 200.0)
        mesh = Mesh(np.asarray(jax.devices()), ("batch",))
        self.split = NamedSharding(mesh, PartitionSpec(None, "batch"))
        self.weights, self.key = jax.device_put(
            (initial(self.program, params), jr.key(1)), NamedSharding(mesh, PartitionSpec())
        )
        self.data, self.batch_size, self.count = data, batch_size, 0
        self.rng = np.random.default_rng(0)
        started = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - started

    def run(self, num_steps: int) -> None:
        loss = None
        for _ in range(num_steps):
            rows = self.rng.integers(len(self.data), size=self.batch_size)
            batch = jax.device_put(self.data[rows][None], self.split)
            self.weights, loss = advance(self.program, self.settings, None, self.key, self.weights, batch, 1)
        jax.block_until_ready(loss)


class Torch:
    """What one writes in PyTorch."""

    def __init__(self, data: np.ndarray, batch_size: int, channels_last: bool, num_threads: int):
        import torch  # pyright: ignore[reportMissingImports]
        from torch.nn import functional  # pyright: ignore[reportMissingImports]

        from tests.torch_reference import edm

        torch.set_num_threads(num_threads)
        torch.manual_seed(0)

        class Conv(edm.Conv):
            """Pooling and repetition in place of filters with taps (1, 1)."""

            def forward(self, x):
                if self.change == "down":
                    x = functional.avg_pool2d(x, 2)
                elif self.change == "up":
                    x = functional.interpolate(x, scale_factor=2, mode="nearest")
                if self.weight is None:
                    return x
                return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

        plain, edm.Conv = edm.Conv, Conv
        try:
            network = edm.SongUNet(
                SIDE,
                1,
                width=NETWORK["width"],
                mults=NETWORK["multipliers"],
                blocks=NETWORK["num_blocks"],
                attention=NETWORK["attention_resolutions"],
            )
        finally:
            edm.Conv = plain
        for weight in network.parameters():  # the reference's are drawn for tests of outputs, not for training
            if weight.ndim > 1:
                torch.nn.init.xavier_uniform_(weight)
            else:
                torch.nn.init.zeros_(weight)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.average = copy.deepcopy(self.network)
        self.num_parameters = sum(weight.numel() for weight in network.parameters())
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.data, self.batch_size, self.torch = torch.from_numpy(data), batch_size, torch
        started = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - started

    def run(self, num_steps: int) -> None:
        torch = self.torch
        for _ in range(num_steps):
            x0 = self.data[torch.randint(len(self.data), (self.batch_size,))].contiguous(memory_format=self.layout)
            sigma = torch.exp(-1.5 + 1.5 * torch.randn(self.batch_size, 1, 1, 1))
            x = x0 + sigma * torch.randn_like(x0)
            total = sigma**2 + 0.25
            skip, out, scale = 0.25 / total, sigma * 0.5 / total.sqrt(), 1 / total.sqrt()
            output = self.network(scale * x, torch.log(sigma).flatten() / 4)
            loss = torch.mean((output - (x0 - skip * x) / out) ** 2)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 0.003)


def compare(batch_size: int, rounds: int, steps: int) -> dict[str, Any]:
    """Steps per second of the best round of each, and of the median one."""
    data = np.random.default_rng(0).normal(0, 0.5, (1024, 1, SIDE, SIDE)).astype(np.float32)
    cores = len(os.sched_getaffinity(0))
    makers: dict[str, Callable[[], Any]] = {
        "enkg_ppl": lambda: Ours(data, batch_size),
        "torch": lambda: Torch(data, batch_size, False, cores),
        "torch, channels last": lambda: Torch(data, batch_size, True, cores),
    }
    sides = {name: make() for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            wall, process = time.perf_counter(), time.process_time()
            side.run(steps)
            seconds[name].append((time.perf_counter() - wall) / steps)
            cpu[name].append((time.process_time() - process) / steps)
    result = {
        name: {
            "steps_per_second": round(1 / min(seconds[name]), 3),
            "steps_per_second_median": round(1 / float(np.median(seconds[name])), 3),
            "cpu_seconds_per_step": round(min(cpu[name]), 4),
            "first_call_seconds": round(side.compile_seconds, 2),
            "parameters": side.num_parameters,
        }
        for name, side in sides.items()
    }
    fastest = max(r["steps_per_second"] for name, r in result.items() if name != "enkg_ppl")
    return {
        "batch_size": batch_size,
        "cores": cores,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "results": result,
        "ratio": round(result["enkg_ppl"]["steps_per_second"] / fastest, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    print(json.dumps(compare(options.batch_size, options.rounds, options.steps), indent=2))


if __name__ == "__main__":
    main()
