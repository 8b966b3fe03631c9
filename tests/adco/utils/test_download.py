"""Downloads from a misbehaving server, through the zoo: resumed, bounded in size, or refused with the reason."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest

import adco
import adco.utils.download
from adco.utils.download import DownloadError, RetryPolicy
from adco.utils.errors import UserError
from adco.weights.manifest import Model
from adco.weights.zoo import download, read_record
from tests.adco.weights.misbehaving_server import (
    BODY,
    HALF,
    MD5,
    OTHER,
    QUICK,
    SHA,
    files_of,
    model_of,
    ranges,
    serve,
)

server = pytest.fixture(serve)


@pytest.mark.parametrize("path", ["broken-once", "stalls-once"])
def test_a_broken_download_goes_on_where_it_was(server, path):
    model = model_of(server, path)
    download(model, patience=RetryPolicy(timeout_seconds=2, tries=2, pause_seconds=0))
    assert model.path.read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"] and server.asked[1][1]["If-Range"] == '"one"'


def test_the_next_run_goes_on_too_but_only_from_the_same_address(server):
    model = model_of(server, "broken-once")
    with pytest.raises(UserError, match=f"broke off after {HALF} of {len(BODY)} bytes"):
        download(model, patience=RetryPolicy(tries=1))
    assert files_of(model) == {"m.pth.part", "m.pth.part.origin"}
    download(model_of(server, "404", "good"), patience=QUICK)
    assert ranges(server) == [None, None, None]
    model.path.unlink()
    server.times.clear()
    with pytest.raises(UserError):
        download(model, patience=RetryPolicy(tries=1))
    download(model, patience=QUICK)
    assert ranges(server)[-1] == f"bytes={HALF}-" and model.path.read_bytes() == BODY


def test_a_part_that_is_the_whole_is_not_asked_for_again(server, monkeypatch):
    model = model_of(server, "good")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("adco.weights.zoo.accept", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        download(model, patience=QUICK)
    assert download(model, patience=QUICK).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={len(BODY)}-"]


@pytest.mark.parametrize("path", ["changed", "changed-deaf"])
def test_two_versions_of_a_file_are_never_joined(server, path):
    model = model_of(server, path)
    assert download(model, patience=QUICK).read_bytes() == OTHER


def test_without_a_version_or_ranges_it_starts_again(server):
    assert download(model_of(server, "broken-without-version"), patience=QUICK).read_bytes() == BODY
    assert ranges(server) == [None, None]
    find_again = model_of(server, "no-ranges")
    find_again.path.unlink()
    assert download(find_again, patience=QUICK).read_bytes() == BODY
    assert ranges(server)[2:] == [None, f"bytes={HALF}-"]


def test_a_busy_server_is_asked_again(server):
    assert download(model_of(server, "busy-once"), patience=QUICK).read_bytes() == BODY


BAD = {
    "404": ({}, "404 Not Found"),
    "500": ({}, "500 Internal Server Error, 3 times"),
    "page": ({}, "answers with a web page"),
    "hidden-page": ({}, "answers with a web page"),
    "text": ({}, "no weight file"),
    "other": ({"sha256": SHA}, "its sha256 is .* expected .*published"),
    "good": ({"hash_prefix": "md5:00000000"}, f"its md5 is {MD5}, expected 00000000"),
    "moved": ({"hash_prefix": "sha256:00000000"}, f"its sha256 is {SHA}, expected 00000000"),
    "to-file": ({}, "file:///etc/passwd"),
    "to-ftp": ({}, "only http and https"),
    "circle": ({}, "302 .*infinite loop"),
    "larger": ({"bytes": len(BODY)}, f"announces {len(BODY) + 4} bytes, expected {len(BODY)}"),
    "no-length": ({}, "does not say how long"),
    "no-length-larger": ({"bytes": len(BODY)}, "sends more than"),
    "no-length-short": ({"bytes": len(BODY)}, "broke off after"),
    "endless": ({}, "sends more than 1000000 bytes"),
    "packed": ({}, "packed as gzip"),
    "broken-always": ({}, "broke off after .*, 3 times"),
}


@pytest.mark.parametrize("path", BAD)
def test_a_bad_mirror_is_named_with_its_reason_and_leaves_no_file(server, path, monkeypatch):
    monkeypatch.setattr(adco.utils.download, "MOST_BYTES", 1_000_000)
    keys, words = BAD[path]
    model = model_of(server, path, **keys)
    with pytest.raises(UserError, match=words) as error:
        download(model, patience=QUICK)
    assert server.url(path) in str(error.value) and "zoo.py add m FILE" in str(error.value)
    assert "\n" not in str(error.value)
    assert not model.path.exists() and read_record(model) is None


@pytest.mark.parametrize("path", [path for path, (keys, _) in BAD.items() if not keys])
def test_the_next_mirror_is_tried(server, path, monkeypatch):
    monkeypatch.setattr(adco.utils.download, "MOST_BYTES", 1_000_000)
    model = model_of(server, path, "good", sha256=SHA)
    assert download(model, patience=QUICK).read_bytes() == BODY
    assert read_record(model)["from"] == server.url("good")


def test_silence_ends(server):
    start = time.monotonic()
    with pytest.raises(UserError, match=f"no answer in time after {HALF} of"):
        download(model_of(server, "stalls"), patience=RetryPolicy(0.3, 1, 0))
    assert time.monotonic() - start < 3


def test_nobody_there_and_no_such_host(server):
    with pytest.raises(UserError, match="Connection refused, 2 times"):
        download(Model("m", Path("."), mirrors=("http://127.0.0.1:9/x",)), patience=RetryPolicy(2, 2, 0))


def test_what_follows_the_announced_length_is_not_read(server):
    assert download(model_of(server, "more-than-announced"), patience=QUICK).read_bytes() == BODY
    other = Model("n", Path("."), mirrors=(server.url("no-length"),), bytes=len(BODY))
    assert download(other, patience=QUICK).read_bytes() == BODY


def test_https_is_never_left_for_http():
    handler, request = adco.utils.download._WebOnly(), urllib.request.Request("https://somewhere/x")
    with pytest.raises(DownloadError, match="from https to http://"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://somewhere/x")
    followed = handler.redirect_request(request, None, 302, "Found", {}, "https://elsewhere/x")
    assert followed.full_url == "https://elsewhere/x"


def test_a_full_disk_is_said_before_anything_is_written(server, monkeypatch):
    monkeypatch.setattr(adco.utils.download.shutil, "disk_usage", lambda path: type("U", (), {"free": 1000}))
    model = model_of(server, "good")
    with pytest.raises(UserError, match=f"{len(BODY)} bytes are to come, 1000 are free"):
        download(model, patience=QUICK)
    assert files_of(model) == set()
