"""Simulators for other processes, which import them by name: nothing slow may be imported here."""

import ctypes
import os
import time


def dies(x):
    """For x above 2, and with it all that its pool was doing."""
    if x[0] > 2:
        os._exit(1)
    return 2 * x


def hangs(x):
    """For x above 2, in code that holds Python's lock, so that no time-out within the process is heard."""
    if x[0] > 2:
        ctypes.PyDLL(None).sleep(60)
    return 2 * x


def sleeps(x):
    """For x above 2."""
    if x[0] > 2:
        time.sleep(60)
    return 2 * x


def always_dies(x):
    os._exit(1)
