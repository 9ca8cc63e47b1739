#!/usr/bin/env bash
# A log density that is minus infinity cannot pass from an UM-Bridge server to its own client.
#
# umbridge 1.2.10 (server and client of the same package, over the loopback address). A model that returns -inf, as
# every log density does outside of its support, is answered by the server with status 200 and the body
#     {"output": [[-inf]] }
# which is no JSON (neither is Python's own dialect of it, -Infinity): the client raises
# requests.exceptions.JSONDecodeError. The same call with a finite value gives [[1.5]]. A sampler that evaluates a
# posterior behind UM-Bridge dies at the first proposal outside of the support, with an error about JSON; models have to
# return a large negative number instead, or the caller has to read the answer itself.
#
# Exits non-zero where that is no longer so.
set -euo pipefail
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
"$python" -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check umbridge==1.2.10 requests==2.32.5 aiohttp==3.13.2 numpy
cat > "$work/server.py" <<'PYTHON'
import sys

import umbridge


class HalfNormal(umbridge.Model):
    def __init__(self):
        super().__init__("log_density")

    def get_input_sizes(self, config):
        return [1]

    def get_output_sizes(self, config):
        return [1]

    def supports_evaluate(self):
        return True

    def __call__(self, parameters, config):
        x = parameters[0][0]
        return [[float("-inf") if x < 0 else 1.5]]


umbridge.serve_models([HalfNormal()], int(sys.argv[1]))
PYTHON
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/env/bin/python" "$work/server.py" "$port" > "$work/log" 2>&1 &
"$work/env/bin/python" - "$port" <<'PYTHON'
import socket
import sys
import time

import requests
import umbridge

url = f"http://127.0.0.1:{sys.argv[1]}"
for _ in range(200):
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1).close()
        break
    except OSError:
        time.sleep(0.1)
model = umbridge.HTTPModel(url, "log_density")
inside = model([[1.0]])
body = requests.post(f"{url}/Evaluate", json={"name": "log_density", "input": [[-1.0]], "config": {}})
try:
    outside = model([[-1.0]])
except requests.exceptions.JSONDecodeError as error:
    outside = f"{type(error).__name__}: {error}"
print("umbridge 1.2.10, requests", requests.__version__)
print("inside the support: ", inside)
print("outside, the server:", body.status_code, body.text)
print("outside, the client:", outside)
sys.exit(not (inside == [[1.5]] and "-inf" in body.text and "JSONDecodeError" in str(outside)))
PYTHON
