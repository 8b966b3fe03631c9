"""The zoo against a server that misbehaves in every way we could think of; the manifest against the code it names."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

import adco
import adco.utils.download
import hubconf
from adco.config.loading import load_recipe
from adco.evaluation.records import Record, load_record
from adco.methods import build_method
from adco.train import checkpoint
from adco.utils.download import DownloadError, RetryPolicy
from adco.utils.errors import UserError
from adco.utils.files import sha256_of
from adco.weights.additions import add_file, add_model
from adco.weights.backbone import Backbone, load_backbone
from adco.weights.export import BOUND, features_differ, pack, rounded
from adco.weights.layouts import SOURCES
from adco.weights.manifest import MANIFEST, Model, read_manifest
from adco.weights.zoo import download, find, models, read_record, resolve, verify
from tests import ROOT
from tests.adco.weights.public_checkpoints import network
from tests.detection.helpers import trained_state
from tools.zoo import main

BODY = b"PK\x03\x04" + bytes(range(256)) * 800  # begins as a zip does; 204804 bytes
OTHER = b"PK\x03\x04" + bytes(range(256))[::-1] * 800
HALF = len(BODY) // 2
SHA = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
QUICK = RetryPolicy(timeout_seconds=5, tries=3, pause_seconds=0)


class Server(http.server.ThreadingHTTPServer):
    """Answers a path by the function of that name below; `asked` holds the (path, headers) of every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict]] = []
        self.times: dict[str, int] = {}
        self.over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
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
        """The whole, or the part that was asked for, as RFC 9110 has it; or without regard for If-Range."""
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


@pytest.fixture(scope="module")
def running():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    running.asked.clear()
    running.times.clear()
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ADCO_OFFLINE", raising=False)
    return running


def model_of(server, *paths, **keys) -> Model:
    return Model(name="m", folder=Path("."), mirrors=tuple(map(server.url, paths)), **keys)


def ranges(server) -> list[str | None]:
    """What each request asked for."""
    return [headers.get("Range") for _, headers in server.asked]


def left(model: Model) -> set[str]:
    return {path.name for path in model.path.parent.glob("*")}


def test_a_download_is_checked_recorded_and_made_once(server):
    model = model_of(server, "moved")
    path = download(model, patience=QUICK)
    assert path.read_bytes() == BODY and left(model) == {"m.pth", "m.json"}
    assert read_record(model)["sha256"] == SHA and read_record(model)["from"] == server.url("moved")
    assert download(model, patience=QUICK) == path and verify(model) == SHA
    assert [path for path, _ in server.asked] == ["moved", "good"]


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
    assert left(model) == {"m.pth.part", "m.pth.part.origin"}
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
    assert left(model) == set()


def test_the_first_checksum_is_enforced_from_then_on(server):
    model = model_of(server, "changing")
    download(model, patience=QUICK).unlink()
    with pytest.raises(UserError, match=f"expected {SHA} .recorded on .*m.json"):
        download(model, patience=QUICK)
    assert left(model) == {"m.json"}


def test_damage_in_the_cache_is_found(server):
    model = model_of(server, "good", hash_prefix=f"md5:{MD5[:8]}")
    path = download(model, patience=QUICK)
    path.write_bytes(BODY[:-1] + b"x")
    for ask in (verify, download):
        with pytest.raises(UserError, match="its sha256 is .* delete it and `python tools/zoo.py download m`"):
            ask(model)
    path.write_bytes(BODY)
    model.record.write_text("{}")
    with pytest.raises(UserError, match="m.json: not readable"):
        verify(model)
    model.record.unlink()
    assert verify(model) == SHA  # by the published digits
    with pytest.raises(UserError, match="no checksum is known"):
        verify(model_of(server, "good"))


def test_offline_asks_nobody(server, monkeypatch):
    model = model_of(server, "good")
    with pytest.raises(UserError, match="offline"):
        download(model, offline=True)
    monkeypatch.setenv("ADCO_OFFLINE", "1")
    with pytest.raises(UserError, match="offline"):
        download(model)
    assert server.asked == []
    monkeypatch.setenv("ADCO_OFFLINE", "0")
    download(model, patience=QUICK)
    assert download(model, offline=True) == model.path and len(server.asked) == 1


