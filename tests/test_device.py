"""adco/device.py: a GPU that is asked for and absent is an error, never a silent CPU run."""

import pytest
import torch

from adco.device import resolve_device
from adco.errors import UserError


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


def test_a_present_gpu_is_taken_by_its_index(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "cpu:0", "mps"])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(UserError, match="choose auto, cpu, cuda"):
        resolve_device(name)


def pretend_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
