"""Serves models by UM-Bridge at a port of this machine: densities of its benchmark library, and what goes wrong.

python umbridge_server.py PORT
"""

import functools
import math
import os
import sys
import time

import numpy as np


def gaussian_mixture(x):
    """Three normal components of equal weight."""
    parts = [((-1.5, -1.5), 0.8), ((1.5, 1.5), 0.8), ((-2.0, 2.0), 0.5)]
    logs = [-0.5 * ((x[0] - m[0]) ** 2 + (x[1] - m[1]) ** 2) / v - np.log(2 * np.pi * v) - np.log(3) for m, v in parts]
    return functools.reduce(np.logaddexp, logs)


def donut(x):
    return -((np.hypot(x[0], x[1]) - 2.6) ** 2) / 0.033


def banana(x):
    """N((0, 4), diag(1, .5)) of a bent plane."""
    a, b = 2.0, 0.2
    bent = x[0] / a, a * x[1] + a * b * (x[0] ** 2 + a**2)
    return -0.5 * (bent[0] ** 2 + (bent[1] - 4.0) ** 2 / 0.5)


DENSITIES = {"gaussian-mixture": gaussian_mixture, "donut": donut, "banana": banana}


def serve(port):
    import umbridge

    class Density(umbridge.Model):
        def __init__(self, name):
            super().__init__(name)
            self.log_density = DENSITIES[name]

        def get_input_sizes(self, config):
            return [2]

        def get_output_sizes(self, config):
            return [1]

        def __call__(self, parameters, config):
            return [[float(self.log_density(parameters[0]))]]

        def supports_evaluate(self):
            return True

    class Linear(umbridge.Model):
        """Two inputs and two outputs, the second as long as `config` says; and its ways to go wrong."""

        def get_input_sizes(self, config):
            return [1, 2]

        def get_output_sizes(self, config):
            return [2, config.get("length", 1)]

        def __call__(self, parameters, config):
            (a,), (b, c) = parameters
            if a == 1000:
                raise RuntimeError("no root")
            if a == 2000:
                time.sleep(3.0)
            if a == 3000:
                os._exit(1)
            if a == 4000:
                return [[a], [b]]
            factor = config.get("factor", 1.0)
            number = {5000: math.nan, 6000: -math.inf}.get(a, a)
            return [[factor * number, b + c], [c] * config.get("length", 1)]

        def supports_evaluate(self):
            return True

    class Silent(umbridge.Model):
        def get_input_sizes(self, config):
            return [1]

        def get_output_sizes(self, config):
            return [1]

    # It would listen on all the networks of the machine.
    umbridge.um.web.run_app = functools.partial(umbridge.um.web.run_app, host="127.0.0.1", print=None)
    models = [*map(Density, DENSITIES), Linear("linear"), Silent("silent")]
    umbridge.serve_models(models, port, max_workers=4)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