def test_eight_at_once_download_once(server):
    model, paths = model_of(server, "good"), []
    threads = [threading.Thread(target=lambda: paths.append(download(model, patience=QUICK))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [model.path] * 8 and len(server.asked) == 1


def test_a_file_that_came_by_other_means_passes_the_same_checks(server, tmp_path):
    model, file = model_of(server, "page", hash_prefix=f"md5:{MD5[:8]}"), tmp_path / "got.pth.tar"
    for wrong, words in ((b"<html>", "web page"), (OTHER, "its md5 is")):
        file.write_bytes(wrong)
        with pytest.raises(UserError, match=f"got.pth.tar: .*{words}.*not taken as m"):
            add_file(model, file)
    assert not model.path.exists() and read_record(model) is None
    file.write_bytes(BODY)
    assert add_file(model, file) == SHA and download(model, offline=True).read_bytes() == BODY
    assert file.is_file()


# Own models, and zoo:// wherever a checkpoint is taken


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "r18.pth"
    torch.save({name: value.half() for name, value in network().state_dict().items()}, path)
    return path


def test_zoo_names_load_as_their_files_do(server, resnet18, capsys):
    server.resnet18 = resnet18.read_bytes()
    assert main(["add", "far", server.url("resnet18"), "--method", "MoCo", "--epochs", "3"]) == 0
    assert main(["add", "near", str(resnet18)]) == 0
    direct = load_backbone(resnet18)
    for name in ("zoo://far", "zoo://near", Path("zoo://near")):
        found = load_backbone(name)
        assert found.sha256 == direct.sha256
        assert all(torch.equal(found.state[key], value) for key, value in direct.state.items())
    assert find("near").layout == "torchvision" and find("near").arch == "resnet18"
    assert find("near").path.parent == resolve("zoo://far").parent
    assert [path for path, _ in server.asked] == ["resnet18"]
    assert main(["add", "near", str(resnet18)]) == 2 and "already" in capsys.readouterr().err
    assert main(["verify"]) == 0 and "4 verified" in capsys.readouterr().out  # two are the package's
    find("near").path.write_bytes(b"PK")
    assert main(["verify"]) == 2
    assert "not whole: near" in capsys.readouterr().err


def test_what_is_no_checkpoint_does_not_become_a_model(server, tmp_path):
    file = tmp_path / "x.pth"
    file.write_bytes(BODY)
    for name, source in (("x", str(file)), ("x", str(tmp_path / "absent")), ("Wrong Name", server.url("good"))):
        with pytest.raises(UserError):
            add_model(name, source)
    with pytest.raises(UserError, match="taken"):
        add_model("dino-r50", server.url("good"))
    with pytest.raises(UserError, match="sha256: expected 64 digits"):
        add_model("x", server.url("good"), sha256="abc")
    assert "x" not in models()


def test_the_tool_reports_mistakes_in_one_line(server, capsys):
    for words, said in (
        (["show", "moco-v2-r50-800"], "did you mean moco-v2-r50-800ep?"),
        (["download", "--offline", "dino-r50"], "offline"),
        (["verify", "dino-r50"], "not whole: dino-r50"),
        (["add", "dino-r50", "absent.pth"], "absent.pth: no such file"),
        (["add", "dino-r50", "absent.pth", "--method", "x"], "--method cannot be changed"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("error: ") and said in error


def test_the_tool_lists_and_shows_every_model(server, capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(models())
    for name in models():
        assert main(["show", name]) == 0
        shown = yaml.safe_load(capsys.readouterr().out)[name]
        model = models()[name]
        assert shown.get("mirrors", []) == list(model.mirrors) and shown["path"].startswith(str(model.path))
        assert shown["path"].endswith("(not there)") == (model.file is None)


# The manifest


def test_every_name_in_the_manifest_is_one_of_ours():
    code = "".join((ROOT / "transfer" / file / "protocols.py").read_text() for file in ("classifier", "svm"))
    for model in read_manifest(MANIFEST).values():
        assert model.layout in SOURCES and model.licence and model.source and model.method, model.name
        assert model.recipe is None or (ROOT / f"adco/recipes/{model.recipe}.yaml").is_file(), model.name
        assert model.file is None or model.path.is_file(), model.name
        for score in model.scores:
            room, _, name = score["protocol"].partition("/")
            known = f'"{score["protocol"]}"' in code or room == "own"
            assert known or (ROOT / f"detection/configs/{name}_adco.yaml").is_file(), score
            metrics = [value for key, value in score.items() if key not in ("protocol", "source")]
            assert metrics and all(0 < value < 100 for value in metrics), score


def test_torchvisions_rows_are_torchvisions():
    from torchvision.models import ResNet18_Weights, ResNet50_Weights

    for weights in (ResNet50_Weights.IMAGENET1K_V1, ResNet50_Weights.IMAGENET1K_V2, ResNet18_Weights.IMAGENET1K_V1):
        (row,) = (model for model in models().values() if weights.url in model.mirrors)
        assert row.hash_prefix == "sha256:" + weights.url.split("-")[-1].removesuffix(".pth")
        assert row.bytes is None or round(row.bytes / 2**20, 3) == pytest.approx(weights.meta["_file_size"], abs=1e-3)
        assert row.scores[0]["top1"] == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"mirors": ["http://x/y"]}, "unknown key 'mirors'; did you mean mirrors"),
        ({"mirrors": ["file:///x"]}, "mirrors: expected a list of http"),
        ({"mirrors": "http://x/y"}, "mirrors: expected a list"),
        ({}, "file: expected mirrors or else"),
        ({"mirrors": ["http://x/y"], "file": "a.pth", "sha256": SHA}, "file: expected mirrors or else"),
        ({"file": "../a.pth", "sha256": SHA}, "file: expected"),
        ({"file": "a.pth"}, "sha256: expected 64 digits"),
        ({"mirrors": ["http://x/y"], "hash_prefix": "0676ba61"}, "hash_prefix: expected sha256: or md5:"),
        ({"mirrors": ["http://x/y"], "bytes": "97 MB"}, "bytes: expected a whole number"),
        ({"mirrors": ["http://x/y"], "scores": [{"top1": 70}]}, "scores: expected protocol"),
    ],
)
def test_a_fault_in_a_manifest_is_named(tmp_path, row, words):
    file = tmp_path / "zoo.yaml"
    file.write_text(json.dumps({"schema": 1, "models": {"some-model": row}}))
    with pytest.raises(UserError, match=f"zoo.yaml: some-model: {words}"):
        read_manifest(file)


def test_a_packaged_model_needs_no_network(tmp_path, server):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.safetensors").write_bytes(BODY)
    row = {"file": "models/small.safetensors", "sha256": SHA}
    (tmp_path / "zoo.yaml").write_text(json.dumps({"schema": 1, "models": {"small": row}}))
    small = read_manifest(tmp_path / "zoo.yaml")["small"]
    assert download(small, offline=True).read_bytes() == BODY
    small.path.write_bytes(OTHER)
    with pytest.raises(UserError, match="install again"):
        download(small, offline=True)


# Models of our own, in the package


@pytest.fixture(scope="module")
def ended_run(tmp_path_factory) -> Path:
    """The last checkpoint of a run of ours, with BatchNorm statistics worth losing, and its record."""
    folder, recipe = tmp_path_factory.mktemp("run"), load_recipe("adco_r18_sample", ["bank.size=64", "epochs=3"])
    method, state = build_method(recipe), trained_state("resnet18")
    method.encoder.backbone.load_state_dict(state)
    tensors = {"method": method.state_dict(), "optimizer": {}, "scaler": {}}
    path = checkpoint.save(folder, checkpoint.State(9, asdict(recipe), data="", bad_images={}, seconds=0, **tensors), 1)
    known = {"name": path.name, "sha256": sha256_of(path)}
    Record("pretrain/adco", {}, known, {"name": "x"}, asdict(recipe), commit="c" * 40).write(folder / "record.json")
    return path


def test_a_packed_model_is_the_same_network_at_half_the_size(ended_run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "models" / "adco_tiny.safetensors"
    assert main(["pack", str(ended_run), str(out), "--recipe", "adco_r18_sample", "--data", "the sample"]) == 0
    rows = yaml.safe_load(capsys.readouterr().out)
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump({"schema": 1, "models": rows}))
    model = read_manifest(tmp_path / "zoo.yaml")["adco-tiny"]
    assert (model.method, model.epochs, model.arch, model.data) == ("AdCo", 3, "resnet18", "the sample")
    assert "bank.size: 2048 -> 64" in model.note and "epochs: 20 -> 3" in model.note
    assert verify(model) == sha256_of(out) and model.path == out and model.bytes == out.stat().st_size < 23e6
    with safe_open(out, "pt") as file:
        reported = file.metadata()
    assert (reported["recipe"], reported["commit"], reported["from_sha256"]) == (
        "adco_r18_sample",
        "c" * 40,
        sha256_of(ended_run),
    )

    monkeypatch.setattr("adco.weights.zoo._packaged", lambda: {"adco-tiny": model})
    original, small = load_backbone(ended_run), load_backbone("zoo://adco-tiny")
    for name, tensor in original.state.items():
        if tensor.ndim == 4:
            assert (small.state[name] - tensor).abs().max() <= 2**-11 * tensor.abs().max()
        else:
            assert torch.equal(small.state[name], tensor), name
    assert 0 < features_differ(original, small) <= BOUND
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small.module()(images), original.module()(images), rtol=0.01, atol=0.01)


