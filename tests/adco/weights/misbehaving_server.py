"""A web server for tests of downloads; each of its paths misbehaves in another way (ROUTES)."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adco.utils.download import RetryPolicy
from adco.weights.manifest import Model

BODY = b"PK\x03\x04" + bytes(range(256)) * 800  # starts as a zip does; 204804 bytes
OTHER = b"PK\x03\x04" + bytes(range(256))[::-1] * 800
HALF = len(BODY) // 2
SHA = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
QUICK = RetryPolicy(timeout_seconds=5, tries=3, pause_seconds=0)


class Server(http.server.ThreadingHTTPServer):
    """Answers each path by its function in ROUTES.

    asked: (path, headers) of every request; times: path -> number of requests; over: set when the test has ended.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict]] = []
        self.times: dict[str, int] = {}
        self.over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    """The ways to answer a request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.strip("/")
        self.server.asked.append((path, dict(self.headers)))
        self.server.times[path] = self.server.times.get(path, 0) + 1
        self.close_connection = True
        ROUTES[path](self)

    @property
    def first(self) -> bool:
        return self.server.times[self.path.strip("/")] == 1

    def head(self, code=200, length: int | None = len(BODY), etag: str | None = '"one"', **headers):
        self.send_response(code)
        fields = {"Content-Type": "application/octet-stream", "ETag": etag, "Content-Length": length}
        for key, value in (fields | {key.replace("_", "-"): value for key, value in headers.items()}).items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()

    def send(self, body: bytes = BODY, etag: str | None = '"one"', ranges: bool = True, if_range: bool = True):
        """Send the file or the requested range as RFC 9110 defines it. if_range: whether If-Range is respected."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
        if match and (not if_range or self.headers.get("If-Range") == etag):
            start = int(match[1])
            if start >= len(body):
                return self.head(416, 0, Content_Range=f"bytes */{len(body)}")
            self.head(206, len(body) - start, etag, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
            return self.wfile.write(body[start:])
        self.head(200, len(body), etag)
        return self.wfile.write(body)

    def break_off(self, **head):
        self.head(**head)
        self.wfile.write(BODY[:HALF])

    def stall(self):
        self.break_off()
        self.wfile.flush()
        self.server.over.wait(10)

    def page(self):
        text = b"<!DOCTYPE html><title>Sign in</title>"
        self.head(200, len(text), Content_Type="text/html; charset=utf-8")
        self.wfile.write(text)

    def hidden_page(self):
        text = b"\n <html><body>Sorry, something went wrong</body></html>"
        self.head(200, len(text))
        self.wfile.write(text)

    def text(self):
        self.head(200, 16)
        self.wfile.write(b'{"error": "nope"')

    def endless(self):
        self.head(200, None, Transfer_Encoding="chunked")
        while not self.server.over.is_set():
            try:
                self.wfile.write(b"10000\r\n" + BODY[:0x10000] + b"\r\n")
            except OSError:
                return

    def redirect(self, place: str):
        self.head(302, 0, None, Location=place)


def once(first, then=Handler.send):
    """Answer the first request by `first`, the later ones by `then`."""
    return lambda self: first(self) if self.first else then(self)


ROUTES = {
    "good": Handler.send,
    "moved": lambda self: self.redirect("/good"),
    "broken-once": once(Handler.break_off),
    "broken-always": Handler.break_off,
    "broken-without-version": once(lambda self: self.break_off(etag=None), lambda self: self.send(etag=None)),
    "changed": once(Handler.break_off, lambda self: self.send(OTHER, '"two"')),
    "changed-deaf": once(Handler.break_off, lambda self: self.send(OTHER, '"two"', if_range=False)),
    "no-ranges": once(Handler.break_off, lambda self: self.send(ranges=False)),
    "stalls-once": once(Handler.stall),
    "stalls": Handler.stall,
    "busy-once": once(lambda self: self.head(503, 0)),
    "404": lambda self: self.head(404, 0),
    "500": lambda self: self.head(500, 0),
    "page": Handler.page,
    "hidden-page": Handler.hidden_page,
    "text": Handler.text,
    "other": lambda self: self.send(OTHER),
    "to-file": lambda self: self.redirect("file:///etc/passwd"),
    "to-ftp": lambda self: self.redirect("ftp://127.0.0.1/x"),
    "circle": lambda self: self.redirect("/circle"),
    "larger": lambda self: self.send(BODY + b"more"),
    "more-than-announced": lambda self: (self.head(), self.wfile.write(BODY + b"more")),
    "no-length": lambda self: (self.head(length=None), self.wfile.write(BODY)),
    "no-length-larger": lambda self: (self.head(length=None), self.wfile.write(BODY + b"more")),
    "no-length-short": lambda self: (self.head(length=None), self.wfile.write(BODY[:HALF])),
    "endless": Handler.endless,
    "packed": lambda self: self.head(200, 0, Content_Encoding="gzip"),
    "changing": once(Handler.send, lambda self: self.send(OTHER, '"two"')),
    "resnet18": lambda self: self.send(self.server.resnet18),
}


def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The running server, and an empty cache folder for the zoo. A fixture: `server = pytest.fixture(serve)`."""
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ADCO_OFFLINE", raising=False)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def model_of(server: Server, *paths: str, **keys) -> Model:
    """A model of the zoo whose mirrors are these paths of the server."""
    return Model(name="m", folder=Path("."), mirrors=tuple(map(server.url, paths)), **keys)


def ranges(server: Server) -> list[str | None]:
    """The Range header of each request."""
    return [headers.get("Range") for _, headers in server.asked]


def files_of(model: Model) -> set[str]:
    """Names of the files in the model's cache folder."""
    return {path.name for path in model.path.parent.glob("*")}
