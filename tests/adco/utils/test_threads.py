"""Threads that make batches: in order, in bounded memory, and what may be asked for."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from adco.data.batch import Request, RowByRow
from adco.utils.device import parse_workers
from adco.utils.errors import UserError
from adco.utils.threads import AHEAD, at_once, host_memory, in_threads

CPU = torch.device("cpu")


def squares(request: Request) -> RowByRow:
    rows = host_memory((len(request.samples),), torch.int64, CPU)

    def fill(row: int, sample: int, bad: dict[str, str]) -> None:
        rows.numpy()[row] = sample**2
        if sample % 5 == 0:
            bad[str(sample)] = "a fifth"

    return RowByRow(request.samples, fill, lambda bad: (rows, bad))


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_batches_come_in_order_whatever_the_threads_and_the_mode_of_the_caller(workers, mode):
    wanted = [Request(0, np.arange(first, first + 7)) for first in range(0, 70, 7)]
    with mode():
        made = list(in_threads(squares, iter(wanted), workers))
    for request, (rows, bad) in zip(wanted, made, strict=True):
        assert rows.tolist() == [sample**2 for sample in request.samples]
        assert list(bad) == [str(sample) for sample in request.samples if sample % 5 == 0]
    assert torch.equal(at_once(squares(wanted[3]))[0], made[3][0])


def test_no_more_batches_are_started_than_are_ahead():
    start = []

    def begin(request: Request) -> RowByRow:
        start.append(request)
        return squares(request)

    for number, _ in enumerate(in_threads(begin, (Request(0, np.arange(3)) for _ in range(20)), 2)):
        assert len(start) <= number + 1 + AHEAD


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_row_is_raised_where_the_batch_is_asked_for_and_no_thread_stays(workers):
    def begin(request: Request) -> RowByRow:
        def fail(row, sample, bad):
            raise ZeroDivisionError("planted")

        return RowByRow(request.samples, fail, lambda bad: bad)

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="planted"):
        list(in_threads(begin, [Request(0, np.arange(4))], workers))
    assert threading.active_count() == before


def test_memory_for_a_gpu_is_pinned(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch, "empty", lambda shape, **options: asked.update(options, shape=shape))
    host_memory([2, 3], torch.uint8, torch.device("cuda", 1))
    assert asked == {"shape": (2, 3), "dtype": torch.uint8, "pin_memory": True}
    host_memory([2, 3], torch.uint8, CPU)
    assert asked["pin_memory"] is False


@pytest.mark.parametrize(("text", "expected"), [("auto", "auto"), ("0", 0), ("12", 12)])
def test_workers_are_auto_or_a_number(text, expected):
    assert parse_workers(text) == expected


@pytest.mark.parametrize("text", ["-1", "many", "", "1.5", "AUTO", "²"])
def test_other_workers_are_an_error(text):
    with pytest.raises(UserError, match="--workers .*: expected auto or a number of threads, at least 0"):
        parse_workers(text)
