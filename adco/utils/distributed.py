"""Process groups and collectives, which are the identity on one process. The only file that uses torch.distributed.

A sum over the ranks has the same bits on every rank, and in every run with as many ranks.
"""

from __future__ import annotations

import ctypes
import gc
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adco.utils.errors import Failure, Requeue, UserError, report, set_reported

TIMEOUT = timedelta(minutes=float(os.environ.get("ADCO_TIMEOUT_MINUTES", "15")))
REPORT_SECONDS = 5.0  # for the surviving ranks to report that one has died, on a busy machine too
_LOST = ("gloo/transport", "Connection closed by peer", "Application timeout caused pair closure")
_control = None  # gloo group for messages between CPUs, beside the GPUs' collectives


@contextmanager
def started(device: torch.device, meeting: str = "env://") -> Iterator[torch.device]:
    """Join the other ranks if torchrun started this process, or SLURM's srun with MASTER_ADDR and MASTER_PORT set.

    Args:
        device: `cuda`, for NCCL, or `cpu`, for gloo.
        meeting: Where the ranks find each other, as `torch.distributed.rendezvous` takes it.

    Yields:
        The device of this rank: `cuda:LOCAL_RANK` for `cuda`.

    Raises:
        UserError: There are more ranks than GPUs, or a rank did not come in time.
    """
    global _control
    for name, slurm in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
        if slurm in os.environ and "MASTER_ADDR" in os.environ:
            os.environ.setdefault(name, os.environ[slurm])
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 or _running():
        yield device
        return
    if device.type == "cuda":
        local, visible = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= visible:
            raise UserError(
                f"rank {local} of this machine has no GPU of its own, {visible} are visible; "
                "start at most one rank a GPU (torchrun --nproc-per-node)"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with torchrun, not beside the next run
    own, backend = int(os.environ["RANK"]), "nccl" if device.type == "cuda" else "gloo"
    store = _fresh_store(next(dist.rendezvous(meeting, own, ranks, timeout=TIMEOUT))[0], own, ranks)
    with _aborted_on_error(backend), _report_once(dist.PrefixStore("errors", store), own, ranks):
        dist.init_process_group(backend, store=store, timeout=TIMEOUT, rank=own, world_size=ranks)
        _control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        try:
            yield device
        except BaseException:
            if backend == "gloo":
                _leave()
            raise
        _leave()


def _leave() -> None:
    """Leave the process group once its collectives have ended."""
    global _control
    _control = None
    time.sleep(0.1)  # gloo's threads need the GIL to drop their last tensors; torch 2.6 joins them holding it
    dist.destroy_process_group()


@contextmanager
def _aborted_on_error(backend: str) -> Iterator[None]:
    """Report an error and abort NCCL: `destroy_process_group` would wait for collectives that this rank never joins."""
    try:
        yield
    except BaseException as error:
        if backend == "nccl" and _running() and (world := dist.group.WORLD) is not None:
            if isinstance(error, Exception) and not isinstance(error, Requeue):
                report(error)
            world.abort()
        raise


def restarted() -> bool:
    """Whether torchrun restarted this process after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank() -> int:
    """The rank of this process among those of all machines; 0 on one process."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """The number of processes that train together; 1 on one process."""
    return dist.get_world_size() if _running() else 1


def local_shard(rows: Tensor) -> Tensor:
    """This rank's (N, ...) of the (ranks * N, ...) rows that `all_gather` would return, a view of them."""
    size = rows.shape[0] // world_size()
    return rows[rank() * size : (rank() + 1) * size]


def all_gather(rows: Tensor) -> Tensor:
    """The rows of all ranks. Carries no gradient.

    Args:
        rows: (N, ...), of the same shape on every rank.

    Returns:
        (ranks * N, ...), rank 0's rows first.
    """
    if not _running():
        return rows
    parts = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(parts, rows.detach().contiguous())
    return parts


def all_gather_with_gradient(rows: Tensor) -> Tensor:
    """`all_gather` whose backward pass gives each rank the sum over all ranks of the gradients of its (N, ...) rows."""
    return _Exchange.apply(rows, all_gather, reduce_scatter_sum) if _running() else rows


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the ranks of a tensor of any shape, equal on every rank. Carries no gradient."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean over the ranks of a tensor of any shape, equal on every rank. Carries no gradient."""
    return all_reduce_sum(tensor) / world_size()


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The element-wise maximum over the ranks of a tensor of any shape. Carries no gradient."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def all_reduce_sum_with_gradient(tensor: Tensor) -> Tensor:
    """`all_reduce_sum` whose backward pass gives each rank the sum over all ranks of the gradients of the result."""
    return _Exchange.apply(tensor, all_reduce_sum, all_reduce_sum) if _running() else tensor


def reduce_scatter_sum(rows: Tensor) -> Tensor:
    """The sum over the ranks, of which each rank keeps its part. Carries no gradient.

    Args:
        rows: (ranks * N, ...), of the same shape on every rank.

    Returns:
        (N, ...), rows [rank * N, (rank + 1) * N) of the sum.
    """
    if not _running():
        return rows
    if rows.device.type != "cuda":
        return local_shard(all_reduce_sum(rows))  # gloo has no reduce-scatter
    part = rows.new_empty((rows.shape[0] // world_size(), *rows.shape[1:]))
    dist.reduce_scatter_tensor(part, rows.contiguous())
    return part


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. The CPUs exchange it, without waiting for a GPU."""
    if not _running():
        return flag
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_control)
    return bool(flags.item())


def all_gather_objects(thing: object) -> list:
    """One picklable object of each rank, rank 0's first."""
    if not _running():
        return [thing]
    things: list[Any] = [None] * world_size()
    dist.all_gather_object(things, thing, group=_control)
    return things


def parallel(module: nn.Module) -> nn.Module:
    """The module in DistributedDataParallel, without exchange of BatchNorm's statistics; itself on one process."""
    if not _running():
        return module
    devices = [torch.cuda.current_device()] if next(module.parameters()).is_cuda else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def gradients_stay_here(module: nn.Module, yes: bool) -> AbstractContextManager:
    """If `yes`, gradients of backward passes in the block add up on this rank, to be averaged by the next one after."""
    return module.no_sync() if yes and isinstance(module, DistributedDataParallel) else nullcontext()


def _fresh_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A part of the launcher's store that no earlier attempt has written to.

    torchrun restarts its workers with the same store. A rank that reads the address of one that has died would wait for
    it forever. So rank 0 names a new part, and answers each rank's request for it until all ranks have joined it.
    """
    name, deadline = secrets.token_hex(8), time.monotonic() + TIMEOUT.total_seconds()
    if rank:
        store.set(f"hello/{rank}", name)
        name = store.get(f"part/{name}").decode()
        store.set(f"{name}/met/{rank}", "")
    missing = set(range(1, world_size)) if rank == 0 else set()
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"part/{store.get(f'hello/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"{name}/met/{other}"])}
        if time.monotonic() > deadline:
            raise UserError(f"ranks {sorted(missing)} of {world_size} did not come within {TIMEOUT}; see their logs")
        time.sleep(0.02)
    return dist.PrefixStore(name, store)


@contextmanager
def _report_once(store: dist.Store, rank: int, world_size: int) -> Iterator[None]:
    """Report only the first of the ranks' errors, because the others follow from it, and name a rank that has died."""
    try:
        yield
    except Exception as error:
        peer_lost = isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)
        failure = error if isinstance(error, (UserError, Failure)) else Failure("")
        if failure is not error and not peer_lost:
            set_reported(error, False)
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the other ranks at once; the line comes first
        set_reported(failure, rank != 1)  # if the store was in rank 0, and it is dead
        lost = [0]
        with suppress(RuntimeError):
            set_reported(failure, store.add("reported", 1) > 1)
            cause: BaseException | None = error
            while cause:  # close this rank's connections, which frames keep open and for which the other ranks wait
                traceback.clear_frames(cause.__traceback__)
                cause = cause.__context__
            gc.collect()
            store.set(f"here/{rank}", "")
            lost = _lost_ranks(store, world_size)
        time.sleep(0.2 if rank == 0 else 0.0)  # until the others have read the store for the last time
        if failure is error:
            raise
        who = f"rank {', '.join(map(str, lost))}" if lost else "another rank"
        failure.args = (
            f"{who} of {world_size} died, or hung for {TIMEOUT}: its own log says why; --resume goes on from the last "
            "checkpoint, torchrun --max-restarts does so by itself",
        )
        raise failure from error


def _lost_ranks(store: dist.Store, world_size: int) -> list[int]:
    """The ranks that do not report within REPORT_SECONDS that they have lost a rank as well."""
    silent, deadline = list(range(world_size)), time.monotonic() + REPORT_SECONDS
    while silent and time.monotonic() < deadline:
        silent = [other for other in silent if not store.check([f"here/{other}"])]
        time.sleep(0.05)
    return silent


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, exchange: Callable, exchange_back: Callable) -> Tensor:
        ctx.exchange_back = exchange_back
        return exchange(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.exchange_back(gradient), None, None


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if not _running():
        return tensor
    result = tensor.detach().clone()
    dist.all_reduce(result, operation)
    return result


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
