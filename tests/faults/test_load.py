"""Large loads: a million files, a million bank rows, 64 workers, many steps, four ranks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from adco.data.loader import ViewDataset, batches, requests
from adco.data.sources import open_images
from benchmarks.speed import soak
from tests.faults import toy
from tests.faults.table import SLOW, fault


def mib() -> float:
    """The peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start_up(root: str, answer: str) -> None:
    """Open a folder of images and sample the first batch, as a run does when it starts."""
    before, start, cpu = mib(), time.perf_counter(), time.process_time()
    index = open_images(root)
    opened, opened_cpu = time.perf_counter() - start, time.process_time() - cpu
    samples = next(requests(0, len(index), 256, 0, 1)).samples
    result = {"count": len(index), "seconds": opened, "cpu_seconds": opened_cpu, "mib": mib() - before}
    result |= {"first": [index.paths[sample] for sample in samples[:4]], "fingerprint": index.fingerprint}
    result |= {"to_first_batch": time.perf_counter() - start}
    Path(answer).write_text(json.dumps(result))


@pytest.mark.parametrize("count", [12_000, pytest.param(1_000_000, marks=SLOW)])
@fault(
    "million-files",
    "Load",
    "a folder of a million files in a thousand classes is opened, twice",
    "the second start reads its list from the cache: under 2 s of CPU time, the same list",
)
def test_a_large_folder_starts_quickly_the_second_time(tmp_path, monkeypatch, count, seen):
    monkeypatch.setenv("ADCO_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "images"
    try:
        for label in range(count // 1000):
            folder = root / f"class{label:04d}"
            folder.mkdir(parents=True)
            for number in range(1000):
                os.close(os.open(folder / f"{number:04d}.jpg", os.O_CREAT))
            os.utime(folder, (1e9, 1e9))  # a recent change would not be cached
        os.utime(root, (1e9, 1e9))
        starts = []
        for number in range(2):
            process = toy.start(start_up, str(root), str(tmp_path / f"{number}.json"))
            process.join()
            assert process.exitcode == 0
            starts.append(json.loads((tmp_path / f"{number}.json").read_text()))
    finally:
        shutil.rmtree(root)
    first, second = starts
    assert [first[key] for key in ("count", "first", "fingerprint")] == [
        second[key] for key in ("count", "first", "fingerprint")
    ]
    assert second["count"] == count
    assert second["cpu_seconds"] < 2
    seen.figures |= {
        "first start s": round(first["seconds"], 2),
        "second start s": round(second["seconds"], 2),
        "second start, CPU s": round(second["cpu_seconds"], 2),
        "second start to the first batch s": round(second["to_first_batch"], 2),
        "MiB": round(second["mib"]),
    }


@pytest.mark.parametrize(
    ("backend", "workers"), [("native", 64), pytest.param("reference", 64, marks=pytest.mark.slow)]
)
@fault(
    "many-workers",
    "Load",
    "64 data workers (threads of the native and of the reference backend) for 48 images on few cores",
    "the same batches as without workers; no thread is left at the end",
)
def test_sixty_four_workers_make_the_same_batches(recipe, data, tmp_path, backend, workers, seen):
    run = toy.trainer(recipe, tmp_path / "run", data)
    dataset = ViewDataset(run.index, run.recipe.views, 0, 0, backend)

    def made(count: int) -> list[torch.Tensor]:
        wanted = requests(0, len(run.index), 12, 0, 12)
        return [view for batch in batches(dataset, wanted, count, toy.CPU) for view in batch.to_views(toy.CPU)]

    start = time.perf_counter()
    many = made(workers)
    seen.figures[f"{backend}: seconds for 12 batches"] = round(time.perf_counter() - start, 2)
    for a, b in zip(many, made(0), strict=True):
        assert torch.equal(a, b)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("views")]


def million_adversaries(recipe: str, output: str, answer: str, *overrides: str) -> None:
    """Train, resume from a checkpoint within the run, compare; writes the measurements to a file."""
    before = mib()  # a forked child starts with its parent's
    whole = toy.trainer(recipe, Path(output) / "whole", *overrides, "checkpoint.keep=2")
    step, seconds = whole.train_step, []

    def timed(batch):
        start = time.perf_counter()
        done = step(batch)
        seconds.append(time.perf_counter() - start)
        return done

    whole.train_step = timed
    whole.fit()
    peak, size = mib() - before, max(path.stat().st_size for path in (Path(output) / "whole").glob("*.pth"))
    end = toy.weights(Path(output) / "whole")
    shutil.rmtree(Path(output) / "part", ignore_errors=True)
    shutil.move(Path(output) / "whole", Path(output) / "part")
    for path in (Path(output) / "part").glob("checkpoint_00000004*"):
        path.unlink()
    toy.trainer(recipe, Path(output) / "part", *overrides, "checkpoint.keep=2", resume=True).fit()
    same = toy.identical(end, toy.weights(Path(output) / "part"))
    Path(answer).write_text(json.dumps({"same": same, "seconds": min(seconds), "mib": peak, "file_mib": size / 2**20}))


@pytest.mark.parametrize("rows", [65_536, pytest.param(1_048_576, marks=SLOW)])
@fault(
    "million-adversaries",
    "Load",
    "a bank of 1,048,576 rows of 128 on one process, four steps, stopped and resumed",
    "trains, resumes bit-identically; its memory is rows and momentum, and their copy for the checkpoint",
)
def test_a_large_bank(recipe, data, tmp_path, rows, seen):
    overrides = data, "epochs=1", f"bank.size={rows}", "encoder.dim=128", "checkpoint.every_steps=3"
    process = toy.start(million_adversaries, recipe, str(tmp_path), str(tmp_path / "answer.json"), *overrides)
    process.join()
    assert process.exitcode == 0
    result = json.loads((tmp_path / "answer.json").read_text())
    assert result["same"]
    bank_mib = 2 * rows * 128 * 4 / 2**20
    assert result["file_mib"] > bank_mib
    assert result["mib"] < 1500 + 4 * bank_mib
    seen.figures |= {
        "seconds a step": round(result["seconds"], 2),
        "peak MiB": round(result["mib"]),
        "checkpoint MiB": round(result["file_mib"]),
    }
    seen.lost_steps = 0


SOAK = [
    pytest.param(400, id="short"),
    pytest.param(soak.DAY_STEPS, id="day", marks=[pytest.mark.slow, pytest.mark.timeout(5 * 3600)]),
]


@pytest.mark.parametrize("steps", SOAK)
@fault(
    "soak",
    "Load",
    f"one process trains for as many steps as a day has at 0.3 s, {soak.DAY_STEPS:,}, with every option on",
    "memory, threads and open files do not grow with the steps",
)
def test_a_long_run_does_not_grow(tmp_path, steps, seen):
    (grown,) = soak.soak(tmp_path, steps)
    no_growth([grown], seen)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@fault(
    "soak-4-ranks",
    "Load",
    f"four gloo ranks train for as many steps as an hour has, {soak.DAY_STEPS // 24:,}, with every option on",
    "memory, threads and open files of no rank grow with the steps",
)
def test_four_ranks_do_not_grow(tmp_path, seen):
    no_growth(soak.soak(tmp_path, soak.DAY_STEPS // 24, ranks=4), seen)


def no_growth(ranks: list[soak.Growth], seen) -> None:
    """Assert that no rank's memory, threads or open files grow."""
    worst = max(ranks, key=lambda grown: grown.mib_a_day)
    assert all(grown.threads <= 1 and grown.files <= 4 for grown in ranks), ranks
    if worst.steps > 2000:  # the slope of a few seconds is that of the warm-up
        rise = worst.mib_a_day / soak.DAY_STEPS * worst.steps
        assert rise < 8, ranks
        seen.figures |= {"steps": worst.steps, "MiB": round(worst.mib), "slope's rise over them MiB": round(rise, 2)}


def test_a_leak_is_noticed():
    noise = np.random.default_rng(0).normal(0, 0.3, 400)
    steady = [soak.Sample(20 * i, 500 + 80 * min(i, 150) / 150 + n, 5, 20) for i, n in enumerate(noise)]
    leaking = [soak.Sample(s.step, s.mib + s.step * 1024 / 2**20, 5, 20 + s.step // 1000) for s in steady]
    assert abs(soak.growth(steady).mib_a_day) < 30
    assert soak.growth(leaking).mib_a_day == pytest.approx(soak.DAY_STEPS / 1024, abs=30)
    assert soak.growth(leaking).files == 3
