"""A model behind an UM-Bridge server as a simulator.

The protocol (https://um-bridge-benchmarks.readthedocs.io, version 1.0) is a few JSON messages by HTTP. They are sent
here rather than by the package `umbridge`, whose client waits without end, follows redirects to other hosts, reads
answers of any size, and cannot read the infinities of its own server.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import reprlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from enkg_ppl.evaluation._external import External, SimulatorGone, quoted
from enkg_ppl.evaluation._workers import SimulatorTimeout

PROTOCOL = 1.0

# Seconds for an answer about the model, which asks for no simulation.
PATIENCE = 60.0

# Bytes of an answer: so many, and for every number that is due (one of 64 bits takes 25 with its comma).
MOST_BYTES = 2**20
BYTES_A_NUMBER = 64

CONNECT_SECONDS = 30.0  # where a simulation may take any time


def umbridge_simulator(url: str, name: str, *, config: dict | None = None) -> External:
    """A model served by UM-Bridge, as a simulator to be given to `blackbox`.

        simulate = blackbox(umbridge_simulator("http://localhost:4242", "tsunami"), shape=(4,), timeout=600)

    It takes one argument for every parameter vector of the model, a number where the vector has one element, and
    returns all the numbers of the output vectors, one vector after the other, in the shape given to `blackbox`.

    A server answers one request at a time unless it says otherwise (`max_workers` of `umbridge.serve_models`), so an
    executor of more threads than that waits, and waiting counts for the time-out. A request that has timed out is
    closed, but the server continues with it. Infinite outputs are infinite here, also in the form that servers in
    Python write, which is not valid JSON. A NaN (or `null`) is a failure, as are error messages of the server and
    answers that differ from the announced sizes. Where the server cannot be reached any more the run ends, whatever
    `on_failure` says. Redirects are not followed, proxies and passwords are not used, and answers that are far longer
    than the outputs are not read.

    Args:
        url: address of the server.
        name: of the model.
        config: settings of the model, as JSON (NumPy's numbers and arrays are made plain ones).

    Raises:
        ConnectionError: where nothing at the address speaks UM-Bridge.
        ValueError: where the server has no such model, the model cannot be evaluated, or the url or `config` is
            invalid.
    """
    address = _address(url)
    config = _plain(config)
    asking = _Asking(address, PATIENCE)

    def ask(method: str, what: str, message: Any = None) -> Any:
        try:
            return asking(method, what, message)
        except SimulatorTimeout:
            raise SimulatorGone(f"the server at {url} gave no answer within {PATIENCE:g} s: is it busy?") from None
        except (SimulatorGone, _NoAnswer) as error:
            raise SimulatorGone(f"the server at {url} {error}") from error.__cause__

    info = ask("GET", "Info")
    if not isinstance(info, dict) or info.get("protocolVersion") != PROTOCOL:
        raise SimulatorGone(
            f"the server at {url} does not speak version {PROTOCOL} of UM-Bridge's protocol: {_shown(info)}"
        )
    models = info.get("models")
    if not isinstance(models, list) or name not in models:
        raise ValueError(f"the server at {url} has no model {name!r} but {_shown(models)}: name one of them")
    support = _field(ask("POST", "ModelInfo", {"name": name}), "support", url)
    if not isinstance(support, dict) or support.get("Evaluate") is not True:
        raise ValueError(f"the model {name} at {url} cannot be evaluated (it supports {_shown(support)})")
    about = {"name": name, "config": config}
    inputs = _sizes(ask("POST", "InputSizes", about), "inputSizes", url)
    outputs = _sizes(ask("POST", "OutputSizes", about), "outputSizes", url)
    return UMBridgeSimulator(address, name, config, inputs, outputs)


class UMBridgeSimulator(External):
    """Made by `umbridge_simulator`. `input_sizes`, `output_sizes`: lengths of the vectors, as the server says."""

    def __init__(self, address: SplitResult, name: str, config: dict, input_sizes, output_sizes):
        names = ["parameters"] if len(input_sizes) == 1 else [f"input_{i}" for i in range(len(input_sizes))]
        super().__init__(name, names)
        self.input_sizes, self.output_sizes = tuple(input_sizes), tuple(output_sizes)
        self._address, self._config = address, config
        self._most_bytes = MOST_BYTES + BYTES_A_NUMBER * sum(output_sizes)

    def due(self, shape, timeout) -> External:
        if not callable(shape) and math.prod(shape) != sum(self.output_sizes):
            raise ValueError(
                f"the model {self.__name__} has {sum(self.output_sizes):,} outputs (of vectors of "
                f"{self.output_sizes}), not those of shape {shape}: correct the shape given to blackbox"
            )
        return super().due(shape, timeout)

    def __call__(self, *args) -> np.ndarray:
        values = self._arguments(args)
        for name, value, size in zip(self.parameters, values, self.input_sizes, strict=True):
            if value.size != size:
                raise TypeError(f"{self.__name__} takes {size} numbers as {name}; got shape {value.shape}")
            if not np.isfinite(value).all():
                raise self._error("cannot be asked, since JSON has no infinity and no NaN", values)
        vectors = [value.astype(float).ravel().tolist() for value in values]
        message = {"name": self.__name__, "input": vectors, "config": self._config}
        try:
            answer = _Asking(self._address, self._timeout, self._most_bytes)("POST", "Evaluate", message)
        except _NoAnswer as error:
            raise self._error(str(error), values) from error.__cause__
        return self._result(self._numbers(answer, values), values)

    def _numbers(self, answer: Any, args: Sequence[np.ndarray]) -> np.ndarray:
        """All outputs, one vector after the other; `null` is NaN, as servers in C++ write it."""
        vectors = answer.get("output") if isinstance(answer, dict) else None
        if not isinstance(vectors, list) or not all(isinstance(vector, list) for vector in vectors):
            raise self._error(f"answered without a list of output vectors: {_shown(answer)}", args)
        sizes = tuple(len(vector) for vector in vectors)
        if sizes != self.output_sizes:
            raise self._error(f"answered with vectors of {sizes} numbers, not {self.output_sizes} as it had said", args)
        values = [value for vector in vectors for value in vector]
        for value in values:
            if value is not None and type(value) not in (int, float):
                raise self._error(f"answered {_shown(value)} where a number is due", args)
        try:
            return np.array([math.nan if value is None else float(value) for value in values])
        except OverflowError:
            raise self._error("answered with a number that 64 bits cannot hold", args) from None


class _NoAnswer(ConnectionError):
    """Something else than an answer to this question came back."""


class _Asking:
    """Questions to a server, each in a connection of its own, within a time and up to so many bytes."""

    def __init__(self, address: SplitResult, seconds: float | None, most_bytes: int = MOST_BYTES):
        self._address, self._seconds, self._most_bytes = address, seconds, most_bytes

    def __call__(self, method: str, what: str, message: Any = None) -> Any:
        """The answer. Raises `SimulatorGone`, `SimulatorTimeout` or `_NoAnswer`."""
        with self._connected() as connection:
            body = None if message is None else json.dumps(message, allow_nan=False).encode()
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, f"{self._address.path.rstrip('/')}/{what}", body, headers)
            with connection.getresponse() as response:
                text = response.read(self._most_bytes + 1)
                missing = response.length  # told of nowhere else
        if len(text) > self._most_bytes:
            raise _NoAnswer(f"answered with more than {self._most_bytes:,} bytes")
        if missing:
            raise _NoAnswer(f"answered with {missing:,} bytes less than it had announced")
        if 300 <= response.status < 400:
            where = quoted(response.getheader("Location") or "nowhere")
            raise _NoAnswer(f"answered with a redirect to {where}, which is not followed: give that url")
        answer = _from_json(text)
        error = answer.get("error") if isinstance(answer, dict) else None
        if error is not None:
            parts = [error.get("type"), error.get("message")] if isinstance(error, dict) else [error]
            said = ": ".join(part if isinstance(part, str) else reprlib.repr(part) for part in parts)
            raise _NoAnswer(f"answered with the error {quoted(said)}")
        if response.status != 200:
            raise _NoAnswer(f"answered with status {response.status} ({_start(text)})")
        if answer is _Not.JSON:
            raise _NoAnswer(f"answered with something that is no JSON ({_start(text)})")
        return answer

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection, which is shut when the time is over: a socket's own time-out begins anew with every byte."""
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        begun = time.monotonic()
        connect_seconds = CONNECT_SECONDS if self._seconds is None else min(self._seconds, CONNECT_SECONDS)
        connection = kind(self._address.hostname or "", self._address.port, timeout=connect_seconds)
        over = threading.Event()
        timer = None
        try:
            try:
                connection.connect()
            except OSError as error:
                if isinstance(error, TimeoutError) and connect_seconds == self._seconds:
                    raise SimulatorTimeout from error
                url = self._address.geturl()
                raise SimulatorGone(f"cannot be reached at {url} ({error}): start its server") from error
            connected = connection.sock
            connected.settimeout(None)
            if self._seconds is not None:

                def shut():
                    over.set()
                    with contextlib.suppress(OSError):
                        connected.shutdown(socket.SHUT_RDWR)

                timer = threading.Timer(max(0.0, self._seconds - (time.monotonic() - begun)), shut)
                timer.daemon = True
                timer.start()
            try:
                yield connection
            except (OSError, http.client.HTTPException, ValueError) as error:
                if over.is_set():
                    raise SimulatorTimeout from error
                reason = f"{type(error).__name__}: {error}"
                raise _NoAnswer(f"gave no answer ({quoted(reason)})") from error
            if over.is_set():
                raise SimulatorTimeout
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()


class _Not:
    JSON = object()


def _from_json(text: bytes) -> Any:
    """What it says, or `_Not.JSON`. Servers in Python write infinities as Python does."""
    try:
        decoded = text.decode()
        try:
            return json.loads(decoded)
        except ValueError:
            return json.loads(re.sub(r"\binf\b", "Infinity", re.sub(r"\bnan\b", "NaN", decoded)))
    except (ValueError, RecursionError):
        return _Not.JSON


def _address(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        known = address.scheme in ("http", "https") and address.hostname and (address.port or True)
    except ValueError:
        known = False
    if not known or address.query or address.fragment or address.username or address.password:
        raise ValueError(
            "umbridge_simulator needs the url of a server, such as http://localhost:4242, without user, password, "
            f"query or fragment; got {url!r}"
        )
    return address


def _plain(config: dict | None) -> dict:
    """As JSON has it: NumPy's numbers, those of 32 bits foremost, are none of its."""

    def plain(value):
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is no JSON")

    if not isinstance(config, dict | None):
        raise ValueError(f"umbridge_simulator needs config as a dictionary; got {config!r}")
    try:
        return json.loads(json.dumps(config or {}, default=plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"umbridge_simulator needs config of plain numbers, texts, lists and dictionaries ({error})"
        ) from error


def _field(answer: Any, name: str, url: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise SimulatorGone(f"the server at {url} answered without {name}: {_shown(answer)}")
    return answer[name]


def _sizes(answer: Any, name: str, url: str) -> list[int]:
    sizes = _field(answer, name, url)
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise SimulatorGone(f"the server at {url} answered with {name} that are no sizes: {_shown(sizes)}")
    return sizes


def _shown(value: Any) -> str:
    return quoted(reprlib.repr(value))


def _start(text: bytes) -> str:
    return quoted(text[:200].decode(errors="replace"))