def test_what_cannot_be_packed_is_said_and_leaves_no_file(ended_run, tmp_path, monkeypatch):
    def refused(words: str, path: Path = ended_run, out: Path = tmp_path / "x.safetensors"):
        with pytest.raises(UserError, match=words):
            pack(path, out, "adco_r18_sample", "x", "MIT")
        assert not out.exists()

    refused("ends in .safetensors", out=tmp_path / "x.pth")
    other = tmp_path / "other.pth"
    other.write_bytes(ended_run.read_bytes())
    refused("record.json: not a result record", other)
    Record("pretrain/adco", {}, {"name": "y", "sha256": "0" * 64}, {"name": "x"}).write(tmp_path / "record.json")
    refused("not the record of other.pth", other)
    with monkeypatch.context() as patch:
        patch.setattr("adco.weights.export.BOUND", 1e-7)
        refused("its features change by .* more than 1e-07")
    with pytest.raises(UserError, match="conv1.weight holds values beyond"):
        rounded(ended_run, load_backbone(ended_run).state | {"conv1.weight": torch.full((2, 2, 1, 1), 1e6)})


def test_a_coarser_rounding_would_be_noticed(ended_run):
    original = load_backbone(ended_run)
    coarse = {name: tensor.bfloat16().float() for name, tensor in original.state.items()}
    assert features_differ(original, Backbone(**(vars(original) | {"state": coarse}))) > BOUND


