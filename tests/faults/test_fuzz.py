"""Random and mutated input for every reader of other people's files: a clean result or our own error, nothing else.

Fast: 560 inputs. `-m slow`: 10,500 more, and atheris, where it is installed, which chooses inputs by the branches that
they reach.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from adco.config.loading import as_recipe, changed, load_recipe
from adco.config.schema import ViewConfig
from adco.data import native
from adco.data.datasets.annotations import check_coco_content, places_list, read_coco, voc_objects
from adco.data.datasets.check import check_voc
from adco.data.images import UnreadableImage, decode
from adco.data.loader import ViewDataset, requests
from adco.data.shards import index_shards
from adco.utils.errors import UserError
from adco.utils.yaml_io import read_yaml
from adco.weights.backbone import load_backbone
from adco.weights.manifest import read_manifest
from adco.weights.readers import load_arrays, read_weights, write_state
from tests import ROOT
from tests.faults import hostile, toy
from tests.faults.table import fault
from tests.faults.test_data import OBJECT, crowd
from tests.faults.test_untrusted import as_legacy, as_zip, opcodes, origin_of, tar_of
from transfer.voc import read_voc

SHORT, LONG = 40, 750  # inputs of each target
FUZZ = fault(
    "fuzz", "Untrusted files",
    "random and mutated input: weight files as .pth, .pkl, .safetensors (converter, unpickler), recipes, overrides, "
    "manifests, COCO, VOC, Places205, images (Pillow and the C kernel), tar shards",
    "a clean result or the project's own error",
)  # fmt: skip
GUIDED = fault(
    "fuzz-guided", "Untrusted files", "the same targets, inputs chosen by the branches they reach (atheris)",
    "a clean result or the project's own error",
)  # fmt: skip


@functools.cache
def folder() -> Path:
    """The folder of the targets' files; one for each process."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ["ADCO_CACHE"] = str(path / "cache")
    return path


