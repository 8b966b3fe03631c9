"""adco/utils/device.py: a GPU that is asked for and absent is an error, never a silent CPU run."""

import pytest
import torch

from adco.utils import device
from adco.utils.device import constant, resolve_device, resolve_workers, set_arithmetic, upload, usable_cores
from adco.utils.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (2, "cuda")])
def test_auto_takes_the_gpu_when_there_is_one(monkeypatch, count, expected):
    pretend_gpus(monkeypatch, count)
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_an_absent_gpu_is_an_error(monkeypatch, name, count):
    pretend_gpus(monkeypatch, count)
    with pytest.raises(UserError, match=name):
        resolve_device(name)


def test_a_gpu_that_is_named_by_its_index_becomes_the_current_one(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert resolve_device("cuda") == torch.device("cuda") and not current
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cpu:0", "mps"])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(UserError, match="choose auto, cpu, cuda"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("precision", "convolutions"), [("float32", False), ("bf16", False), ("fp16", False), ("tf32", True)]
)
def test_float32_on_a_gpu_is_float32_and_tf32_is_asked_for_by_name(precision, convolutions):
    backends = torch.backends
    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark
    try:
        backends.cuda.matmul.allow_tf32 = True
        set_arithmetic(CUDA, precision)
        assert backends.cudnn.allow_tf32 is convolutions and backends.cuda.matmul.allow_tf32 is False
        assert backends.cudnn.benchmark is True
        set_arithmetic(CPU, precision)
        assert backends.cudnn.benchmark is False
    finally:
        backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark = before


@pytest.mark.parametrize(
    ("cores", "ranks", "place", "expected"),
    [(16, 1, CUDA, 15), (64, 8, CUDA, 7), (1, 1, CUDA, 1), (2, 1, CPU, 1), (64, 1, CPU, 8), (2, 4, CPU, 1)],
)
def test_workers_are_the_cores_that_a_rank_has_but_one_on_a_gpu_machine(monkeypatch, cores, ranks, place, expected):
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert resolve_workers("auto", place) == expected
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(max(1, cores // ranks)))
    assert resolve_workers("auto", place) == expected
    assert resolve_workers(3, place) == 3 and resolve_workers(0, place) == 0


@pytest.mark.parametrize(
    ("limit", "expected"), [("400000 100000", 4), ("50000 100000", 1), ("max 100000", 16), ("", 16)]
)
def test_usable_cores_are_those_of_the_affinity_and_of_the_container(monkeypatch, limit, expected):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(device.Path, "read_text", lambda path: limit if path.name == "cpu.max" else "")
    assert usable_cores() == expected


def test_a_constant_is_made_once_for_a_device_and_a_dtype():
    first = constant((0.25, 0.5), CPU)
    assert first.tolist() == [0.25, 0.5] and constant((0.25, 0.5), CPU) is first
    assert constant((0.25, 0.5), CPU, torch.float64).dtype == torch.float64


def test_an_upload_to_a_gpu_comes_from_pinned_memory_and_does_not_wait():
    calls = []

    class Pinned:
        def to(self, place, non_blocking=False):
            calls.append((place, non_blocking))

    class Rows:
        def pin_memory(self):
            return Pinned()

    upload(Rows(), CUDA)
    assert calls == [(CUDA, True)]
    rows = torch.ones(2)
    assert upload(rows, CPU) is rows


def pretend_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