@pytest.mark.slow
def test_an_installed_wheel_carries_its_models(ended_run, tmp_path, monkeypatch):
    """Built from a copy of the project with one more model, unpacked elsewhere, loaded with no network."""
    project, site = tmp_path / "project", tmp_path / "site"
    for name in ("adco", "detection", "transfer"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project / name)
    row = pack(ended_run, project / "adco" / "models" / "tiny.safetensors", "adco_r18_sample", "x", "MIT").row
    rows = yaml.safe_load(MANIFEST.read_text())
    rows["models"]["tiny"] = row
    (project / "adco" / "zoo.yaml").write_text(yaml.safe_dump(rows))
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=project, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    monkeypatch.setenv("ADCO_OFFLINE", "1")
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = "import adco; net = adco.load_backbone('zoo://tiny'); print(adco.__file__, net.sha256)"
    line = [sys.executable, "-c", code]
    reported = subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    assert Path(reported[0]).is_relative_to(site) and reported[1] == row["sha256"]


# zoo://NAME in every tool that takes a checkpoint


@pytest.mark.parametrize("tool", ["voc07", "places205", "imagenet", "knn", "linear", "convert_to_d2", "draw_bank"])
def test_every_tool_looks_a_name_up_in_the_zoo(tool, server, images, tmp_path, capsys):
    room, name = "tools", "zoo://moco-v2-r50-800"
    if tool == "convert_to_d2":
        words = [name, str(tmp_path / "x.pkl")]
    elif tool == "draw_bank":
        words = [name, "--data", str(images), "--output", str(tmp_path / "x.png")]
    else:
        room, words = "transfer", ["--checkpoint", name, "--data", str(images), "--output-dir", str(tmp_path)]
    assert importlib.import_module(f"{room}.{tool}").main(words) == 2
    assert "zoo://moco-v2-r50-800: no such model; did you mean moco-v2-r50-800ep?" in capsys.readouterr().err


