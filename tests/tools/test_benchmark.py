"""tools/benchmark.py as a whole, with small stages in place of the real ones: what runs, what is reused, what fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from adco.evaluation.records import Record, load_record
from adco.suite import plan
from adco.weights.backbone import load_backbone
from tests import ROOT
from tests.adco.suite.test_suite import folders
from tests.waiting import wait_until
from tools import benchmark

# A stage in place of a real one: it counts its runs, fails or waits when a file says so, and writes a record.
# It imports nothing of ours, so that it ends at once.
STAGE = """
import argparse, hashlib, json, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("checkpoint", "data", "output-dir", "cache-dir", "device", "workers", "protocol", "image-px"):
    parser.add_argument("--" + name)
args = parser.parse_args()
here, out, given = Path(__file__).parent, Path(args.output_dir), args.checkpoint
(here / "workers").write_text(args.workers)
with (here / "ran").open("a") as file:
    file.write(f"{args.protocol} {Path(given).name}\\n")
while (here / f"wait-{args.protocol}").exists():
    time.sleep(0.05)
if (here / f"fail-{args.protocol}").exists():
    sys.exit("error: as the test wants it")
record = json.loads((here / "record.json").read_text())
sha256 = given if given.startswith("random:") else hashlib.sha256(Path(given).read_bytes()).hexdigest()
record["checkpoint"].update(name=given, sha256=sha256)
name = f"fake/{args.protocol}" + (f"@{args.image_px}px" if args.image_px else "")
record["protocol"] = name.replace("strange", "other")
out.mkdir(parents=True, exist_ok=True)
(out / (name.replace("/", "-") + ".json")).write_text(json.dumps(record))
"""


# The command in a process of its own, in which the code has the version that the test says.
COMMAND = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from adco.suite import plan
from tools import benchmark
plan.code_version = lambda protocol: "0123456789abcdef"
sys.exit(benchmark.main())
"""


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """A folder with data and a suite of two stages; code of one version, and no report, which has tests of its own."""
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(plan, "code_version", lambda protocol: "0123456789abcdef")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "benchmark.py").write_text(COMMAND)
    folders(tmp_path / "data" / "imagenet")
    (tmp_path / "stage.py").write_text(STAGE)
    data = {"name": "world", "fingerprint": "anything", "train_images": 4, "val_images": 2}
    checkpoint = {"name": "", "sha256": "", "arch": "resnet18"}
    record = Record("fake/a", {"top1": 17.5}, checkpoint, data, duration_seconds=1.0, code="0123456789abcdef")
    record.write(tmp_path / "record.json")
    row = {"tool": str(tmp_path / "stage.py"), "data": ["imagenet"], "passes": {"train": 1, "val": 1}, "vectors": 1}
    stages = {
        name: row | {"arguments": ["--protocol", name], "records": [f"fake/{name}{{image_px}}"]} for name in ("a", "b")
    }
    stages["c"] = row | {"data": ["coco"], "records": ["fake/c"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"about": "two stages", "stages": stages}))
    return tmp_path


def words(world: Path, *more: str, checkpoints=("random:resnet18:0", "random:resnet18:1")) -> list[str]:
    return ["--checkpoint", *checkpoints, "--suite", str(world / "mine.yaml"), "--data-root", str(world / "data"),
            "--output-dir", str(world / "out"), "--no-measure", "--device", "cpu", "--jobs", "2", *more]  # fmt: skip


def ran(world: Path) -> list[str]:
    """What has run since the last time this was asked, sorted."""
    path = world / "ran"
    found = sorted(path.read_text().splitlines()) if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def results(world: Path) -> list[str]:
    folder = world / "out" / "results"
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))


ALL = ["a random:resnet18:0", "a random:resnet18:1", "b random:resnet18:0", "b random:resnet18:1"]


def test_a_failure_stops_nothing_else_and_the_same_command_does_only_what_is_missing(world, capsys):
    (world / "fail-b").touch()
    assert benchmark.main(words(world)) == 1
    reported = capsys.readouterr()
    assert ran(world) == ALL
    assert results(world) == ["random-resnet18-0/fake-a.json", "random-resnet18-1/fake-a.json"]
    assert "random-resnet18-0--b: failed: exit code 1: error: as the test wants it" in reported.err
    assert f"not run: no coco below {world / 'data'}, expected coco/annotations" in reported.out
    (world / "fail-b").unlink()
    assert benchmark.main(words(world)) == 0
    reported = capsys.readouterr()
    assert ran(world) == ["b random:resnet18:0", "b random:resnet18:1"]
    assert reported.out.count("reused: same checkpoint, protocol, data and code, measured 20") >= 2
    rows = [line.split() for line in reported.out.splitlines() if re.match(r"fake/[ab] ", line)]
    assert [row[:4] for row in rows] == [[f"fake/{s}", "top1", "17.50", "17.50"] for s in "ab"]
    assert benchmark.main(words(world)) == 0
    assert ran(world) == []
    assert len(results(world)) == 4


