"""A killed download: the next one continues after the bytes that have arrived; the file is complete or absent."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from adco.weights.manifest import Model
from adco.weights.zoo import download
from tests.faults import toy
from tests.faults.table import SLOW, fault

BODY = b"PK\x03\x04" + random.Random(0).randbytes(2**20)  # starts as a checkpoint does
BLOCK = 1 << 13


class Slow(http.server.BaseHTTPRequestHandler):
    """Sends 8 KiB at a time and counts the bytes in `server.sent`."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        self.send_response(206 if match else 200)
        for name, value in {"Content-Type": "application/octet-stream", "ETag": '"one"'}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(BODY) - start))
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        try:
            for place in range(start, len(BODY), BLOCK):
                self.wfile.write(BODY[place : place + BLOCK])
                self.server.sent += len(BODY[place : place + BLOCK])
                time.sleep(0.002)
        except OSError:
            return


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads, server.sent = True, 0
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url, digest = f"http://127.0.0.1:{server.server_port}/x", hashlib.sha256(BODY).hexdigest()
    yield Model(name="m", folder=Path("."), mirrors=(url,), bytes=len(BODY), sha256=digest), server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=SLOW)])
@fault(
    "sigkill-download",
    "Training",
    "SIGKILL at random moments while a checkpoint of the zoo is downloaded",
    "the file is absent until it is complete; each try continues after the bytes that have arrived; its sha256 is the "
    "published one",
)
def test_killed_while_downloading(model, kills, seen):
    (model, server), chance = model, random.Random(kills)
    seen.tries, seen.survived = kills, 0
    for _ in range(kills):
        before = server.sent
        process = toy.start(download, model)
        while process.is_alive() and server.sent < before + chance.random() * len(BODY) / kills:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        assert not model.path.exists(), "an incomplete file under the final name"
        seen.survived += 1
    seen.tries = seen.survived
    assert seen.tries >= kills // 2
    assert download(model).read_bytes() == BODY
    again = server.sent - len(BODY)
    seen.figures["KiB fetched again after a kill"] = round(again / seen.tries / 2**10)
    assert again < (seen.tries + 1) * 64 * BLOCK  # bytes in flight when a try was killed
