"""Malicious files are refused in one line; no code in them runs, and memory stays bounded."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import http.server
import importlib.util
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adco.config.loading import load_recipe
from adco.data.shards import index_shards
from adco.utils.download import RetryPolicy
from adco.utils.errors import UserError
from adco.weights.backbone import load_backbone
from adco.weights.manifest import Model, read_manifest
from adco.weights.readers import load_arrays, read_weights
from adco.weights.zoo import download
from tests.adco.weights.public_checkpoints import network
from tests.faults import hostile
from tests.faults.table import fault

if importlib.util.find_spec("detectron2"):
    from detection.weights import origin_of
else:
    origin_of = None
CODE = fault(
    "code-in-weights", "Untrusted files",
    "os.system, eval, exec, subprocess, runpy and others by __reduce__ in every pickle protocol, in object arrays, by "
    "hand-written opcodes, extension codes and persistent ids, as .pth (zip, plain pickle, tar), .pkl and .safetensors",
    "no code runs; one line",
)  # fmt: skip
BOMBS = fault(
    "weight-bombs", "Untrusted files",
    "zips that unpack to gigabytes, tensors without their bytes, arrays of petabytes, memo numbers of 2^31, "
    "dictionaries that contain themselves, one another 2^60 times or 20,000 deep, false headers",
    "one line within 300 MiB",
)  # fmt: skip
TEXTS = fault(
    "texts", "Untrusted files", "YAML tags and anchor bombs in recipes and manifests, endless nesting",
    "one line; no code runs",
)  # fmt: skip
SHARDS = fault(
    "tar-names", "Untrusted files", "tar shards with ../ and absolute names, NUL, negative sizes, truncated, not a tar",
    "refused in one line; nothing is unpacked",
)  # fmt: skip
REDIRECTS = fault(
    "redirects", "Untrusted files", "downloads and shards that redirect to file://, ftp:// and data:",
    "not followed; the address is named",
)  # fmt: skip
BOUND_MIB = 300
ONCE = RetryPolicy(timeout_seconds=60, tries=1, pause_seconds=0)


class Calls:
    """Pickled as a call, which an unrestricted unpickler runs."""

    def __init__(self, function: Callable, *words: object):
        self.call = (function, words)

    def __reduce__(self):
        return self.call


def touching(path: Path) -> dict[str, Calls]:
    """Objects that create `path` when unpickled."""
    python = f"open({str(path)!r}, 'w')"
    return {
        "os.system": Calls(os.system, f"touch {path}"),
        "eval": Calls(eval, python),
        "exec": Calls(exec, python),
        "open": Calls(open, str(path), "w"),
        "Popen": Calls(subprocess.Popen, ["touch", str(path)]),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "torch.load": Calls(torch.load, str(path)),
        "numpy.fromfile": Calls(np.fromfile, str(path)),
        "map": Calls(map, Calls(builtins.compile, python, "x", "exec"), [1]),
    }


def opcodes(path: Path) -> dict[str, bytes]:
    """Pickles that no Python object produces."""
    touch = f"touch {path}"
    text = f"S'{touch}'\n".encode()
    unicode = b"X" + struct.pack("<I", len(touch)) + touch.encode()
    return {
        "GLOBAL": b"cos\nsystem\n(" + text + b"tR.",
        "GLOBAL posix": b"cposix\nsystem\n(" + text + b"tR.",
        "GLOBAL Python 2": b"c__builtin__\neval\n(S'1'\ntR.",
        "GLOBAL dotted": b"ctorch\nos.system\n(" + text + b"tR.",
        "GLOBAL of a numpy module": b"cnumpy.os\nsystem\n(" + text + b"tR.",
        "GLOBAL numpy runs strings": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
        "INST": b"(" + text + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + unicode + b"tR.",
        "STACK_GLOBAL dotted": b"\x80\x04\x8c\x0bcollections\x8c\x1cOrderedDict.__init__.__self__\x93.",
        "STACK_GLOBAL deep": b"\x80\x04\x8c\x05numpy\x8c\x0fctypeslib.sys.x\x93.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(" + unicode + b"t\x81.",
        "NEWOBJ_EX": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93(" + unicode + b"t}\x92.",
        "BUILD": b"ccollections\nOrderedDict\n)R(}}S'__class__'\ncos\nsystem\nstb.",
        "EXT1": b"\x80\x02\x82\x01.",
        "PERSID": b"Pos.system\n.",
        "BINPERSID": b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\n(" + text + b"tRtQ.",
    }


def as_zip(data: bytes) -> bytes:
    """A checkpoint in torch's zip format around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", data), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def as_legacy(data: bytes) -> bytes:
    """The format before the zip: magic number, protocol, system, the pickle, keys."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*head, data, pickle.dumps([], 2)])


def as_tar(data: bytes) -> bytes:
    """torch's format of 2016."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (("sys_info", pickle.dumps({})), ("pickle", data), ("storages", data), ("tensors", data)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


