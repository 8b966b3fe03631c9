"""Errors of a sound recipe, reported in one line: memory, disk, a loss that is not finite."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from adco.config.schema import PretrainConfig
from adco.train import checkpoint
from adco.utils.errors import Failure, UserError
from adco.utils.files import write_text

NO_MEMORY = (  # in small letters, what torch says on a GPU and on a CPU, then CUDA's libraries and cuDNN
    "out of memory", "can't allocate memory", "not enough memory",
    "_alloc_failed", "allocation_failed", "unable to find an engine", "unable to find a valid cudnn algorithm",
)  # fmt: skip
NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


@contextmanager
def explained(recipe: PretrainConfig, ranks: int, output: Path) -> Iterator[None]:
    """Turn errors of the machine into a UserError: full memory, with what to lower; a file that cannot be written."""
    before, threading.excepthook = threading.excepthook, _but_of_files
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(out_of_memory(recipe, ranks)) from error
    except OSError as error:
        if error.errno not in NO_DISK and not str(error.filename).startswith(str(output)):
            raise
        raise UserError(
            f"{error.filename or output}: cannot be written ({error.strerror}); make room or choose another folder; "
            "the checkpoints before are whole, --resume goes on from them"
        ) from error
    finally:
        threading.excepthook = before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory is full, on the CPU or the GPU.

    cuDNN may report only that no algorithm can run, because none got its workspace.
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)
    )


def _but_of_files(thread: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread prints a traceback when it cannot write, and raises the same error in the main thread."""
    if not isinstance(thread.exc_value, OSError):
        threading.__excepthook__(thread)


def out_of_memory(recipe: PretrainConfig, ranks: int) -> str:
    """The message for a full memory: what needs it, and what to lower."""
    px, parts = sorted({view.px for view in recipe.views}, reverse=True), recipe.compute.accumulate
    return (
        f"out of memory: {recipe.batch // (ranks * parts)} images at a time (batch={recipe.batch}, ranks={ranks}, "
        f"compute.accumulate={parts}) in {len(recipe.views)} views of up to {px[0]} px, a bank of {recipe.bank.size} "
        "rows; raise compute.accumulate or the ranks, or lower batch, views.*.px, bank.size or data.workers"
    )


def diverged(
    output: Path, state: checkpoint.State, step: int, losses: Sequence[float], files: Sequence[str]
) -> Failure:
    """Write `diverged_STEP.json` and `diverged_STEP.pth` for study.

    Args:
        output: Output folder of the run.
        state: The state when it was noticed.
        step: The first step whose loss is not finite.
        losses: The losses from that step on.
        files: The images of that step.

    Returns:
        The error to raise.
    """
    path, kept = output / f"diverged_{step:08d}.json", checkpoint.newest_intact(output)
    content = {
        "step": step,
        "losses": [str(loss) for loss in losses],
        "files": list(files),
        "noticed_after_step": state.step,
        "not_finite_by_then": checkpoint.not_finite(vars(state)),
        "last_good_checkpoint": kept and kept.name,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    checkpoint.write(path.with_suffix(".pth"), state)
    return Failure(
        f"{output}: the loss is {losses[0]} at step {step}; its images are named in {path.name}, the state is in "
        f"{path.stem}.pth, {kept.name if kept else 'no checkpoint'} is the last good one: lower optimizer.lr or raise "
        "contrast.tau, then --resume --force-recipe-change"
    )