def test_a_name_is_downloaded_and_used_by_the_tools(server, resnet18, images, tmp_path, capsys):
    server.resnet18, digest = resnet18.read_bytes(), sha256_of(resnet18)
    assert main(["add", "far", server.url("resnet18")]) == 0
    words = ["--checkpoint", "zoo://far", "--data", str(images), "--output-dir", str(tmp_path), "--image-px", "64"]
    assert importlib.import_module("transfer.knn").main([*words, "--workers", "0", "--k", "3"]) == 0
    record = load_record(tmp_path / "knn-k3-t0.07@64px.json")
    assert record.checkpoint.sha256 == digest and record.checkpoint.name == "far.pth"
    assert importlib.import_module("tools.convert_to_d2").main(["zoo://far", str(tmp_path / "far.pkl")]) == 0
    assert (tmp_path / "far.pkl").is_file()
    assert [path for path, _ in server.asked] == ["resnet18"]


def test_the_banks_picture_takes_one_of_our_own_models(server, ended_run, images, tmp_path, capsys):
    draw = importlib.import_module("tools.draw_bank").main
    assert main(["add", "mine", str(ended_run)]) == 0
    words = ["--data", str(images), "--output", str(tmp_path / "x.png"), "--workers", "0", "--rows", "64"]
    assert draw(["zoo://mine", *words, "--images", "40"]) == 0
    assert "zoo://mine/mine.pth: " in capsys.readouterr().out


def test_a_detector_starts_from_a_name(server, resnet18, tmp_path, monkeypatch):
    server.resnet18 = resnet18.read_bytes()
    assert main(["add", "far", server.url("resnet18")]) == 0
    train_net = importlib.import_module("detection.train_net")
    facts = {"name": "x", "images": 1, "boxes": 1, "classes_with_boxes": 1}
    monkeypatch.setattr(importlib.import_module("detection.datasets"), "inspect_dataset", lambda name: facts)
    config = str(ROOT / "detection/configs/smoke_voc_R_18_C4.yaml")
    words = ["--config-file", config, "--num-gpus", "0", "MODEL.WEIGHTS", "zoo://far", "OUTPUT_DIR", str(tmp_path)]
    for _ in range(2):
        _, cfg, _ = train_net.prepare(train_net.parser().parse_args(words), 0.0)
    loaded = importlib.import_module("detection.verify").loaded_resnet(Path(cfg.MODEL.WEIGHTS), "resnet18")
    assert torch.equal(loaded.stem.conv1.weight, load_backbone(resnet18).state["conv1.weight"].float())
    assert [path for path, _ in server.asked] == ["resnet18"]
    assert [path.name for path in (find("far").path.parent / "detectron2").iterdir()] == [Path(cfg.MODEL.WEIGHTS).name]


# One line in Python


def test_adco_is_light_and_the_zoo_needs_no_torch():
    code = "import sys, adco, adco.weights.zoo, tools.zoo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert adco.load_backbone is load_backbone
    with pytest.raises(AttributeError, match="'adco' has no attribute 'nothing'"):
        _ = adco.nothing


def test_torch_hub_has_every_model(server, monkeypatch):
    entries = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entries == {name.replace("-", "_") for name in models()} | {"backbone"}
    net = torch.hub.load(str(ROOT), "backbone", "random:resnet18", source="local")
    expected = load_backbone("random:resnet18").module()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(net(images), expected(images)) and net(images).shape == (1, 512)
    monkeypatch.setenv("ADCO_OFFLINE", "1")
    with pytest.raises(UserError, match="zoo://dino-r50: not in the cache, and offline"):
        torch.hub.load(str(ROOT), "dino_r50", source="local")