WRITERS = {"zip.pth": as_zip, "plain.pth": bytes, "legacy.pth": as_legacy, "tar.pth": as_tar, "plain.pkl": bytes,
           "zip.pkl": as_zip, "x.safetensors": bytes}  # fmt: skip


def harmful(path: Path):
    """(name, file content) of every call in every protocol, place and container."""
    for name, call in touching(path).items():
        arrays = np.array([call, None], dtype=object)
        for place, value in (
            ("bare", call),
            ("nested", {"state_dict": {"conv1.weight": [call]}}),
            ("array", {"a": arrays}),
        ):
            for protocol in range(6):
                yield f"{name} {place} {protocol}", pickle.dumps(value, protocol)
    yield from opcodes(path).items()


@CODE
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_in_a_weight_file_runs(tmp_path, writer, seen):
    touched, seen.tries = tmp_path / "touched", 0
    for name, data in harmful(touched):
        file = tmp_path / writer
        file.write_bytes(WRITERS[writer](data))
        for read in (read_weights, load_backbone):
            try:
                found = read(file)
            except UserError as error:
                assert str(file) in str(error) and "\n" not in str(error), (name, error)
            else:  # a class that torch makes a stand-in for, in a dictionary that has no weights
                assert read is read_weights and isinstance(found, dict), name
        if file.suffix == ".pkl":
            assert origin_of is None or origin_of(file) == {}
            with file.open("rb") as content, pytest.raises(Exception):  # noqa: B017
                load_arrays(content)
        assert not touched.exists(), name
        seen.tries += 1


@CODE
def test_the_corpus_is_dangerous(tmp_path):
    ran = 0
    for _, data in harmful(tmp_path / "touched"):
        with contextlib.suppress(Exception):
            pickle.loads(data)
        if (tmp_path / "touched").exists():
            (tmp_path / "touched").unlink()
            ran += 1
    assert ran > 60


@CODE
def test_detectron2_reads_weights_with_the_same_unpickler(tmp_path):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2.checkpoint import DetectionCheckpointer

    from detection import safe_loading

    safe_loading.install()
    file, touched = tmp_path / "x.pkl", tmp_path / "touched"
    file.write_bytes(pickle.dumps({"model": touching(touched)["os.system"]}))
    with pytest.raises(pickle.UnpicklingError, match="system is refused"):
        DetectionCheckpointer(torch.nn.Linear(1, 1))._load_file(str(file))
    assert not touched.exists()


@CODE
def test_other_objects_in_a_checkpoint_are_skipped_not_created(tmp_path):
    class_of = type("Meter", (), {"__setstate__": lambda self, state: (_ for _ in ()).throw(AssertionError)})
    class_of.__module__, class_of.__qualname__ = __name__, "Meter"
    globals()["Meter"] = class_of
    weights = {"state_dict": network().state_dict(), "args": argparse.Namespace(lr=1), "meter": class_of()}
    weights["meter"].value = 3
    torch.save(weights, tmp_path / "x.pth")
    del globals()["Meter"]
    assert load_backbone(tmp_path / "x.pth").arch == "resnet18"


