"""Checkpoints that survive anything: written whole or not at all, verified before use, the last few kept."""

from __future__ import annotations

import copy
import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adco.config.diff import changed_fields
from adco.utils.errors import Failure, UserError
from adco.utils.files import atomic_write, sha256_of, write_text
from adco.weights.readers import load_torch

SCHEMA = 2
_NAME = re.compile(r"checkpoint_(\d{8})\.pth")


@dataclass(frozen=True)
class State:
    """All that training needs to go on at `step` as if it had never stopped.

    There is no random state: randomness is a function of (seed, epoch, sample, view), and the loader's position is the
    step.

    Attributes:
        step: Number of steps that are done.
        recipe: The recipe as plain containers.
        method: State dict of the encoders and the whole bank or queue.
        optimizer, scaler: State dicts.
        data: Fingerprint of the image index.
        bad_images: Path of each unreadable image -> reason.
        seconds: Duration of the training so far.
        sizes: `ImageIndex.sizes`; empty in checkpoints that were written before it was kept.
    """

    step: int
    recipe: dict
    method: dict
    optimizer: dict
    scaler: dict
    data: str
    bad_images: dict[str, str]
    seconds: float
    sizes: str = ""


class Writer:
    """Writes checkpoints on a thread of its own: training goes on while a copy in memory is written.

    As a context manager it has written everything when the block ends. Its own error does not hide one of the block.

    Args:
        folder: Output folder.
        keep: How many checkpoints are kept.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[Path] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with suppress(UserError, Failure) if kind else nullcontext():
            self.wait()

    def save(self, state: State) -> None:
        """Copy the state, and start to write it once the one before is written. Raises the error of that one."""
        self.wait()
        copied = State(**_snapshot(vars(state)))
        self.pending = self.thread.submit(save, self.folder, copied, self.keep)

    def wait(self) -> None:
        """Wait until everything is on the disk. Raises UserError if it could not be written."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()


def save(folder: Path, state: State, keep: int) -> Path:
    """Write `checkpoint_STEP.pth`, then its sha256 beside it, then remove all but the last `keep`. Returns the path.

    A crash at any moment leaves the older checkpoints intact. Raises UserError when it cannot be written, Failure when
    the state is not one to go on from.
    """
    path = folder / f"checkpoint_{state.step:08d}.pth"
    if broken := not_finite(vars(state)):
        raise Failure(
            f"{path}: not written, {broken[0]} holds a NaN or an infinity ({len(broken)} tensors do); the checkpoints "
            "before it are kept: lower optimizer.lr or raise contrast.tau, then --resume --force-recipe-change"
        )
    write(path, state)
    write_text(_digest(path), f"{sha256_of(path)}  {path.name}\n")
    finished = [other for other in _newest_first(folder) if other.name <= path.name]  # a later one was left half done
    for old in finished[keep:]:
        _digest(old).unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def write(path: Path, state: State) -> None:
    """Write the state alone, whole or not at all. Raises UserError when it cannot be written."""
    with atomic_write(path) as file:
        try:
            torch.save({"schema": SCHEMA, **vars(state)}, file)
        except RuntimeError as error:  # torch's zip writer, closing what it could not write, hides the reason
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def not_finite(tree: object, name: str = "") -> list[str]:
    """The names of the tensors in nested containers that hold a NaN or an infinity, e.g. `method.bank.rows`."""
    if isinstance(tree, Tensor):
        return [] if not tree.is_floating_point() or tree.sum(dtype=torch.float64).isfinite() else [name]
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    items = tree.items() if isinstance(tree, dict) else ()
    return [bad for key, value in items for bad in not_finite(value, f"{name}.{key}" if name else str(key))]


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint whose sha256 matches, or None. Damaged ones are passed over, not removed."""
    return next((path for path in _newest_first(folder) if intact(path)), None)


def intact(path: Path) -> bool:
    """Whether the file's sha256 is the one written beside it."""
    try:
        return _digest(path).read_text().split()[0] == sha256_of(path)
    except (OSError, IndexError):
        return False


def load(path: Path) -> State:
    """Read a checkpoint onto the CPU, tensors and plain containers only. Raises UserError for another schema."""
    content: Any = load_torch(path)
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: checkpoint schema {schema}, expected {SCHEMA}; use the version that wrote it")
    return State(**content)


def load_for_resume(path: Path, recipe: dict, data: str, sizes: str, force: bool) -> tuple[State, list[str]]:
    """Read a checkpoint that a run is to go on from.

    Args:
        path: The checkpoint.
        recipe: The run's recipe as plain containers.
        data: `fingerprint` of its image index.
        sizes: `sizes` of its image index.
        force: Accept changes that alter the result.

    Returns:
        The state, and a description of each change since.

    Raises:
        UserError: The recipe or the images changed, and `force` is not set.
    """
    state = load(path)
    changes = changed_fields(state.recipe, recipe)
    if state.data != data:
        changes.append("the images themselves: files were added, removed or renamed since")
    elif state.sizes and state.sizes != sizes:
        changes.append("the images themselves: files were replaced by others of the same names since, their sizes say")
    if changes and not force:
        raise UserError(
            f"{path}: was trained with another recipe ({'; '.join(changes)}); use the same recipe or another "
            "--output-dir, or --force-recipe-change to go on with the new one"
        )
    return state, changes


def _snapshot(tree: Any) -> Any:
    """The same containers with every tensor copied to the CPU, so that later steps do not change it."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _snapshot(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_snapshot(value) for value in tree)
    return copy.copy(tree)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("checkpoint_*.pth") if _NAME.fullmatch(path.name)), reverse=True)


def _digest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
