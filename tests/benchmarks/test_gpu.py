"""benchmarks/gpu.py with sections in place of the real ones, its packs, and the whole of it in miniature."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import types
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import Image

from adco.evaluation.records import load_record
from adco.utils.errors import Failure, UserError
from benchmarks import gpu
from benchmarks.on_gpu import figures, pack, page, process, unpack
from benchmarks.on_gpu.sections import SECTIONS, Context, Section, cuda_tests, machine

section_process = importlib.import_module("benchmarks.on_gpu.sections.__main__")

# Sections in place of the real ones; they import nothing of ours, so that they start at once.
FAKE = """
import json, os, signal, subprocess, sys, time
number, file = int(sys.argv[1]), sys.argv[sys.argv.index("--file") + 1]
def figure(name, value, unit="", **facts):
    with open(file, "a") as lines:
        lines.write(json.dumps({"section": number, "name": name, "value": value, "unit": unit, **facts}) + "\\n")
def good():
    with open(file, "a") as lines:
        lines.write(json.dumps({"section": number, "hardware": "1 x Card"}) + "\\n")
    figure("rate", float(os.environ.get("RATE", 12.5)), "images/s", rounds=3)
    figure("card", "Card")
    figure("fits", True)
    figure("loss", float("nan"))
    figure("compiled", None, reason="not run: no compiler")