def test_another_setting_is_another_protocol_beside_the_first(world):
    assert benchmark.main(words(world)) == 0
    assert benchmark.main(words(world, "--set", "image_px=96", "--stages", "a")) == 0
    assert ran(world) == sorted([*ALL, *ALL[:2]])
    assert "random-resnet18-0/fake-a.json" in results(world) and "random-resnet18-0/fake-a@96px.json" in results(world)


def test_changed_data_run_again_and_the_same_data_elsewhere_do_not(world, capsys):
    assert benchmark.main(words(world)) == 0
    ran(world)
    shutil.move(world / "data", world / "moved")
    moved = words(world)
    moved[moved.index(str(world / "data"))] = str(world / "moved")
    assert benchmark.main(moved) == 0
    assert ran(world) == []
    with (world / "moved" / "imagenet" / "val" / "class0" / "0.png").open("ab") as file:
        file.write(b"x")
    assert benchmark.main(moved) == 0
    assert ran(world) == ALL


def test_changed_code_runs_again(world, monkeypatch):
    assert benchmark.main(words(world)) == 0
    ran(world)
    monkeypatch.setattr(plan, "code_version", lambda protocol: "another")
    assert benchmark.main(words(world)) == 0
    assert ran(world) == ALL


def checkpoint(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    state = {name: tensor.half() for name, tensor in load_backbone(f"random:resnet18:{seed}").state.items()}
    torch.save(state, path)
    return path


def test_files_of_the_same_name_do_not_collide_and_a_changed_file_runs_again(world, capsys):
    given = [str(checkpoint(world / folder / "model.pth", seed)) for seed, folder in enumerate("xy")]
    both = words(world, "--stages", "a", checkpoints=given)
    assert benchmark.main(both) == 0
    assert ran(world) == ["a model.pth"] * 2
    before = results(world)
    shas = {load_record(world / "out" / "results" / path).checkpoint.sha256 for path in before}
    assert len(before) == len(shas) == 2
    assert {path.split("/")[0] for path in before} == {f"model-{sha[:8]}" for sha in shas}
    checkpoint(world / "x" / "model.pth", 7)
    assert benchmark.main(both) == 0
    assert ran(world) == ["a model.pth"]
    assert len(results(world)) == 3 and set(before) < set(results(world))
    shutil.copy(world / "x" / "model.pth", world / "y" / "twin.pth")
    capsys.readouterr()
    assert benchmark.main(words(world, "--stages", "a", checkpoints=[given[0], str(world / "y" / "twin.pth")])) == 0
    assert ran(world) == []  # the same content under two names is evaluated once


def test_a_damaged_record_and_one_of_another_protocol_do_not_count(world, capsys):
    assert benchmark.main(words(world, "--stages", "a")) == 0
    ran(world)
    (damaged,) = (world / "out" / "stages" / "random-resnet18-0").glob("a-*/fake-a.json")
    damaged.write_text(damaged.read_text()[:100])
    assert benchmark.main(words(world, "--stages", "a")) == 0
    assert ran(world) == ["a random:resnet18:0"]
    content = yaml.safe_load((world / "mine.yaml").read_text())
    content["stages"] = {
        "s": content["stages"]["a"] | {"arguments": ["--protocol", "strange"], "records": ["fake/strange"]}
    }
    (world / "mine.yaml").write_text(yaml.safe_dump(content))
    capsys.readouterr()
    assert benchmark.main(words(world)) == 1
    assert "its protocol is fake/other, fake/strange was planned" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_leaves_nothing(world, capsys):
    assert benchmark.main(words(world, "--dry-run")) == 0
    reported = capsys.readouterr().out
    assert "random-resnet18-1: resnet18, random weights" in reported
    assert "fake/a\n" in reported and "time not known (no rate was measured)" in reported
    assert "4 to run, 2 not run; time not known; up to" in reported
    assert not (world / "out").exists() and ran(world) == []


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (["--suite", "table5"], "choose quick, table4"),
        (["--stages", "z"], "mine has a, b, c"),
        (["--stages", "c"], "no stage can run"),
        (["--checkpoint", "absent.pth"], "absent.pth"),
        (["--checkpoint", "no-such-name"], "no such file, and no zoo model"),
        (["--data", "imagenet"], "expected NAME=FOLDER"),
        (["--data-root", "absent"], "absent: no such folder"),
        (["--gpus", "99"], "--gpus 99: 0 can be used here"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(change, reported, world, capsys):
    assert benchmark.main(words(world, *change)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and reported in errors[0]
    assert not (world / "out").exists()


def test_a_killed_run_leaves_no_process_and_the_same_command_resumes(world):
    """Killed while stage b waits: a's records are reused, b runs once more, and each record is there once."""
    (world / "wait-b").touch()
    line = [sys.executable, str(world / "tools" / "benchmark.py"), *words(world)]
    run = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def all_have_started() -> bool:
        return (world / "ran").exists() and len((world / "ran").read_text().splitlines()) == 4

    wait_until(all_have_started, "stage b at work", lambda: run.poll() is None)
    assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until(lambda: not stages_running(world), "the end of all stages")
    assert ran(world) == ALL
    (world / "wait-b").unlink()
    assert benchmark.main(words(world)) == 0
    assert ran(world) == ALL[2:]
    assert len(results(world)) == 4


def stages_running(world: Path) -> list[int]:
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(world / "stage.py").encode() in path.read_bytes():
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids


@pytest.mark.parametrize(("given", "expected"), [((), "auto"), (("--workers", "3"), "3")])
def test_each_stage_resolves_its_workers_where_it_runs(world, given, expected):
    once = words(world, "--stages", "a", *given, checkpoints=["random:resnet18:1"])
    assert benchmark.main(once) == 0
    assert (world / "workers").read_text() == expected


@pytest.mark.parametrize(
    ("workers", "gpus", "cores"), [("auto", 0, 10), ("auto", 1, 10), ("auto", 4, 40), (2, 0, 3), (2, 4, 9), (0, 1, 1)]
)
def test_the_cores_of_a_clusters_job(workers, gpus, cores):
    assert benchmark.cpus(workers, gpus) == cores


def test_stages_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.setattr(benchmark, "usable_cores", lambda: 64)
    assert benchmark.threads("auto", 8) == 7 and benchmark.threads(3, 8) == 3
    assert benchmark.threads("auto", 1) == benchmark.threads("auto", 0) == "auto"


def test_a_wrong_word_for_workers_is_one_line(world, capsys):
    assert benchmark.main(words(world, "--workers", "many")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: --workers many: expected auto or a number of threads, at least 0"


@pytest.mark.slow
def test_a_job_for_each_stage_through_submitit(world, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.chdir(ROOT)
    once = words(world, "--submit", "local", "--wait", "--stages", "a", checkpoints=["random:resnet18:1"])
    assert benchmark.main(once) == 0
    assert "submitted random-resnet18-1--a: job" in capsys.readouterr().out
    assert ran(world) == ALL[1:2]
    assert results(world) == ["random-resnet18-1/fake-a.json"]
    assert benchmark.main(once) == 0
    assert ran(world) == [] and "submitted random" not in capsys.readouterr().out


def test_a_detectors_smaller_config_bears_the_protocols_name(tmp_path):
    settings = pytest.importorskip("detection.config")
    from adco.suite import commands
    from adco.suite.checkpoints import CheckpointSpec
    from adco.suite.stages import load_suite, only
    from detection.record import protocol_of

    suite = only(load_suite("quick", ["iterations=8", "image_px=64"]), ["detection-voc"])
    checkpoint = CheckpointSpec("random:resnet50", "random", "random", "random:resnet50:0", "resnet50", "imagenet")
    (stage,) = suite.stages
    task = plan.Task(checkpoint, stage, stage.protocols(50), tmp_path)
    path = commands._config(task)
    assert protocol_of(path.stem) == task.protocols[0] == "detection/smoke_voc_R_50_C4-8it@64px"
    cfg = settings.load_config(str(path), [])
    assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS) == (8, 50, 256)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64,) and cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 32  # the base's
    plain = plan.Task(checkpoint, load_suite("table4").stages[6], ("detection/pascal_voc_R_50_C4_24k",), tmp_path)
    assert commands._config(plain) == ROOT / "detection" / "configs" / "pascal_voc_R_50_C4_24k_adco.yaml"


def test_a_conversion_that_fails_is_named_with_its_reason_and_an_old_result_does_not_stand_for_the_new(tmp_path):
    from adco.launch.jobs import Outcome
    from adco.suite.checkpoints import CheckpointSpec
    from adco.suite.results import collect
    from adco.suite.stages import load_suite

    checkpoint = CheckpointSpec("random:resnet18", "random", "random", "random:resnet18:0", "resnet18", "imagenet")
    task = plan.Task(checkpoint, load_suite("quick").stages[-1], ("detection/x",), tmp_path / "work")
    dirs = plan.RunDirs(tmp_path)
    old = dirs.results / "random" / "detection-x.json"
    old.parent.mkdir(parents=True)
    old.touch()
    convert = Outcome("failed", "exit code 2: error: no")
    outcomes = {"random--convert": convert, task.name: Outcome("skipped", "random--convert failed")}
    assert collect([task], outcomes, dirs) == {
        "random--convert": "failed: exit code 2: error: no", task.name: "skipped: random--convert failed",
    }  # fmt: skip
    assert not old.exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_real_stages_on_the_sample_world_killed_midway_and_finished(tmp_path):
    """Every stage of table 4 at 32 to 64 px, one epoch or a few iterations; SIGKILL after the first stages."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def tool(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]

    world, out = tmp_path / "world", tmp_path / "out"
    subprocess.run(tool("make_sample", str(world), "--seed", "0", "--images", "300"), check=True, env=environment)
    stages = {
        "voc07-lowshot": {"arguments": ["--protocol", "lowshot-pcl", "--shots", "1", "--shots", "2"],
                          "records": ["voc07-lowshot/pcl{image_px}"]},
        "voc07-svm": {"settings": {"image_px": 48}},
        "detection-voc": {"config": "detection/configs/smoke_voc_R_18_C4.yaml", "trials": 1, "data": ["voc2007"],
                          "records": ["detection/smoke_voc_R_{depth}_C4{iterations}{image_px}"]},
        "detection-coco": {"config": "detection/configs/smoke_coco_R_18_C4.yaml",
                           "records": ["detection/smoke_coco_R_{depth}_C4{iterations}{image_px}"]},
    }  # fmt: skip
    suite = tmp_path / "small.yaml"
    settings = {"image_px": 64, "epochs": 1, "iterations": 6}
    suite.write_text(yaml.safe_dump({"base": "table4", "settings": settings, "stages": stages}))
    line = tool("benchmark", "--checkpoint", "random:resnet18", "--suite", str(suite), "--data-root", str(world),
                "--output-dir", str(out), "--workers", "0", "--no-measure")  # fmt: skip
    run = subprocess.Popen(line, env=environment)
    deadline = time.time() + 1200
    states = out / "jobs" / "jobs.json"
    while time.time() < deadline:
        known = json.loads(states.read_text()) if states.exists() else {}
        if sum(state["status"] == "ended" for state in known.values()) >= 2:
            break
        time.sleep(0.2)
    run.kill()
    run.wait()
    ended = {name for name, state in json.loads(states.read_text()).items() if state["status"] == "ended"}
    assert len(ended) >= 2
    assert subprocess.run(line, env=environment).returncode == 0
    states = {name: state["status"] for name, state in json.loads((out / "jobs" / "jobs.json").read_text()).items()}
    assert {name for name, status in states.items() if status == "reused"} == ended
    assert set(states.values()) == {"ended", "reused"}
    records = sorted((out / "results" / "random-resnet18-0").glob("*.json"))
    assert [load_record(path).protocol for path in records] == [
        "detection/smoke_coco_R_18_C4-6it@64px", "detection/smoke_voc_R_18_C4-6it@64px",
        "imagenet-linear/adco-1ep@64px", "knn/k20-t0.07@64px", "knn/k200-t0.07@64px",
        "places205-linear/vissl-1ep@64px", "voc07-linear/adco-1ep@64px", "voc07-lowshot/pcl@64px",
        "voc07-svm/pcl@48px", "voc07-svm/vissl@48px",
    ]  # fmt: skip
    assert (out / "report" / "report.html").is_file()
    again = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "8 reused; nothing to do" in again.stdout
