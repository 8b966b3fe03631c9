"""Races: interleaved rounds, medians of the rounds' own ratios, steady loaders, contestants that are what they say."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from adco.data.images import index_folder
from adco.evaluation.records import load_record
from adco.utils.device import set_arithmetic
from adco.utils.errors import UserError
from benchmarks import run
from benchmarks.speed import bank, step
from benchmarks.speed import input as input_benchmark
from benchmarks.speed.input import backends_for, released_loader, worker_counts
from benchmarks.speed.photographs import write_photographs
from benchmarks.speed.race import (
    Options,
    Outcome,
    Ratio,
    Timing,
    race,
    ratio,
    regressions,
    repeated,
    steady,
    steady_count,
    steady_length,
)
from benchmarks.speed.times import bank_step, whole_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_contestants_take_turns_and_the_first_round_does_not_count():
    calls = []

    def contestant(name, seconds):
        def work():
            calls.append(name)
            return next(seconds)

        return work

    slow, fast = iter([99.0, 2.0, 4.0, 6.0]), iter([99.0, 1.0, 1.0, 1.0])
    timings = race({"slow": contestant("slow", slow), "fast": contestant("fast", fast)}, rounds=3, items=10)
    assert sorted(calls[:2]) == sorted(calls[2:4]) == sorted(calls[4:6]) == ["fast", "slow"]
    assert calls[2:4] != calls[4:6]  # neither always runs first
    assert timings["slow"].seconds == (2.0, 4.0, 6.0)
    assert timings["slow"].rate == 2.5
    assert ratio("speed", timings["slow"], timings["fast"], 3) == Ratio("speed", 4.0, 3)


def test_a_ratio_is_the_median_of_its_rounds_not_the_ratio_of_medians():
    reference = Timing("a", (1.0, 10.0, 1.0, 10.0, 4.0))  # the machine was busy in the second and fourth round
    candidate = Timing("b", (0.5, 5.0, 0.5, 5.0, 0.5))
    assert ratio("speed", reference, candidate, 1).value == 2.0


def test_on_a_gpu_the_time_between_two_events_counts_and_nothing_is_left_of_the_call_before(monkeypatch):
    calls = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            calls.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 2500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    timings = race({"a": repeated(lambda: calls.append("work"), 2), "b": lambda: 7.0}, 1, 2, CUDA)
    assert timings["a"].seconds == (2.5,) and timings["b"].seconds == (7.0,)
    assert calls[:6] == ["synchronize", "event", "event", "synchronize", "synchronize", "event"]  # b, then a
    assert calls[6:10] == ["work", "work", "event", "synchronize"]


class SimulatedLoader:
    """A DataLoader of processes, in simulated time: each makes a batch in `seconds`, two are asked of each in advance.

    full: everything asked for in advance was made before the clock starts, while another contestant ran.
    """

    def __init__(self, workers: int, seconds: float, full: bool):
        self.workers, self.seconds, self.now = workers, seconds, 1000.0 if full else 0.0

    def clock(self) -> float:
        self.now += 1e-6  # to look at it takes time, too
        return self.now

    def use(self, seconds: float) -> None:
        self.now += seconds

    def batches(self, count: int) -> Iterator[int]:
        ready, free = [], [0.0] * self.workers
        for number in range(count + 2 * self.workers):
            asked = 0.0 if number < 2 * self.workers else self.now
            ready.append(max(asked, free[number % self.workers]) + self.seconds)
            free[number % self.workers] = ready[-1]
            if number >= 2 * self.workers - 1:
                taken = number - 2 * self.workers + 1
                self.now = max(self.now, ready[taken])
                if taken < count:
                    yield taken


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("step_seconds", [0.0, 0.05, 0.12, 0.24, 0.26, 0.6])
def test_the_rate_of_a_slow_loader_is_its_steady_rate_and_not_that_of_its_queue(monkeypatch, full, step_seconds):
    workers, count = 16, steady_count(16)
    loader = SimulatedLoader(workers, 4.0, full)  # 4 batches a second, 16 at a time
    monkeypatch.setattr(time, "perf_counter", loader.clock)
    made = loader.batches(steady_length(workers, count))
    seconds, waited = steady(made, lambda batch: loader.use(step_seconds), workers, count, CPU)
    assert seconds / count == pytest.approx(max(0.25, step_seconds), rel=0.07)
    assert waited == pytest.approx(max(0, 1 - step_seconds / 0.25), abs=0.07)
    assert next(made, None) is None  # nothing is being made while another contestant runs


def test_what_a_queue_hides_without_dropping_any(monkeypatch):
    loader = SimulatedLoader(16, 4.0, full=True)
    stream = loader.batches(13)
    next(stream)
    began = loader.clock()
    for _ in stream:
        loader.use(0.05)
    assert (loader.clock() - began) / 12 < 0.1  # 0.25 is the truth


@pytest.mark.parametrize(("workers", "count"), [(1, 30), (2, 30), (8, 32), (14, 42), (16, 32)])
def test_whole_bursts_are_timed(workers, count):
    assert steady_count(workers) == count and count % workers == 0


def test_the_loaders_of_a_race_make_a_whole_pass_each_round(tmp_path, monkeypatch):
    index = index_folder(write_photographs(tmp_path, 8, 2))
    loader = released_loader(tmp_path, step.recipe_for(CPU, small=True).views[0], 4, 1, 2, CPU)
    passes = [list(loader), list(loader)]
    assert [len(made) for made in passes] == [steady_length(1, 2)] * 2
    assert {view.shape for made in passes for views, _ in made for view in views} == {(4, 3, 32, 32)}
    monkeypatch.setattr(input_benchmark, "race", lambda works, rounds, *rest: race(works, 1, *rest))
    found = input_benchmark.race_loaders(index, 1, Options(quick=True))
    assert set(found) == {f"{backends_for(CPU)[0]}, 1 workers", "released, 1 workers"}
    assert all(timing.rate > 0 for timing in found.values())


def test_loaders_are_timed_with_the_workers_and_backends_that_there_are():
    assert [worker_counts(cores) for cores in (1, 2, 4, 8, 16, 64)] == [(1,), (1, 2), (1, 2), (1, 8), *[(1, 8, 16)] * 2]
    assert backends_for(CUDA)[-2:] == ("device", "nvjpeg") and len(backends_for(CPU)) == 1


def test_too_little_shared_memory_is_reported_before_a_process_dies_of_it(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    with pytest.raises(UserError, match="needs 4998 MiB of shared memory, and 64 are free; start the container with"):
        released_loader(Path("."), step.ViewConfig(), 128, 16, 32, CPU)


def contestants_on_a_gpu() -> dict:
    return step.contestants(step.recipe_for(CUDA), CUDA, Path("."))


def test_no_two_contestants_of_a_gpu_are_the_same():
    makers = contestants_on_a_gpu()
    computes = {name: make.args[0].compute for name, make in makers.items() if make.func is step.our_step}
    assert computes["ours"].precision == "bf16" and computes["ours"].channels_last
    assert len(set(computes.values())) == len(computes)
    assert set(makers) == {
        "ours", "bare", "released", "released, tf32", "fp16", "tf32", "float32", "contiguous", "unfused", "compiled",
        "bare, compiled", "graphs",
    }  # fmt: skip
    precisions = {name: make.args[0].compute.precision for name, make in makers.items()}
    assert precisions["bare"] == precisions["released"] == precisions["bare, compiled"] == "bf16"


def test_every_contestant_sets_its_own_arithmetic_before_it_runs(monkeypatch):
    flags = {}

    def noted(name: str):
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return lambda: flags.setdefault(name, []).append((matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark))

    works = {name: step.with_arithmetic(noted(name), CUDA, name) for name in ("bf16", "tf32", "float32")}
    race(works, 2)
    strict, loose = (False, False, True), (False, True, True)
    assert flags == {"bf16": [strict] * 3, "tf32": [loose] * 3, "float32": [strict] * 3}

    def released_update(size, device):
        def update(q, k):
            noted("released")()
            q.sum().backward()

        return update

    monkeypatch.setattr(step, "released_update", released_update)
    recipe = step.recipe_for(CPU, small=True)
    released = step.released_step(recipe, CPU)
    set_arithmetic(CPU)
    released(list(step.random_batch(recipe, CPU).pixels))
    assert flags["released"] == [(False, True, False)]  # torch's defaults; cudnn.benchmark is set where there is a GPU


@pytest.mark.parametrize("channels_last", [True, False])
def test_contiguous_is_contiguous_views_and_network(tmp_path, channels_last):
    recipe = step.recipe_for(CPU, small=True)
    recipe = step.replace(recipe, compute=step.replace(recipe.compute, channels_last=channels_last))
    trainer, met = step.our_trainer(recipe, CPU, tmp_path), []
    for encoder in (trainer.method.encoder, trainer.method.key_encoder):
        encoder.backbone.layer1.register_forward_hook(lambda layer, inputs, output: met.extend([*inputs, output]))
        encoder.register_forward_hook(lambda layer, inputs, output: met.extend(inputs[0]))
    trainer.train_step(step.random_batch(recipe, CPU))
    met += [trainer.method.encoder.backbone.layer2[0].conv1.weight]
    assert len(met) == 7
    assert {t.is_contiguous(memory_format=torch.channels_last) for t in met} == {channels_last}
    assert {t.is_contiguous() for t in met} == {not channels_last}


def test_a_step_and_its_bank_run_on_the_same_trainer(tmp_path):
    trainer = step.our_trainer(step.recipe_for(CPU, small=True), CPU, tmp_path)
    before = trainer.method.bank.rows.clone()
    whole_step(trainer, CPU)()
    middle = trainer.method.bank.rows.clone()
    bank_step(trainer)()
    assert trainer.step == 1 and not torch.equal(before, middle) and not torch.equal(middle, trainer.method.bank.rows)


def test_on_a_gpu_extra_memory_is_the_allocators_peak(monkeypatch):
    mib, calls = 2**20, []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100 * mib)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 171 * mib)
    monkeypatch.setattr(Path, "read_text", None)  # /proc says nothing of a GPU
    monkeypatch.setattr(Path, "write_text", None)
    found = bank.extra_memory(lambda size, device: lambda: calls.append(size), CUDA)
    assert found == 71 and calls == [512, "reset", 65536]


def test_our_gradients_are_as_exact_as_the_released_ones():
    errors = bank.gradient_errors(CPU, 256)
    assert len(errors) == 4 and max(errors.values()) < 1e-4


def outcome(value: float) -> Outcome:
    return Outcome("image", [Timing("ours", (1.0, 2.0, 3.0), 8)], [Ratio("speed", value, 2)], settings={"px": 224})


def test_a_fall_of_more_than_a_fifth_is_a_warning(tmp_path):
    path = outcome(4.0).record("input", 1.0).write(tmp_path / "input.json")
    assert regressions(outcome(3.3), path) == []
    assert "3.10 is below the recorded 4.00" in regressions(outcome(3.1), path)[0]
    assert regressions(outcome(0.1), tmp_path / "absent.json") == []


def test_run_prints_the_ratio_last_and_writes_the_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.speed.input", SimpleNamespace(run=lambda options: outcome(4.0)))
    monkeypatch.setattr(run, "COMMITTED", tmp_path)
    monkeypatch.setattr(run, "SCRIPTS", tmp_path)
    (tmp_path / "input.py").touch()
    assert run.main(["input", "--quick", "--output-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "RATIO speed 4.00 2"
    record = load_record(tmp_path / "input-quick.json")
    assert record.scores == {"ratio/speed": 4.0, "image_per_s/ours": 4.0}
    assert record.settings["goals"] == {"speed": 2}
    run.run_one("input", Options(quick=True), tmp_path)
    assert "warning" not in capsys.readouterr().out


def test_a_benchmark_that_is_not_there_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "SCRIPTS", tmp_path)
    assert run.main(["svm", "--output-dir", str(tmp_path)]) == 2
    assert "benchmarks/speed/svm.py is not there" in capsys.readouterr().err
    assert run.main(["all", "--output-dir", str(tmp_path)]) == 0
    assert run.main(["input", "--data", str(tmp_path / "no")]) == 2
    with pytest.raises(SystemExit):
        run.main(["surprise"])