def crash():
    print("before the crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(os.path.join(os.path.dirname(file), "child"), "w").write(str(child.pid))
    time.sleep(60)
def endless():
    while True:
        print("x" * 1000)
def error():
    open(file, "a").write('{"half')
    raise ValueError("no such thing")
def terminate():
    os.kill(int(os.environ["COMMAND"]), signal.SIGTERM)
    time.sleep(60)
(good, crash, hang, endless, error, good, terminate)[number]()
"""
FAKES = tuple(
    Section(number, name, 2, f"it is {name}")
    for number, name in enumerate(("good", "crash", "hang", "endless", "error", "again", "terminate"))
)


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Path:
    """The command with fake sections, which have few seconds; returns the folder for its output."""
    package = tmp_path / "root" / "benchmarks" / "on_gpu" / "sections"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE)
    monkeypatch.setattr(gpu, "ROOT", tmp_path / "root")
    for module in (gpu, figures):
        monkeypatch.setattr(module, "SECTIONS", FAKES)
    for name, seconds in {"STARTUP": 0.2, "RESERVE": 0.1, "SLACK": -1.0}.items():
        monkeypatch.setattr(gpu, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(gpu, "MINIATURE_SECONDS", 2.0)
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)
    monkeypatch.setenv("COMMAND", str(os.getpid()))
    return tmp_path / "out"


def call(out: Path, *more: str) -> int:
    return gpu.main(["--device", "cpu", "--out", str(out), "--work", str(out.parent / "work"), *more])


def results(out: Path) -> dict[int, dict]:
    return figures.newest(figures.read_lines(out / "figures.jsonl"))[1]


def test_a_section_that_crashes_hangs_or_prints_without_end_stops_no_other(fakes, capsys):
    assert call(fakes, "--minutes", "1", "--only", "0", "1", "2", "3", "--only", "error", "again") == 1
    shown, there = capsys.readouterr(), results(fakes)
    assert [there[number]["result"] for number in range(6)] == [
        "ended",
        "failed",
        "killed",
        "killed",
        "failed",
        "ended",
    ]
    assert there[1]["reason"] == "SIGSEGV" and there[1]["code"] == 128 + signal.SIGSEGV
    assert there[2]["reason"].startswith("at its limit of") and there[2]["seconds"] < 4
    assert there[4]["reason"] == "ValueError: no such thing"
    assert "failed: 4 of 6 sections: crash, hang, endless, error; see" in shown.err
    assert " 1 crash: it is crash; 2 of 60 s" in shown.out and " 0 good: ended after" in shown.out
    child = int((fakes / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]

    table = (fakes / "table.txt").read_text()
    assert table.strip() in shown.out
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert {"rate 12.5 images/s", "card Card", "fits True", "loss nan", "compiled not run: no compiler"} <= set(lines)
    record = load_record(fakes / "record.json")
    assert record.protocol == "benchmark/gpu" and record.hardware == "1 x Card"
    assert record.scores == {"good/rate": 12.5, "again/rate": 12.5}
    assert record.settings["figures"]["good/card"] == "Card"
    assert record.settings["sections"]["hang"]["result"] == "killed"

    log = (fakes / "log.txt").read_bytes()
    assert b"== 1 crash\nbefore the crash\n" in log and b" bytes left out]" in log
    assert process.HEAD_BYTES + process.TAIL_BYTES < len(log) < process.HEAD_BYTES + process.TAIL_BYTES + 10_000
    files = [path for path in fakes.iterdir() if path.name != "child"]
    assert len(files) <= 8 and all(path.is_file() and path.stat().st_size < 16 << 20 for path in files)


def test_a_second_call_appends_and_the_table_shows_the_newest(fakes, monkeypatch, capsys):
    assert call(fakes, "--only", "good", "again") == 0
    monkeypatch.setenv("RATE", "99")
    assert call(fakes, "--only", "0") == 0
    record = load_record(fakes / "record.json")
    assert record.scores == {"good/rate": 99, "again/rate": 12.5}
    assert (fakes / "figures.jsonl").read_text().count('"rate"') == 3
    assert capsys.readouterr().out.rstrip().endswith(f"figures, table, record and log: {fakes}")


def test_sigterm_ends_the_section_and_leaves_the_table(fakes, capsys):
    before = signal.getsignal(signal.SIGTERM)
    begin = time.monotonic()
    assert call(fakes, "--only", "0", "6") == 130
    assert time.monotonic() - begin < 10
    assert results(fakes)[6]["result"] == "interrupted"
    assert "6 terminate: interrupted after" in (fakes / "table.txt").read_text()
    assert load_record(fakes / "record.json").scores == {"good/rate": 12.5}
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_pages_have_what_the_records_have_and_nothing_else(tmp_path, capsys):
    step, learning = (next(s.number for s in SECTIONS if s.module == name) for name in ("step", "learning"))
    lines = [
        {"section": step, "name": "eager", "value": 2512.3456, "unit": "images/s"},
        {"section": step, "name": "graphs", "value": None, "unit": "", "reason": "not run: no time"},
        {"section": step, "hardware": "1 x NVIDIA H100"},
        {"section": step, "result": "killed", "seconds": 9.0, "code": None, "reason": "at its limit of 9 s"},
        {"section": learning, "name": "knn", "value": 51.5, "unit": "%"},
    ]
    (tmp_path / "results").mkdir()
    figures.write_record(tmp_path / "results" / "h100.json", lines, {"device": "cuda"}, "drawn images", "unknown")
    for name in page.PAGES:
        (tmp_path / name).write_text(f"prose\n{page.BEGIN}\nold\n{page.END}\nmore\n")
    words = ["--results", str(tmp_path / "results"), "--docs", str(tmp_path)]
    assert page.main(words) == 0
    speed, evidence = ((tmp_path / name).read_text() for name in ("speed.md", "evidence.md"))
    assert "**1 x NVIDIA H100**" in speed and "| eager | 2512 images/s |\n| graphs | not run |" in speed
    assert f"{SECTIONS[step].title}: killed (at its limit of 9 s)" in speed and f"{SECTIONS[6].title}: not run" in speed
    assert "| knn | 51.5 % |" in evidence and "eager" not in evidence and "knn" not in speed
    assert "old" not in speed and speed.startswith("prose\n") and speed.endswith("\nmore\n")
    figures.write_record(tmp_path / "results" / "cpu.json", lines, {"device": "cpu"}, "drawn images", "unknown")
    assert page.main(words) == 2 and "cpu.json: not measured on a GPU" in capsys.readouterr().err


def test_the_pages_in_the_documents_are_those_of_the_records():
    records = {path: load_record(path) for path in sorted((page.ROOT / "results/gpu").glob("*.json"))}
    for name, sections in page.PAGES.items():
        document = (page.ROOT / "docs" / name).read_text()
        found = document.partition(page.BEGIN + "\n")[2].partition(page.END)[0]
        assert found == page.tables(records, sections)


def test_what_has_too_little_time_left_is_skipped_with_a_word(fakes, monkeypatch):
    monkeypatch.setattr(gpu.Run, "small", False)
    left = iter([60, 60, 1, 0])  # before the first, and at each one's turn
    monkeypatch.setattr(gpu.Run, "left", lambda run: next(left))
    monkeypatch.setattr(gpu, "run_section", lambda *_: gpu.Result("ended", 59.0, 0))
    assert call(fakes, "--only", "1", "3", "4") == 0
    there = results(fakes)
    assert [there[number]["result"] for number in (1, 3, 4)] == ["ended", "skipped", "skipped"]
    assert "less than half of what it needs" in there[3]["reason"]


def test_seconds_fit_into_what_is_left():
    assert gpu.scale(SECTIONS, 700) == 1
    assert gpu.seconds_for(SECTIONS, 700) == SECTIONS[0].seconds
    together, left = 0.0, 115.0
    for number in range(len(SECTIONS)):
        given = gpu.seconds_for(SECTIONS[number:], left)
        assert given > 0
        left -= given + gpu.STARTUP_SECONDS
        together += given
    assert left >= 0 and together < 115
    assert gpu.seconds_for(SECTIONS[-1:], 300) == pytest.approx(0.9 * (300 - gpu.STARTUP_SECONDS))
    assert gpu.scale(SECTIONS, 10) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "99"], "--only 99: no such section; there are 0 good, 1 crash"),
        (["--minutes", "0"], "--minutes 0: expected a number above 0"),
        (["--minutes", "nan"], "--minutes nan: expected"),
        (["--device", "tpu"], "'tpu' is not known"),
        (["--data", "absent"], "absent/train: no such folder"),
        (["--packed", "absent"], "absent: not a pack"),
        (["--out", "/proc/absent"], "/proc/absent: the output folder cannot be written"),
    ],
)
def test_mistakes_end_in_one_line_before_any_work(fakes, monkeypatch, capsys, words, message):
    monkeypatch.setattr(gpu, "run_sections", lambda run: pytest.fail("it began"))
    assert call(fakes, *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_out_is_needed_and_a_gpu_that_is_not_there_is_an_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2 and gpu.main(["--out", str(tmp_path / "out")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--out is missing" in first and "'cuda' was asked for, but" in second
    assert not (tmp_path / "out").exists()


def context(tmp_path, number: int = 0, seconds: float = 60) -> Context:
    device = torch.device("cpu")
    return Context(SECTIONS[number], device, True, seconds, None, tmp_path, tmp_path / "figures.jsonl")


def by_name(tmp_path) -> dict[str, dict]:
    return {line["name"]: line for line in figures.read_lines(tmp_path / "figures.jsonl") if "name" in line}


def test_figures_are_bounded_whatever_a_section_does(tmp_path):
    (tmp_path / "figures.jsonl").write_bytes(b"\n" * (16 << 20))
    with pytest.raises(RuntimeError, match="is full"):
        context(tmp_path).report("one more", 1)


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (Failure, 1)])
def test_a_section_says_in_one_line_what_the_user_can_mend(tmp_path, monkeypatch, capsys, error, code):
    def run(given: Context) -> None:
        assert (given.small, given.seconds, given.data, given.section) == (True, 3, None, SECTIONS[4])
        raise error("so")

    monkeypatch.setitem(sys.modules, "benchmarks.on_gpu.sections.step", types.SimpleNamespace(run=run))
    words = ["4", "--seconds", "3", "--device", "cpu", "--work", str(tmp_path), "--file", str(tmp_path / "f.jsonl")]
    threads = torch.get_num_threads()
    assert section_process.main(words) == code
    torch.set_num_threads(threads)
    assert capsys.readouterr().err == "so\n"
    assert "hardware" in json.loads((tmp_path / "f.jsonl").read_text())


def test_the_machine_in_miniature(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    machine.run(context(tmp_path))
    found = by_name(tmp_path)
    assert found["torch"]["value"] == torch.__version__
    for name in ("copy_device_to_device", "matmul_bf16", "matmul_tf32", "matmul_float32", "kernel_threads_2"):
        assert found[name]["value"] > 0
    assert found["matmul_bf16"]["least"] <= found["matmul_bf16"]["value"] <= found["matmul_bf16"]["most"]
    assert not torch.backends.cuda.matmul.allow_tf32


def test_nvidia_smi_is_asked_in_vain_or_answers(monkeypatch):
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout="580.1, 700.00 W\n"))
    assert machine.nvidia_smi(["driver_version", "power.limit"]) == ["580.1", "700.00 W"]
    assert machine.nvidia_smi(["driver_version"]) == [None]
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert machine.nvidia_smi(["driver_version"]) == [None]


SOME_TESTS = """
import os, pytest, time
def test_passes(): print("not seen")
@pytest.mark.parametrize("word", ["a b", "c"])
def test_words(word): assert word == "c", "it is - not c"
@pytest.mark.skip(reason="needs an NVIDIA GPU")
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError("no such device")
def test_fixture(broken): pass
"""


def cuda_tests_of(text: str, tmp_path: Path, monkeypatch, seconds: float = 60) -> str:
    """Run the section on a file of tests; returns what it failed with."""
    folder = tmp_path / "tests" / "cuda"
    folder.mkdir(parents=True)
    (folder / "test_some.py").write_text(text)
    monkeypatch.setattr(cuda_tests, "ROOT", tmp_path)
    monkeypatch.setattr(cuda_tests, "MINIATURE_SECONDS", seconds)
    with pytest.raises(Failure) as failure:
        cuda_tests.run(context(tmp_path, 2))
    return str(failure.value)


def test_cuda_tests_are_counted_and_their_failures_named(tmp_path, monkeypatch):
    assert cuda_tests_of(SOME_TESTS, tmp_path, monkeypatch) == "2 of 5 tests failed (pytest: 1)"
    found = by_name(tmp_path)
    assert [found[name]["value"] for name in ("passed", "failed", "skipped")] == [2, 2, 1]
    assert found["reasons_to_skip"]["value"] == {"needs an NVIDIA GPU": 1}
    assert "it is - not c" in found["failed tests/cuda/test_some.py::test_words[a b]"]["value"]
    assert "no such device" in found["failed tests/cuda/test_some.py::test_fixture"]["value"]


@pytest.mark.parametrize(
    ("body", "seconds", "message"),
    [
        ("os.abort()", 60, "pytest ended with 134 after 1 tests, in tests/cuda/test_some.py::test_last"),
        ("time.sleep(60)", 8, "the time was up after 1 tests, in tests/cuda/test_some.py::test_last"),
    ],
)
def test_a_cuda_test_that_crashes_or_hangs_is_named(tmp_path, monkeypatch, body, seconds, message):
    text = f"import os, time\ndef test_first(): pass\ndef test_last(): {body}\n"
    assert cuda_tests_of(text, tmp_path, monkeypatch, seconds) == message
    assert by_name(tmp_path)["passed"]["value"] == 1


def test_cuda_tests_that_cannot_be_collected_are_a_failure(tmp_path, monkeypatch):
    assert cuda_tests_of("import absent_module\n", tmp_path, monkeypatch) == "1 of 1 tests failed (pytest: 2)"
    assert by_name(tmp_path)["failed"]["value"] == 1


@pytest.fixture
def packed(tmp_path, monkeypatch) -> Path:
    """A pack of two images, a wheel made here, and one that would have been downloaded."""
    for split in ("train", "val"):
        (tmp_path / "data" / split / "cat").mkdir(parents=True)
        Image.new("L", (300, 150), 99).save(tmp_path / "data" / split / "cat" / "1.png")

    def download(requirements, python, folder):
        assert requirements == [f"pycocotools=={metadata.version('pycocotools')}"]
        with zipfile.ZipFile(
            folder / f"absent_module-1-cp{python.replace('.', '')}-abi3-linux_x86_64.whl", "w"
        ) as file:
            file.writestr("absent_module/__init__.py", "here = True\n")

    monkeypatch.setattr(pack, "download", download)
    monkeypatch.setattr(pack, "NEEDED", ("yacs", "pycocotools"))
    assert gpu.main(["--pack", str(tmp_path / "pack"), "--data", str(tmp_path / "data")]) == 0
    return tmp_path / "pack"


def test_a_pack_holds_what_it_says_and_is_unpacked_once(packed, tmp_path, capsys):
    manifest = json.loads((packed / "manifest.json").read_text())
    assert set(manifest["files"]) | {"manifest.json"} == {path.name for path in packed.iterdir()}
    assert manifest["images"] == 2 and "yacs" in manifest["versions"] and "numpy" not in manifest["versions"]
    with tarfile.open(packed / "project.tar.gz") as tar:
        names = tar.getnames()
    assert {"benchmarks/gpu.py", "adco/data/native/jpeg.c", "tests/cuda/conftest.py", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith((".git/", "results/")) or name.endswith(".safetensors")]

    work = tmp_path / "work"
    work.mkdir()
    there = unpack.unpack(packed, work)
    assert Image.open(there.images / "train" / "cat" / "1.jpg").size == (192, 96)
    assert (there.site / "absent_module" / "__init__.py").is_file()
    assert not (there.site / "yacs").exists()  # it is installed here
    assert (there.front / "pkg_resources").is_dir() and not (there.site / "pkg_resources").exists()
    assert there.python_path("detection") == [there.front, there.site] and there.python_path("step") == [there.site]
    (there.site / "mark").touch()
    (there.images / "mark").touch()
    assert unpack.unpack(packed, work) == there
    assert (there.site / "mark").is_file() and (there.images / "mark").is_file()


def test_the_wheel_of_an_installed_distribution_is_one(packed, tmp_path):
    wheel = next(packed.glob("yacs-*.whl"))
    unpack.unzip(wheel, tmp_path / "site")
    (found,) = metadata.distributions(path=[str(tmp_path / "site")])
    assert (found.name, found.version) == ("yacs", metadata.version("yacs"))
    assert all(file.hash.value == pack._digest(file.read_binary()) for file in found.files if file.hash)
    assert {str(file) for file in found.files} == set(zipfile.ZipFile(wheel).namelist())
    code = "import yacs.config, sys; print(yacs.config.__file__)"
    words = [sys.executable, "-c", code]
    run = subprocess.run(words, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(str(tmp_path / "site"))


def test_a_changed_or_missing_file_is_refused(packed, tmp_path, capsys):
    words = ["--device", "cpu", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with (packed / "images.tar.gz").open("ab") as file:
        file.write(b"x")
    assert gpu.main([*words, "--packed", str(packed)]) == 2
    assert "images.tar.gz: is not the file that was packed; copy the pack again" in capsys.readouterr().err
    (packed / "images.tar.gz").unlink()
    assert gpu.main([*words, "--packed", str(packed)]) == 2
    assert list((tmp_path / "work").iterdir()) == []


def add(packed: Path, path: Path) -> None:
    """Name a file in the manifest, as someone who can change the pack would."""
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["files"][path.name] = {"sha256": pack.sha256_of(path)}
    (packed / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["../outside.py", "/tmp/outside.py", "absent/..\\outside.py", "c:/outside.py"])
def test_a_wheel_that_leads_out_of_its_folder_is_refused(packed, tmp_path, name):
    path = packed / "outside-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("absent_outside/__init__.py", "")
        file.writestr(name, "")
    add(packed, path)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack.unpack(packed, work)
    assert list(work.iterdir()) == []


def test_images_that_lead_out_of_their_folder_are_refused(packed, tmp_path):
    with tarfile.open(packed / "images.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    add(packed, packed / "images.tar.gz")
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="it is not unpacked"):
        unpack.unpack(packed, tmp_path / "work")
    assert not (tmp_path / "outside").exists()


def test_a_manifest_names_files_of_its_own_folder_only(packed, tmp_path):
    (tmp_path / "outside.whl").touch()
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["files"] = {"../outside.whl": {"sha256": pack.sha256_of(tmp_path / "outside.whl")}}
    (packed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the file that was packed"):
        unpack.verify(packed)


def test_compiled_wheels_for_another_python_are_named_and_not_used(capsys):
    wheels = ["a-1-py3-none-any.whl", "b-1-cp39-cp39-linux_x86_64.whl"]
    assert unpack.usable({"python": "3.9"}, wheels) == wheels[:1]
    assert "not used: b-1-cp39-cp39-linux_x86_64.whl" in capsys.readouterr().out


def test_a_kernel_is_placed_where_none_can_be_loaded(tmp_path, monkeypatch):
    kernel = next((pack.ROOT / "adco" / "data" / "native").glob("_pixels*.so"), None)
    if kernel is None:
        pytest.skip("the C kernel is not built here")
    native = tmp_path / "adco" / "data" / "native"
    native.mkdir(parents=True)
    (native / "_pixels.other.so").write_bytes(b"for another machine")
    monkeypatch.setattr(unpack, "ROOT", tmp_path)
    for _ in range(2):
        unpack.place_kernel([kernel])
        assert (native / kernel.name).read_bytes() == kernel.read_bytes()
    (native / kernel.name).rename(native / "_pixels.built-here.so")
    unpack.place_kernel([kernel])
    assert not (native / kernel.name).exists()


def test_a_pack_that_is_too_large_or_would_replace_something_else_is_refused(packed, tmp_path, monkeypatch, capsys):
    before = (packed / "manifest.json").read_text()
    monkeypatch.setattr(pack, "MOST_MIB", 0)
    assert gpu.main(["--pack", str(packed)]) == 2
    error = capsys.readouterr().err
    assert "MiB, more than 0: " in error and "project.tar.gz" in error and error.count("\n") == 1
    assert (packed / "manifest.json").read_text() == before
    assert gpu.main(["--pack", str(tmp_path / "data")]) == 2
    assert gpu.main(["--pack", str(tmp_path / "new"), "--python", "3.12; rm"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "pack"]


def test_the_first_pip_that_there_is_downloads(tmp_path, monkeypatch):
    calls = []

    def run(words, **_):
        calls.append(words)
        there = words[0] == "uv"
        return types.SimpleNamespace(returncode=0 if there else 1, stderr="ERROR: no\n")

    monkeypatch.setattr(pack.subprocess, "run", run)
    pack.download(["pycocotools==2.0"], "3.12", tmp_path)
    assert calls[-1][0] == "uv" and calls[-1][-1] == "pycocotools==2.0"
    assert "--only-binary=:all:" in calls[-1] and "--no-deps" in calls[-1]
    monkeypatch.setattr(pack, "_succeeds", lambda words: words[0] == "python3")
    with pytest.raises(UserError, match="pip cannot download pycocotools==2.0 for Python 3.12: ERROR: no"):
        pack.download(["pycocotools==2.0"], "3.12", tmp_path)
    monkeypatch.setattr(pack, "_succeeds", lambda words: False)
    with pytest.raises(UserError, match="no pip to download"):
        pack.download(["pycocotools==2.0"], "3.12", tmp_path)


def test_the_whole_in_miniature(tmp_path):
    """Every section runs on a CPU: on an idle one `--minutes 2` is enough, on a busy one it may take more."""
    out = tmp_path / "out"
    words = ["--device", "cpu", "--minutes", "8", "--out", str(out), "--work", str(tmp_path / "work")]
    run = subprocess.run([sys.executable, str(pack.ROOT / "benchmarks" / "gpu.py"), *words], timeout=500)
    there = results(out)
    assert run.returncode == 0, there
    assert [there[section.number]["result"] for section in SECTIONS] == ["ended"] * len(SECTIONS)
    assert load_record(out / "record.json").scores["machine/matmul_float32"] > 0
    found = {
        (line["section"], line["name"]): line["value"]
        for line in figures.read_lines(out / "figures.jsonl")
        if "name" in line
    }
    assert not [key for key, value in found.items() if value is False]
    for module, name in {
        "correctness": "adco_equals_cpu", "input_races": "native_under_load", "step": "eager/images_per_second",
        "bank": "ours_4096", "loader": "native/1", "end_to_end": "ours/images_per_second", "profile": "eager/step",
        "nccl": "exchanges", "detection": "c4_2_images_rate", "learning": "seed0/adco/epoch1/knn_top1",
    }.items():  # fmt: skip
        assert found.get((next(s.number for s in SECTIONS if s.module == module), name)), (module, name)
