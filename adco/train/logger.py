"""What a run logs: JSONL, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from adco.utils import distributed
from adco.utils.errors import UserError
from adco.utils.files import write_text


class Logger:
    """Writes scalars and warnings to `metrics.jsonl`, TensorBoard and, if asked for, Weights & Biases.

    Ranks other than 0 write nothing.

    Args:
        folder: Output folder of the run.
        step: Number of steps that are done; on resume, later rows are dropped.
        wandb: Whether to log to Weights & Biases.
        settings: The recipe, for its page there.

    Raises:
        UserError: `wandb` is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int, wandb: bool = False, settings: Mapping | None = None):
        self.path, self.writes = folder / "metrics.jsonl", distributed.rank() == 0
        if wandb and importlib.util.find_spec("wandb") is None:
            raise UserError(
                "recipe: monitor.wandb=true, but wandb is not installed; pip install wandb, or set it false"
            )
        if not self.writes:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.run = _wandb_run(folder, settings) if wandb else None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one row; each key becomes a curve."""
        if not self.writes:
            return
        self._append({"step": step, **scalars})
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)
        if self.run:
            self.run.log({"step": step, **scalars})

    def warn(self, step: int, text: str) -> None:
        """Print a line on stderr beside the progress bar, and keep it as a row with the key `text`."""
        if not self.writes:
            return
        tqdm.write(f"step {step}: {text}", file=sys.stderr)
        self._append({"step": step, "text": text})
        self.board.add_text("text", text, step)
        if self.run:
            self.run.alert("adco", f"step {step}: {text}")

    def close(self) -> None:
        """Flush TensorBoard and W&B."""
        if self.writes:
            self.board.close()
            if self.run:
                self.run.finish()

    def _append(self, row: dict[str, float | str]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a crash is left out, an absent file has none."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _wandb_run(folder: Path, settings: Mapping | None):
    """A W&B run that a resumed training goes on with: its id is kept in the folder."""
    import wandb  # pyright: ignore[reportMissingImports]  (an option)

    note = folder / "wandb_id"
    if not note.is_file():
        write_text(note, secrets.token_hex(4))
    run = wandb.init(
        project="adco", name=folder.name, dir=folder, id=note.read_text(), resume="allow", config=dict(settings or {})
    )
    run.define_metric("*", step_metric="step")  # W&B's own count cannot go back to a checkpoint
    return run