def on_file(name: str, *readers: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A target that writes its input to a file of that name; each reader may raise UserError only, in one line."""

    def target(data: bytes) -> None:
        path = folder() / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
        for reader in readers:
            try:
                reader(path)
            except UserError as error:
                assert "\n" not in str(error), error

    return target


def arrays(data: bytes) -> None:
    """The unpickler itself, which may raise anything; its callers turn that into UserError."""
    try:
        load_arrays(io.BytesIO(data))
    except Exception as error:
        assert not isinstance(error, (SystemExit, KeyboardInterrupt))


def image(data: bytes) -> None:
    try:
        assert decode(data, "x").mode == "RGB"
    except UnreadableImage as error:
        assert "\n" not in str(error)


VIEW = ViewConfig(px=16)


def jpeg(data: bytes) -> None:
    """The C kernel: it makes a view, or leaves the image to Pillow; nothing else may happen."""
    out = [np.zeros((1, 16, 16, 3), np.uint8)]
    draws = ViewDataset(None, (VIEW,), 0, 0).draws(next(requests(0, 1, 1, 0, 1)))
    native.Canvas([VIEW.scale], draws, out, True).jpeg(0, data)


def override(data: bytes) -> None:
    try:
        as_recipe("command line", changed({"optimizer": {"lr": 1}, "views": [{}, {}]}, [os.fsdecode(data)]))
    except UserError as error:
        assert "\n" not in str(error)


def places(path: Path) -> None:
    places_list(path, path.read_bytes())


def coco(path: Path) -> None:
    for lines in check_coco_content(read_coco(path)):
        assert not any("\n" in line for line in lines)


def voc_lists(path: Path) -> None:
    check_voc(path.parents[2], 0)
    read_voc(path.parents[2])


def plain_recipe(path: Path) -> None:
    """The recipe as a checkpoint stores it."""
    as_recipe(path, read_yaml(path, "recipe"))


def weights(suffix: str) -> bytes:
    """A small valid weight file."""
    path = folder() / f"seed{suffix}"
    state = {"conv1.weight": torch.zeros(4, 3), "layer1.0.bn1.bias": torch.ones(5)}
    if suffix == ".pkl":
        return pickle.dumps({"model": {name: tensor.numpy() for name, tensor in state.items()}, "__author__": "x"})
    write_state(path, state, {"name": "x"})
    return path.read_bytes()


MANIFEST = b"schema: 1\nmodels:\n  a-b: {mirrors: ['http://x/y'], bytes: 3, scores: [{protocol: x, source: y}]}"
OVERRIDES = [
    b"views.\xc2\xb2.px=9",
    b"op\nl",
    b"optimizer.lr=0.06",
    b"views.0.scale=[0.1,0.9]",
    b"optimizer={lr: 8}",
    b"views=[{}, {px: 9}]",
]
BASED = b"base: adco_r50_200ep\nviews: [{px: 32}, {px: 48, scale: [0.1, 0.9]}]\nbank: {size: 8}"
COCO = crowd(counts="d0n0n0") | {"info": {}}
JPEGS = ("plain.jpg", "progressive.jpg", "grey.jpg", "one-pixel.jpg")
PIECES = (b"\n", b"\0", b"[", b"{", b": ", b"&a ", b"*a", b"<", b"\x7f", b"\xff\xfe", b"nan", b"\xc2\x85")


def seeds(kind: str) -> list[bytes]:
    """Valid and nearly valid inputs to start from."""
    content = {
        "pth": lambda: [weights(".pth"), *map(as_zip, RAW), *map(as_legacy, RAW[:4])],
        "pkl": lambda: [weights(".pkl"), *RAW],
        "arrays": lambda: [weights(".pkl"), *RAW, pickle.dumps(np.array([1, "a", None], dtype=object), 2)],
        "safetensors": lambda: [weights(".safetensors")],
        "recipe": lambda: [(ROOT / "adco/recipes/adco_r18_sample.yaml").read_bytes(), BASED, b"views: &a [*a]"],
        "override": lambda: OVERRIDES,
        "manifest": lambda: [MANIFEST],
        "coco": lambda: [json.dumps(COCO).encode()],
        "voc": lambda: [f"<a>{OBJECT}</a>".encode(), b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>"],
        "voc-list": lambda: [b"000001 1\n000002 -1\n000003  0\n"],
        "places": lambda: [b"a/b.jpg 3\nc/d e.jpg 204\n"],
        "image": lambda: [content() for name, content in hostile.SOUND.items() if not name.startswith("one-")],
        "jpeg": lambda: [hostile.SOUND[name]() for name in JPEGS],
        "tar": lambda: [tar_of("a/b.jpg", "a/c.jpg"), tar_of("x.jpg", path="é")],
    }
    return content[kind]()


RAW = [data.replace(b"system", b"sysxxm") for data in opcodes(Path("touched")).values()]
TARGETS: dict[str, Callable[[bytes], None]] = {
    "pth": on_file("x.pth", read_weights, load_backbone),
    "pkl": on_file("x.pkl", read_weights, load_backbone, *([origin_of] if origin_of else [])),
    "safetensors": on_file("x.safetensors", read_weights, load_backbone),
    "arrays": arrays,
    "recipe": on_file("x.yaml", load_recipe, plain_recipe),
    "override": override,
    "manifest": on_file("zoo.yaml", read_manifest),
    "coco": on_file("x.json", coco),
    "voc": on_file("x.xml", voc_objects),
    "voc-list": on_file("VOC2007/ImageSets/Main/cat_trainval.txt", voc_lists),
    "places": on_file("x.csv", places),
    "image": image,
    "jpeg": jpeg,
    "tar": on_file("x.tar", lambda path: index_shards(str(path))),
}


def mutated(data: bytes, numbers: random.Random) -> bytes:
    """Up to eight changes: bytes replaced, removed, repeated or inserted, numbers made large."""
    content = bytearray(data)
    for _ in range(numbers.randint(0, 8)):
        at = numbers.randrange(len(content) + 1)
        size = numbers.choice((1, 1, 2, 4, 8, 30))
        change = numbers.randrange(5)
        if change == 0:
            content[at : at + size] = numbers.randbytes(size)
        elif change == 1:
            del content[at : at + size]
        elif change == 2:
            content[at:at] = content[at : at + size]
        elif change == 3:
            content[at:at] = numbers.choice(PIECES)
        else:
            content[at : at + size] = numbers.choice((b"\xff", b"\x7f", b"\x00", b"9")) * size
    return bytes(content)


def inputs(kind: str) -> st.SearchStrategy[bytes]:
    """Mutations of valid inputs, and random bytes."""
    made = st.builds(mutated, st.sampled_from(seeds(kind)), st.randoms(use_true_random=True))
    return st.one_of(made, made, made, st.binary(max_size=200))


def fuzz(kind: str, count: int) -> int:
    """Run a target on `count` inputs; returns how many were run."""
    done = 0

    @seed(20_211)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs(kind))
    def run(data: bytes) -> None:
        nonlocal done
        done += 1
        TARGETS[kind](data)

    run()
    return done


@FUZZ
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_a_few_inputs(kind, seen):
    if kind == "jpeg" and not native.fast_jpeg():
        pytest.skip("the C kernel is not built")
    seen.tries = fuzz(kind, SHORT)


@FUZZ
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", TARGETS)
def test_many_inputs(kind, seen):
    """In a separate process, so that a crash of C code is noticed and does not end the tests."""
    if kind == "jpeg" and not native.fast_jpeg():
        pytest.skip("the C kernel is not built")
    code = f"from tests.faults import test_fuzz; print(test_fuzz.fuzz({kind!r}, {LONG}))"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    seen.tries = int(run.stdout.split()[-1])


@GUIDED
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind not in ("jpeg", "image")])
def test_inputs_chosen_by_the_branches_they_reach(kind, seen, tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed (it has wheels for few versions of Python)")
    for number, data in enumerate(seeds(kind)):
        (tmp_path / str(number)).write_bytes(data)
    process = toy.start(guided, kind, LONG, tmp_path, tmp_path.with_suffix(".log"))
    process.join()
    log = tmp_path.with_suffix(".log").read_text(errors="replace")
    assert process.exitcode == 0 and f"Done {LONG} runs" in log, log[-3000:]
    seen.tries = LONG


def guided(kind: str, count: int, corpus: Path, log: Path) -> None:
    """Run libFuzzer, which ends the process: with a code other than 0 if an input broke something. Never returns."""
    import atheris

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    folder.cache_clear()
    for name in (
        "adco.weights.readers",
        "adco.config.loading",
        "adco.data.datasets.annotations",
        "adco.data.shards",
        "adco.utils.yaml_io",
    ):
        module = sys.modules[name]
        for key, value in vars(module).copy().items():
            if callable(value) and getattr(value, "__module__", "") == name and hasattr(value, "__code__"):
                setattr(module, key, atheris.instrument_func(value))
    options = [
        f"-runs={count}",
        "-seed=1",
        "-rss_limit_mb=6000",
        "-print_final_stats=1",
        f"-artifact_prefix={folder()}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[kind])
    atheris.Fuzz()
