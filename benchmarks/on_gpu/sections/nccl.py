"""Section 9: the collectives through NCCL with one rank: every call runs on the GPU and returns the right values.

python -m benchmarks.on_gpu.sections.nccl DEVICE FOLDER      the child that fails on purpose
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adco.utils import distributed
from adco.utils.device import resolve_device
from adco.utils.errors import UserError, command
from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.checks import Check, Finding, perform
from benchmarks.on_gpu.sections.correctness import agreement
from benchmarks.on_gpu.sections.short_runs import Steps, small_recipe, steps_of, with_compute, write_images

ROOT = Path(__file__).resolve().parent.parent.parent.parent
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)
PURPOSE = "this rank fails on purpose"
EXIT_SECONDS, LIMIT_SECONDS = 15.0, 60.0  # from the error to the end; for the whole child
COMPILE_SECONDS = 10.0  # what has to be left for it to be tried


def run(context: Context) -> None:
    """The calls first, then training, an error exit and a compiled step. Raises Failure when one fails."""
    device = context.device
    if device.type == "cuda" and not dist.is_nccl_available():
        context.skip("nccl", "this build of torch has no NCCL")
        return
    with tempfile.TemporaryDirectory(dir=context.work) as name:
        folder = Path(name)
        images = write_images(folder / "images", context.small)
        adco, simclr = (with_compute(small_recipe(m, images, context.small), accumulate=2) for m in ("adco", "simclr"))
        alone = {recipe.method: steps_of(recipe, device) for recipe in (adco, simclr)}

        def checks() -> Iterator[Check]:
            yield "exchanges", partial(exchanges, device)
            yield "gradients", partial(gradients, device)
            yield "training", lambda: trained(adco, alone["adco"], device)
            yield "error_exit", partial(error_exit, device, folder)
            compiled = with_compute(simclr, compile=True)
            yield (
                "compiled_training",
                lambda: (
                    trained(compiled, alone["simclr"], device)
                    if device.type == "cuda" and context.left() > COMPILE_SECONDS
                    else Finding(None, {"reason": "compiling takes longer than what is left"})
                ),
            )

        with one_rank(device, folder):
            perform(context, checks())


@contextmanager
def one_rank(device: torch.device, folder: Path) -> Iterator[None]:
    """A process group of this process alone: NCCL on a GPU, else gloo. folder: for the store."""
    join(device, folder)
    try:
        yield
    finally:
        distributed._leave()


def join(device: torch.device, folder: Path) -> None:
    """Initialize the process groups as `distributed.started` does on each of several ranks."""
    backend, store = "nccl" if device.type == "cuda" else "gloo", dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=distributed.TIMEOUT)
    distributed._control = dist.new_group(backend="gloo", timeout=distributed.TIMEOUT)


def exchanges(device: torch.device) -> Finding:
    """On one rank each collective without gradient returns its argument's values and does not change it, for any
    dtype, contiguous or not, with work still queued. `wrong`: the collectives that do not."""
    calls = {
        "all_gather": distributed.all_gather, "all_reduce_sum": distributed.all_reduce_sum,
        "all_reduce_mean": distributed.all_reduce_mean,
        "all_reduce_max": distributed.all_reduce_max, "reduce_scatter_sum": distributed.reduce_scatter_sum,
        "local_shard": distributed.local_shard,
    }  # fmt: skip
    wrong = [
        f"{name} {dtype} {'transposed' if transposed else ''}".rstrip()
        for name, call in calls.items()
        for dtype in DTYPES
        for transposed in (False, True)
        if (name != "all_reduce_mean" or dtype.is_floating_point) and not _is_identity(call, dtype, transposed, device)
    ]
    scalar = torch.tensor(3.0, device=device)
    wrong += [
        f"{name} of a scalar"
        for name in ("all_reduce_sum", "all_reduce_mean", "all_reduce_max")
        if calls[name](scalar).item() != 3
    ]
    answers = [distributed.any_rank(True), distributed.any_rank(False), distributed.all_gather_objects({"rank": 0})]
    wrong += [] if answers == [True, False, [{"rank": 0}]] else ["any_rank or all_gather_objects"]
    wrong += [] if (distributed.rank(), distributed.world_size()) == (0, 1) else ["rank or world_size"]
    return Finding(not wrong, {"wrong": wrong, "backend": dist.get_backend()})


def _is_identity(call: Callable[[Tensor], Tensor], dtype: torch.dtype, transposed: bool, device: torch.device) -> bool:
    expected = torch.arange(256 * 64).view(256, 64).remainder(251).to(dtype)
    expected = expected.t() if transposed else expected
    given = expected.to(device)
    for _ in range(20):  # work on the current stream that a collective has to wait for
        given = (given + 1) - 1
    result = call(given)
    return result.device == given.device and torch.equal(result.cpu(), expected) and torch.equal(given.cpu(), expected)


def gradients(device: torch.device) -> Finding:
    """The collectives with gradient, and DDP: gradients are averaged over the ranks, or accumulated inside
    `gradients_stay_here`."""
    wrong = []
    for name, call in (
        ("gather", distributed.all_gather_with_gradient),
        ("all_reduce_sum", distributed.all_reduce_sum_with_gradient),
    ):
        rows = torch.randn(6, 4, device=device, requires_grad=True)
        weight = torch.randn(6, 4, device=device)
        (call(rows) * weight).sum().backward()
        wrong += [] if torch.equal(rows.grad, weight) else [f"{name}_with_gradient"]
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).to(device)
    network = distributed.parallel(layer)
    wrong += [] if isinstance(network, DistributedDataParallel) else ["parallel"]
    images = torch.randn(3, 6, 4, device=device)
    for number, part in enumerate(images):
        with distributed.gradients_stay_here(network, number < len(images) - 1):
            network(part).square().mean().backward()
    found, layer.weight.grad = layer.weight.grad.clone(), None
    sum(layer(part).square().mean() for part in images).backward()
    wrong += [] if torch.allclose(found, layer.weight.grad, rtol=1e-4, atol=1e-6) else ["gradients_stay_here"]
    return Finding(not wrong, {"wrong": wrong})


def trained(recipe, alone: Steps, device: torch.device) -> Finding:
    """Three steps of two micro-batches with DDP, its `no_sync` and the fused optimizer equal those without ranks."""
    return agreement(steps_of(recipe, device), alone)


def error_exit(device: torch.device, folder: Path) -> Finding:
    """A rank that raises a UserError after a collective ends within seconds with one line and exit code 2. With two
    GPUs another rank waits for it in a collective."""
    ranks = 2 if device.type == "cuda" and torch.cuda.device_count() > 1 else 1
    children = [_child(device, folder, rank, ranks) for rank in range(ranks)]
    try:
        output, errors = children[0].communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding(False, {"error": f"not ended after {LIMIT_SECONDS:.0f} s", "ranks": ranks})
    finally:
        ended = time.time()
        for child in children:
            child.kill()
            child.wait()
    lines = [line for line in errors.splitlines() if line.startswith(("error:", "failed:"))]
    seconds = ended - float(output.split()[-1]) if output.split() else LIMIT_SECONDS
    facts = {"seconds": round(seconds, 2), "code": children[0].returncode, "lines": lines, "ranks": ranks}
    right = children[0].returncode == 2 and lines == [f"error: {PURPOSE}"] and seconds < EXIT_SECONDS
    return Finding(right, facts | ({} if right else {"stderr": errors[-1000:]}))


def _child(device: torch.device, folder: Path, rank: int, ranks: int) -> subprocess.Popen:
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    meeting = folder / "child"
    meeting.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "benchmarks.on_gpu.sections.nccl", device.type, str(meeting)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if rank == 0 else {}
    return subprocess.Popen(words, cwd=ROOT, env=env, text=True, **pipes)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Raise a UserError on rank 0 after a collective; other ranks wait for it in the next one."""
    name, folder = argv or sys.argv[1:]
    with _failing_group(resolve_device(name), Path(folder)) as device:
        distributed.all_reduce_sum(torch.ones(1, device=device)).item()
        if distributed.rank() == 0:
            print(time.time(), flush=True)
            raise UserError(PURPOSE)
        distributed.all_reduce_sum(torch.ones(1, device=device)).item()
    return 0


@contextmanager
def _failing_group(device: torch.device, folder: Path) -> Iterator[torch.device]:
    """As `distributed.started`, also with one rank, for which that makes no process group."""
    if int(os.environ["WORLD_SIZE"]) > 1:
        with distributed.started(device, f"file://{folder}/meeting") as own:
            yield own
        return
    with distributed._aborted_on_error("nccl" if device.type == "cuda" else "gloo"):
        join(device, folder)
        yield device


if __name__ == "__main__":
    sys.exit(main())
