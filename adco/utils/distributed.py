"""Ranks and what they exchange; the identity on one process. The only file that names torch.distributed.

A sum over the ranks is the same bits on every rank, and the same in every run with as many ranks.
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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adco.utils.errors import Failure, Requeue, UserError, report

TIMEOUT = timedelta(minutes=float(os.environ.get("ADCO_TIMEOUT_MINUTES", "15")))
MOMENT_SECONDS = 5.0  # in which the ranks that still live notice that one does not, on a busy machine too
_LOST = ("gloo/transport", "Connection closed by peer", "Application timeout caused pair closure")
_control = None  # gloo group for what the CPUs say to each other beside a GPU's collectives


@contextmanager
def started(device: torch.device, meeting: str = "env://") -> Iterator[torch.device]:
    """Join the other ranks when torchrun, or SLURM's srun with MASTER_ADDR and MASTER_PORT set, started this process.

    Yields the device of this rank, `cuda:LOCAL_RANK` for `cuda`; leaves at the end. NCCL on GPUs, gloo on CPUs. Raises
    UserError.
    """
    global _control
    for name, slurm in (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID")):
        if slurm in os.environ and "MASTER_ADDR" in os.environ:
            os.environ.setdefault(name, os.environ[slurm])
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _running():
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"rank {local} of this machine has no GPU of its own, {torch.cuda.device_count()} are visible; "
                "start at most one rank a GPU (torchrun --nproc-per-node)"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    _end_with_the_launcher()
    who = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    store, *_ = next(dist.rendezvous(meeting, who["rank"], who["world_size"], timeout=TIMEOUT))
    backend, store = "nccl" if device.type == "cuda" else "gloo", _fresh(store, **who)
    with _aborted_on_error(backend), _one_voice(dist.PrefixStore("voice", store), **who):
        dist.init_process_group(backend, store=store, timeout=TIMEOUT, **who)
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
    """Abort NCCL on an error, after reporting it: `destroy_process_group` would wait for collectives that a rank which
    has failed will never join, until they time out, and no line would be printed before."""
    try:
        yield
    except BaseException as error:
        if backend == "nccl" and _running():
            if isinstance(error, Exception) and not isinstance(error, Requeue):
                report(error)
            dist.group.WORLD.abort()
        raise


def restarted() -> bool:
    """Whether torchrun started this process anew after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank() -> int:
    """This process's number among all ranks of all machines, 0 on one process."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """How many processes train together, 1 on one process."""
    return dist.get_world_size() if _running() else 1


def local_shard(rows: Tensor) -> Tensor:
    """This rank's N of the (ranks * N, ...) rows that `all_gather` would give."""
    size = rows.shape[0] // world_size()
    return rows[rank() * size : (rank() + 1) * size]


def all_gather(rows: Tensor) -> Tensor:
    """(N, ...) on each rank -> (ranks * N, ...), rank 0's rows first. Carries no gradient."""
    if not _running():
        return rows
    parts = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
    dist.all_gather_into_tensor(parts, rows.detach().contiguous())
    return parts


def all_gather_with_gradient(rows: Tensor) -> Tensor:
    """`all_gather` through which each rank's rows receive the gradients of all ranks' losses, summed."""
    return _Gather.apply(rows) if _running() else rows


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the ranks, equal on every rank. Carries no gradient."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean over the ranks, equal on every rank. Carries no gradient."""
    return all_reduce_sum(tensor) / world_size()


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The element-wise maximum over the ranks."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def all_reduce_sum_with_gradient(tensor: Tensor) -> Tensor:
    """`all_reduce_sum` through which each rank's tensor receives the gradients of all ranks' losses, summed."""
    return _Total.apply(tensor) if _running() else tensor


def reduce_scatter_sum(rows: Tensor) -> Tensor:
    """Sum the (ranks * N, ...) rows over the ranks and keep this rank's N (reduce-scatter)."""
    if not _running():
        return rows
    if rows.device.type != "cuda":
        return local_shard(all_reduce_sum(rows))  # gloo has no reduce-scatter
    mine = rows.new_empty((rows.shape[0] // world_size(), *rows.shape[1:]))
    dist.reduce_scatter_tensor(mine, rows.contiguous())
    return mine


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. Between CPUs, without waiting for a GPU."""
    if not _running():
        return flag
    found = torch.tensor([int(flag)])
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_control)
    return bool(found.item())


def all_gather_objects(thing: object) -> list:
    """One plain Python object of each rank, rank 0's first."""
    if not _running():
        return [thing]
    things = [None] * world_size()
    dist.all_gather_object(things, thing, group=_control)
    return things


def parallel(module: nn.Module) -> nn.Module:
    """The module with its gradients averaged over the ranks in the backward pass; itself on one process.

    Every rank builds the same parameters from the same seed, and BatchNorm's running statistics stay each rank's own.
    """
    if not _running():
        return module
    devices = [torch.cuda.current_device()] if next(module.parameters()).is_cuda else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def gradients_stay_here(module: nn.Module, yes: bool) -> AbstractContextManager:
    """Backward passes inside add up on this rank only; the next one outside averages the sum (accumulation)."""
    return module.no_sync() if yes and isinstance(module, DistributedDataParallel) else nullcontext()


def _fresh(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """A part of the launcher's store that no earlier attempt has written to.

    torchrun restarts its workers with the same store, and a rank that reads the address of one that died waits for it
    for ever. So rank 0 names a new part, and answers every hello until all ranks have met there.
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
def _one_voice(store: dist.Store, rank: int, world_size: int) -> Iterator[None]:
    """Of the ranks' errors only the first is reported, the others follow from it. Where a peer is lost it is named."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (UserError, Failure)):
            found = error
        elif isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST):
            found = Failure("")
        else:
            error.reported = False
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others at once; there is a line to say first
        found.reported, lost = rank != 1, [0]  # for where the store lived in a rank 0 that is dead
        with suppress(RuntimeError):
            found.reported = store.add("reported", 1) > 1
            _let_go(error)
            store.set(f"here/{rank}", "")
            lost = _silent(store, world_size)
        time.sleep(0.2 if rank == 0 else 0.0)  # the others' last look into the store
        if found is error:
            raise
        who = f"rank {', '.join(map(str, lost))}" if lost else "another rank"
        found.args = (
            f"{who} of {world_size} died, or hung for {TIMEOUT}: its own log says why; --resume goes on from the last "
            "checkpoint, torchrun --max-restarts does so by itself",
        )
        raise found from error


def _let_go(error: BaseException | None) -> None:
    """Close this rank's connections: what failed holds them open in its frames, and the others wait for an answer."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def _silent(store: dist.Store, world_size: int) -> list[int]:
    """The ranks that do not say within a moment that they, too, lost somebody."""
    silent, deadline = list(range(world_size)), time.monotonic() + MOMENT_SECONDS
    while silent and time.monotonic() < deadline:
        silent = [other for other in silent if not store.check([f"here/{other}"])]
        time.sleep(0.05)
    return silent


def _end_with_the_launcher() -> None:
    """End when torchrun is killed, instead of going on alone beside the run that takes its place (Linux)."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return all_gather(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return reduce_scatter_sum(gradient)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


def _reduced(tensor: Tensor, operation: dist.ReduceOp) -> Tensor:
    if not _running():
        return tensor
    result = tensor.detach().clone()
    dist.all_reduce(result, operation)
    return result


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
