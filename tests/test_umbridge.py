"""Models behind an UM-Bridge server: its own one, and servers that answer whatever they like."""

import contextlib
import importlib.util
import json
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from umbridge_server import DENSITIES

from enkg_ppl import BlackBoxError, EnKG, blackbox
from enkg_ppl.evaluation import _umbridge as umbridge
from enkg_ppl.evaluation import umbridge_simulator
from enkg_ppl.evaluation._black_box import raise_host_failure

has_umbridge = importlib.util.find_spec("umbridge") is not None
needs_umbridge = pytest.mark.skipif(not has_umbridge, reason="needs the package umbridge (the extra umbridge)")


def all_of(simulate, *args):
    with raise_host_failure():
        return jax.block_until_ready(jax.vmap(simulate)(*args))


@contextlib.contextmanager
def umbridge_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).parent / "umbridge_server.py"
    process = subprocess.Popen([sys.executable, script, str(port)], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url():
    with umbridge_server() as url:
        yield url


# -- the server of the package -------------------------------------------------------------------------------------


GRID = np.stack(np.meshgrid(np.linspace(-16, 16, 1601), np.linspace(-16, 16, 1601), indexing="ij"))
FUNCTIONS = {
    "x": lambda x: x[0],
    "y": lambda x: x[1],
    "x squared": lambda x: x[0] ** 2,
    "y squared": lambda x: x[1] ** 2,
    "x y": lambda x: x[0] * x[1],
    "upper left": lambda x: 1.0 * ((x[0] < 0) & (x[1] > 0.5)),
    "radius": lambda x: np.hypot(x[0], x[1]),
}


@needs_umbridge
@pytest.mark.parametrize(
    "name", ["gaussian-mixture", *(pytest.param(name, marks=pytest.mark.slow) for name in ("donut", "banana"))]
)
def test_densities_of_the_benchmark_library(url, name):
    """Against sums over a grid, of an eighth of the thickness of the donut: four standard errors of the draws."""
    with ThreadPoolExecutor(4) as pool:
        log_density = blackbox(umbridge_simulator(url, name), shape=(), executor=pool, timeout=60.0)

        def model():
            x = numpyro.sample("x", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
            numpyro.factor("density", log_density(x))

        enkg = EnKG(model, num_particles=256, progress_bar=False)
        enkg.run(jax.random.key(0))
    x = np.asarray(enkg.get_samples()["x"]).T
    logs = DENSITIES[name](GRID) - 0.5 * (GRID**2).sum(0) / 9
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    for what, function in FUNCTIONS.items():
        exact = (weights * function(GRID)).sum()
        sd = np.sqrt((weights * (function(GRID) - exact) ** 2).sum())
        assert abs(function(x).mean() - exact) < 4 * sd / np.sqrt(x.shape[1]), what


@needs_umbridge
def test_inputs_outputs_and_settings(url):
    config = {"factor": np.float32(0.5), "length": np.int64(3), "more": {"array": np.arange(2)}}
    made = umbridge_simulator(url + "/", "linear", config=config)
    assert (made.input_sizes, made.output_sizes) == ((1, 2), (2, 3))
    assert repr(pickle.loads(pickle.dumps(made))) == "<linear(input_0, input_1)>"
    a, bc = np.array([0.1, 1e-300]), np.array([[1 / 3, 2.0], [-5e-324, np.pi]])
    expected = np.stack([0.5 * a, bc.sum(1), *3 * [bc[:, 1]]], axis=1)
    with ThreadPoolExecutor(2) as pool:
        simulate = blackbox(made, (5,), executor=pool)
        np.testing.assert_array_equal(all_of(simulate, a, bc), expected)
    np.testing.assert_array_equal(blackbox(made, (5, 1))(a[0], bc[0])[:, 0], expected[0])
    np.testing.assert_array_equal(
        made(np.float32(0.1), np.float32([1, 2])), [0.5 * float(np.float32(0.1)), 3.0, 2.0, 2.0, 2.0]
    )


@needs_umbridge
def test_failures_of_the_server(url):
    made = umbridge_simulator(url, "linear")
    rest = np.zeros(2)
    for a, words in [
        (1000.0, r"answered with status 500 \(\"500 Internal Server Error.*\"\)"),
        (4000.0, r"answered with the error \"InvalidOutput: Output vector 0 has invalid length! Model declared 2"),
        (5000.0, "gave NaN"),
        (np.inf, "cannot be asked, since JSON has no infinity"),
    ]:
        with pytest.raises(BlackBoxError, match=rf"^linear {words}.*, for input_0=.*, input_1=\[0., 0.\]: mend"):
            all_of(blackbox(made, (3,)), np.array([a]), rest[None])
    np.testing.assert_array_equal(made(6000.0, rest), [-np.inf, 0.0, 0.0])  # as log densities are
    simulate = blackbox(made, (3,), timeout=0.5, on_failure="reject", executor=ThreadPoolExecutor(2))
    begun = time.monotonic()
    found = all_of(simulate, np.array([1.0, 2000.0, 3.0]), np.zeros((3, 2)))
    np.testing.assert_array_equal(np.isnan(found)[:, 0], [False, True, False])
    assert time.monotonic() - begun < 2.5
    for args, words in [
        ((1.0,), r"takes 2 parameters \(input_0, input_1\); got 1"),
        ((1.0, 2.0), r"takes 2 numbers as input_1; got shape \(\)"),
        ((1.0, "a"), "real numbers; got input_1 of dtype <U1"),
    ]:
        with pytest.raises(TypeError, match=words):
            made(*args)
    with pytest.raises(BlackBoxError, match="raised TypeError: linear takes 1 numbers as input_0.*own code: mend it"):
        all_of(blackbox(made, (3,), on_failure="reject"), np.ones((1, 3)), rest[None])


@needs_umbridge
def test_models_that_are_refused(url):
    for name, words in [
        ("tsunami", rf"the server at {url} has no model 'tsunami' but \"\['gaussian-mixture', .*: name one of them"),
        ("silent", "the model silent at .* cannot be evaluated"),
    ]:
        with pytest.raises(ValueError, match=words):
            umbridge_simulator(url, name)
    with pytest.raises(ValueError, match=r"linear has 3 outputs \(of vectors of \(2, 1\)\), not those of shape \(4,\)"):
        blackbox(umbridge_simulator(url, "linear"), (4,))
    with pytest.raises(ValueError, match="one particle a call: drop vectorized"):
        blackbox(umbridge_simulator(url, "linear"), (3,), vectorized=True)


def wait_until_refused(port):
    """A process takes its time to end, and what connects meanwhile is reset."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass
        time.sleep(0.05)
    pytest.fail("the server has not ended")


@needs_umbridge
def test_a_server_that_has_gone_ends_the_run():
    """Were that a failure like others, on_failure='reject' would leave the posterior of the particles before."""
    with umbridge_server() as url:
        made = umbridge_simulator(url, "linear")
        simulate = blackbox(made, (3,), on_failure="reject")
        good = all_of(simulate, np.array([1.0, 2.0]), np.zeros((2, 2)))
        assert np.isfinite(good).all()
        with pytest.raises(RuntimeError, match=r"^linear gave no answer .*, for input_0=3000., input_1=\[0., 0.\]$"):
            made(3000.0, np.zeros(2))
        wait_until_refused(int(url.rsplit(":", 1)[1]))
        with pytest.raises(BlackBoxError, match=f"^linear cannot be reached at {url} .*refused.*: start its server$"):
            all_of(simulate, np.array([1.0, 2.0]), np.zeros((2, 2)))
    with pytest.raises(ConnectionError, match=f"^the server at {url} cannot be reached .*: start its server"):
        umbridge_simulator(url, "linear")


# -- servers that answer whatever they like ------------------------------------------------------------------------

SET_UP = {
    "/Info": {"protocolVersion": 1.0, "models": ["m"]},
    "/ModelInfo": {"support": {"Evaluate": True}},
    "/InputSizes": {"inputSizes": [1]},
    "/OutputSizes": {"outputSizes": [2]},
}


def http(body, status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def server(answers):
    """Answers: by path, JSON, bytes, or a function that is given the connection and the message."""
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as stop:
        stop.callback(lambda: listening.shutdown(socket.SHUT_RDWR))

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    text = b""
                    while b"\r\n\r\n" not in text:
                        text += connection.recv(65536)
                    head, _, body = text.partition(b"\r\n\r\n")
                    length = int(([*head.lower().split(b"content-length: ")[1:], b"0"])[0].split()[0])
                    while len(body) < length:
                        body += connection.recv(65536)
                    answer = {**SET_UP, **answers}[head.split()[1].decode()]
                    if callable(answer):
                        answer = answer(connection, body)
                    if answer is not None:
                        connection.sendall(answer if isinstance(answer, bytes) else http(json.dumps(answer).encode()))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.join(10)
    assert not thread.is_alive(), "a connection was left open"


def output(*vectors):
    return {"output": list(vectors)}


BAD = {
    "one vector more": (output([1, 2], [3]), r"answered with vectors of \(2, 1\) numbers, not \(2,\) as it had said"),
    "too few": (output([1]), r"answered with vectors of \(1,\) numbers, not \(2,\)"),
    "no vector": ({"output": [1, 2]}, r"answered without a list of output vectors: \"{'output': \[1, 2\]}\""),
    "no output": ({"result": 1}, "answered without a list of output vectors"),
    "no object": ([1, 2], r"answered without a list of output vectors: \"\[1, 2\]\""),
    "a text": (output([1, "2\x1b[31m"]), r"answered \"'2\\x1b\[31m'\" where a number is due"),
    "a truth value": (output([1, True]), "answered \"True\" where a number is due"),
    "a list": (output([1, [2]]), r"answered \"\[2\]\" where a number is due"),
    "null": (output([1, None]), "gave NaN"),
    "NaN": (http(b'{"output": [[1, NaN]]}'), "gave NaN"),
    "nan": (http(b'{"output": [[1, nan]]}'), "gave NaN"),
    "too large": (output([1, 10**400]), "answered with a number that 64 bits cannot hold"),
    "an error": (
        {"error": {"type": "Bad", "message": "no\nroot\x1b" + "x" * 1000}, "output": [[1, 2]]},
        r"answered with the error \"\.\.\. x{500}\"",
    ),
    "an error of no kind": ({"error": [1]}, r"answered with the error \"\[1\]\""),
    "no JSON": (http(b"<html>\n sorry"), r"answered with something that is no JSON \(\"<html> \| sorry\"\)"),
    "no text": (http(b"\xff\xfe"), "answered with something that is no JSON"),
    "deep": (http(b"[" * 100_000), "answered with something that is no JSON"),
    "deep, and whole": (http(b'{"output": ' + b"[" * 400 + b"]" * 400 + b"}"), "answered with vectors of"),
    "many digits": (http(b'{"output": [[1, ' + b"1" * 5000 + b"]]}"), "answered with something that is no JSON"),
    "a status": (http(b"", "503 Busy"), r"answered with status 503 \(\"\"\)"),
    "a redirect": (
        http(b"", "307 Elsewhere", Location="http://169.254.169.254/"),
        r"answered with a redirect to \"http://169.254.169.254/\", which is not followed: give that url",
    ),
    "too long": (http(b'{"output": [[1, 2]], "x": "' + b" " * 2_000_000 + b'"}'), "answered with more than 1,048,704"),
    "no end": (lambda c, _: endless(c), "answered with more than 1,048,704"),
    "zipped": (http(b"\x1f\x8b\x08", Content_Encoding="gzip"), "answered with something that is no JSON"),
    "nothing": (lambda *_: None, r"gave no answer \(\"RemoteDisconnected: Remote end closed connection without"),
    "half": (http(b'{"output": [[1, 2]]}')[:-5], "answered with 5 bytes less than it had announced"),
    "no HTTP": (b"SSH-2.0-x\r\n", r"gave no answer \(\"BadStatusLine"),
    "many headers": (http(b"", **{f"h{i}": "1" for i in range(200)}), r"gave no answer \(\"HTTPException: got more"),
}  # fmt: skip


def endless(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" " * 65536)


@pytest.mark.parametrize("kind", BAD)
def test_answers_that_are_none(kind):
    answer, words = BAD[kind]
    with server({"/Evaluate": answer}) as url:
        simulate = blackbox(umbridge_simulator(url, "m"), (2,), timeout=30.0)
        with pytest.raises(BlackBoxError, match=f"^m {words}.*, for parameters=1.: mend") as caught:
            all_of(simulate, np.array([1.0]))
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def drips(connection, _):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.1)


def drips_headers(connection, _):
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.1)


@pytest.mark.parametrize("answer", [drips, drips_headers, lambda *_: time.sleep(3.0)], ids=["body", "headers", "none"])
def test_time_is_over_even_for_a_server_that_drips(answer):
    with server({"/Evaluate": answer}) as url:
        simulate = blackbox(umbridge_simulator(url, "m"), (2,), timeout=0.4)
        begun = time.monotonic()
        with pytest.raises(BlackBoxError, match="^m took longer than 0.4 s, for parameters=1.: mend"):
            all_of(simulate, np.array([1.0]))
        assert time.monotonic() - begun < 2.0


def test_what_is_sent_is_plain_json():
    sent = []

    def answer(_, body):
        sent.append(json.loads(body, parse_constant=pytest.fail))
        return output(sent[-1]["input"][0] * 2)

    with server({"/Evaluate": answer}) as url:
        config = {"a": [np.float32(0.5), {"b": np.array([1, 2])}]}
        made = umbridge_simulator(url, "m", config=config)
        np.testing.assert_array_equal(made(np.float32(0.1)), 2 * [float(np.float32(0.1))])
        np.testing.assert_array_equal(made(np.array([True])), [1.0, 1.0])
        config["a"] = "changed later"
        np.testing.assert_array_equal(made(2), [2.0, 2.0])
    assert sent[2] == {"name": "m", "input": [[2.0]], "config": {"a": [0.5, {"b": [1, 2]}]}}


SET_UP_BAD = [
    ({"/Info": {"protocolVersion": 0.9, "models": ["m"]}}, "does not speak version 1.0 of UM-Bridge's protocol"),
    ({"/Info": [1]}, r"does not speak version 1.0 of UM-Bridge's protocol: \"\[1\]\""),
    ({"/Info": http(b"", "302 Found", Location="file:///etc")}, "redirect to \"file:///etc\", which is not followed"),
    ({"/Info": {"protocolVersion": 1.0, "models": "mmm"}}, "no model 'm' but"),
    ({"/ModelInfo": {}}, "answered without support"),
    ({"/ModelInfo": {"support": [1]}}, "cannot be evaluated"),
    ({"/InputSizes": {"inputSizes": 1}}, "inputSizes that are no sizes: \"1\""),
    ({"/InputSizes": {"inputSizes": [1.5]}}, "no sizes"),
    ({"/OutputSizes": {"outputSizes": [-1]}}, "no sizes"),
    ({"/OutputSizes": {"error": {"type": "Bad", "message": "config"}}}, "answered with the error \"Bad: config\""),
    ({"/OutputSizes": lambda *_: time.sleep(2)}, "gave no answer within 1 s: is it busy?"),
]  # fmt: skip


@pytest.mark.parametrize(("answers", "words"), SET_UP_BAD, ids=[words for _, words in SET_UP_BAD])
def test_servers_that_are_refused(answers, words, monkeypatch):
    monkeypatch.setattr(umbridge, "PATIENCE", 1.0)
    with server(answers) as url, pytest.raises((ConnectionError, ValueError), match=f"the (server|model).* {words}"):
        umbridge_simulator(url, "m")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:4242",
        "ftp://localhost",
        "file:///etc",
        "http://",
        "http://a:b",
        "http://u:p@a",
        "http://a/?b",
        "http://a:99999",
    ],
)
def test_urls_that_are_refused(url):
    with pytest.raises(ValueError, match="needs the url of a server"):
        umbridge_simulator(url, "m")


@pytest.mark.parametrize("config", [[1], {"a": object()}, {"a": np.nan}, {"a": {1j}}])
def test_settings_that_are_refused(config):
    with pytest.raises(ValueError, match="needs config"):
        umbridge_simulator("http://localhost", "m", config=config)