# Bombs


def zip_of(content: dict[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed, compresslevel=1) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def tensors(count: int, key: str = "0", storage: str = "FloatStorage") -> bytes:
    """The pickle of {"w": a tensor of four numbers in a storage that claims `count` numbers}."""
    file = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, file)
    with zipfile.ZipFile(file) as archive:
        data = archive.read("archive/data.pkl")
    number = pickle.dumps(count, 2)[2:-1]
    data = data.replace(b"K\x04tq", number + b"tq").replace(b"K\x04\x85", number + b"\x85")
    return data.replace(b"FloatStorage", storage.encode()).replace(
        b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00" + key.encode()
    )


def archive(count: int, stored: int, **options) -> bytes:
    return zip_of(
        {"archive/data.pkl": tensors(count, **options), "archive/data/0": bytes(stored), "archive/version": b"3\n"}
    )


def doubled() -> bytes:
    """Two indexes under one name: which one is read depends on the reader."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for data in (tensors(4), tensors(1 << 40)):
            archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(16))
    return file.getvalue()


def legacy_tensors(count: int) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, file, _use_new_zipfile_serialization=False)
    number = pickle.dumps(count, 2)[2:-1]
    return file.getvalue().replace(b"K\x04N", number + b"N").replace(b"K\x04\x85", number + b"\x85")


def referring(levels: int) -> bytes:
    """Dictionaries of two references to the one before: 2^levels of them for a reader that follows all."""
    value: dict = {}
    for _ in range(levels):
        value = {"a": value, "b": value}
    return pickle.dumps(value, 2)


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"}U\x01a" * depth + b"}" + b"s" * depth + b"."


def array_of(shape: int) -> bytes:
    module = np.zeros(0).__reduce__()[0].__module__.encode()
    size = pickle.dumps(shape, 2)[2:-1]
    return b"\x80\x02c" + module + b"\n_reconstruct\ncnumpy\nndarray\n" + size + b"\x85U\x01b\x87R."


def safetensors_of(header: bytes | dict, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def with_false_header(**changes) -> bytes:
    return safetensors_of({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes})


MEMO = b"\x80\x02}r\xff\xff\xff\x7f."
ITSELF = b"\x80\x02}q\x00U\x01ah\x00s."
BOMBS_OF = {
    "packed.pth": lambda: zip_of({"archive/data.pkl": tensors(1 << 28), "archive/data/0": bytes(1 << 28)}, 8),
    "packed-index.pth": lambda: zip_of({"archive/data.pkl": bytes(1 << 26)}, zipfile.ZIP_DEFLATED),
    "doubled.pth": doubled,
    "more-than-stored.pth": lambda: archive(1 << 20, 16),
    "terabytes.pth": lambda: archive(1 << 40, 16),
    "negative.pth": lambda: archive(-4, 16),
    "no-storage.pth": lambda: archive(4, 16, key="7"),
    "doubles-in-floats.pth": lambda: archive(4, 16, storage="DoubleStorage"),
    "legacy-terabytes.pth": lambda: legacy_tensors(1 << 40),
    "legacy-gigabytes.pth": lambda: legacy_tensors(1 << 30),
    "memo.pkl": lambda: MEMO,
    "memo.pth": lambda: as_zip(MEMO),
    "itself.pkl": lambda: ITSELF,
    "itself.pth": lambda: as_zip(ITSELF),
    "two-to-the-60.pkl": lambda: referring(60),
    "two-to-the-60.pth": lambda: as_zip(referring(60)),
    "deep.pkl": lambda: nested(20_000),
    "deep.pth": lambda: as_zip(nested(20_000)),
    "petabytes.pkl": lambda: array_of(1 << 50),
    "gigabytes.pkl": lambda: array_of(1 << 32),
    "long-bytes.pkl": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "long-frame.pkl": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"x.",
    "long-number.pkl": lambda: b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "cut.pkl": lambda: pickle.dumps({"a": np.zeros(1000)})[:-500],
    "header-past-the-end.safetensors": lambda: safetensors_of(b"{}", length=1 << 40),
    "negative-header.safetensors": lambda: safetensors_of(b"{}", length=(1 << 64) - 1),
    "no-json.safetensors": lambda: safetensors_of(b"not json"),
    "nested.safetensors": lambda: safetensors_of(b'{"a":' * 100_000),
    "offsets-past-the-end.safetensors": lambda: with_false_header(shape=[1 << 30], data_offsets=[0, 1 << 32]),
    "false-shape.safetensors": lambda: with_false_header(shape=[1 << 40]),
    "shape-overflows.safetensors": lambda: with_false_header(shape=[1 << 62, 1 << 62]),
    "negative-shape.safetensors": lambda: with_false_header(shape=[-4]),
    "offsets-backwards.safetensors": lambda: with_false_header(data_offsets=[16, 0]),
    "unknown-type.safetensors": lambda: with_false_header(dtype="F9000"),
    "hole.safetensors": lambda: with_false_header(data_offsets=[8, 24]),
    "nan.safetensors": lambda: with_false_header(shape=[float("nan")]),
}  # fmt: skip


@BOMBS
@pytest.mark.parametrize("name", BOMBS_OF)
def test_bombs_are_one_line_in_little_memory(tmp_path, name, seen):
    file = tmp_path / name
    file.write_bytes(BOMBS_OF[name]())

    def read():
        for reader in (read_weights, load_backbone):
            try:
                reader(file)
            except UserError as error:
                assert str(file) in str(error) and "\n" not in str(error), error
            else:
                assert reader is read_weights and name in READ, name

    peak = hostile.peak_mib(read)
    assert peak < BOUND_MIB
    seen.figures["peak MiB"] = peak


# small in the file: they are read, and contain no weights
READ = [f"{name}.{suffix}" for name in ("itself", "two-to-the-60", "memo") for suffix in ("pkl", "pth")]


@BOMBS
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised", "expanded", "integer", "big-endian", "long double"])
def test_unusable_tensors_are_named(tmp_path, kind):
    state = network().state_dict()
    weight = state["conv1.weight"]
    odd = {
        "sparse": lambda: weight.to_sparse(),
        "meta": lambda: weight.to("meta"),
        "quantised": lambda: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "expanded": lambda: torch.zeros(1).expand(1 << 40),
        "integer": lambda: torch.zeros(weight.shape, dtype=torch.int64),
    }
    if kind in odd:
        file = tmp_path / "x.pth"
        torch.save({**state, "conv1.weight": odd[kind]()}, file)
    else:
        file = tmp_path / "x.pkl"
        dtype = ">f4" if kind == "big-endian" else np.longdouble
        file.write_bytes(
            pickle.dumps(
                {name: t.numpy() for name, t in state.items()} | {"conv1.weight": weight.numpy().astype(dtype)}
            )
        )
    if kind == "big-endian":  # the same numbers
        assert torch.equal(load_backbone(file).state["conv1.weight"], weight)
        return
    with pytest.raises(UserError) as caught:
        load_backbone(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


# Texts, shards, addresses

ANCHORS = "a: &l0 [x]\n" + "".join(f"a{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
YAML = {
    "tag": "epochs: !!python/object/apply:os.system ['touch TOUCHED']",
    "tag new": "epochs: !!python/object/new:subprocess.Popen [[touch, TOUCHED]]",
    "module": "epochs: !!python/module:antigravity",
    "name": "epochs: !!python/name:os.system",
    "own tag": "epochs: !touch TOUCHED",
    "laughs": ANCHORS + "views: *l11\n",
    "itself": "views: &v [*v]",
    "deep": "views: " + "[" * 20_000,
    "no date": "epochs: 2001-99-99",
    "long number": "epochs: " + "9" * 5000,
    "bad binary": "epochs: !!binary \xff",
    "bad timestamp": "epochs: !!timestamp x",
    "interpolation": "epochs: ${epochs}",
    "environment": "device: ${oc.env:NO_SUCH_THING}",
    "no UTF-8": "epochs: \udcff",
    "two documents": "epochs: 3\n---\nepochs: 4",
    "long": "x" * (1 << 21),
}


@TEXTS
@pytest.mark.parametrize("case", YAML)
def test_a_malicious_recipe_or_manifest_is_one_line(tmp_path, case):
    file, touched = tmp_path / "x.yaml", tmp_path / "touched"
    text = YAML[case].replace("TOUCHED", str(touched))
    file.write_bytes(text.encode(errors="surrogateescape"))
    for read in (load_recipe, read_manifest):
        with pytest.raises(UserError, match="x.yaml") as caught:
            read(file)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000
    with pytest.raises(UserError):
        load_recipe("adco_r18_sample", [f"views={text.partition(':')[2]}" if "\n" not in text else f"views={text}"])
    assert not touched.exists()


def tar_of(*names: str, **fields) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            member, content = tarfile.TarInfo(name), hostile.encoded(hostile.photo(0), "JPEG")
            member.size, member.pax_headers = len(content), fields
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def negative(content: bytes) -> bytes:
    """The first header's size as a negative number in base 256, its checksum right."""
    head = bytearray(content[:512])
    head[124:136] = b"\xff" * 10 + b"\xfe\x00"
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + content[512:]


