"""Run a function on several gloo ranks. The processes are started once for each number of ranks and used again."""

from __future__ import annotations

import atexit
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests.waiting import LIMIT_SECONDS

_POOLS: dict[int, list] = {}


def run_ranks(function: Callable, ranks: int, *args) -> list:
    """Call a module-level function(*args) on every rank and return what each gave, rank 0's first."""
    pool = _POOLS.setdefault(ranks, []) or _start(ranks)
    for _, pipe in pool:
        pipe.send((function, args))
    answers = [pipe.recv() if pipe.poll(LIMIT_SECONDS) else (False, "no answer") for _, pipe in pool]
    failed = [text for fine, text in answers if not fine]
    if failed:
        _stop(ranks)  # the ranks may be waiting for each other
        raise AssertionError("\n".join(failed))
    return [answer for _, answer in answers]


def _start(ranks: int) -> list:
    meeting = Path(tempfile.mkdtemp(prefix="ranks")) / "meeting"
    context = mp.get_context("forkserver")  # a clean process that has imported what takes seconds, once for all ranks
    context.set_forkserver_preload(["adco.train.trainer"])
    for rank in range(ranks):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, rank, ranks, str(meeting)), daemon=True)
        process.start()
        _POOLS[ranks].append((process, ours))
    return _POOLS[ranks]


def _stop(ranks: int) -> None:
    for process, _ in _POOLS.pop(ranks, []):
        process.kill()


def _serve(pipe, rank: int, ranks: int, meeting: str) -> None:
    from adco.utils import distributed

    torch.set_num_threads(1)
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(ranks)})
    with distributed.started(torch.device("cpu"), f"file://{meeting}"):
        while True:
            function, args = pipe.recv()
            try:
                pipe.send((True, function(*args)))
            except BaseException:
                pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))


@atexit.register
def _stop_all() -> None:
    for ranks in list(_POOLS):
        _stop(ranks)