TARS = {
    "up": lambda: tar_of("../x.jpg"),
    "up inside": lambda: tar_of("a/../../x.jpg"),
    "absolute": lambda: tar_of("/etc/x.jpg"),
    "NUL": lambda: tar_of("a/b.jpg", path="a\0/../x.jpg"),
    "negative size": lambda: negative(tar_of("a/b.jpg")),
    "cut": lambda: tar_of(*(f"a/{i}.jpg" for i in range(5)))[:2000],
    "no tar": lambda: b"<html>" * 500,
    "empty": lambda: b"",
    "gzip": lambda: __import__("gzip").compress(tar_of("a/b.jpg")),
}


@SHARDS
@pytest.mark.parametrize("case", TARS)
def test_a_shard_with_outside_names_or_false_sizes_is_refused(tmp_path, monkeypatch, case):
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    shard = tmp_path / "in" / "x.tar"
    shard.write_bytes(TARS[case]())
    with pytest.raises(UserError, match="x.tar: ") as caught:
        index_shards(str(shard))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*.jpg")] == []


@SHARDS
def test_a_pattern_of_too_many_shards_is_refused():
    for pattern in ("a-{0..99999999}.tar", "{0..9999}{0..9999}.tar", "{0..999999999999999999}.tar"):
        with pytest.raises(UserError, match="more than 1000000 shards"):
            index_shards(pattern)


PLACES = ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,PK", "/circle", "http://[", "file:/etc/passwd")


@pytest.fixture
def server():
    class Redirects(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", PLACES[int(self.path[1])] if self.path[1].isdigit() else self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@REDIRECTS
@pytest.mark.parametrize("number", range(len(PLACES)))
def test_only_http_redirects_are_followed(server, tmp_path, monkeypatch, number):
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    model = Model("m", tmp_path, mirrors=(f"{server}/{number}",))
    with pytest.raises(UserError, match=f"{server}/{number}") as caught:
        download(model, patience=ONCE)
    assert "\n" not in str(caught.value) and not model.path.exists()
    with pytest.raises(UserError, match=f"{server}/{number}.tar"):
        index_shards(f"{server}/{number}.tar")
