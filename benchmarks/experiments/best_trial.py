"""Run a command with the overrides of the best trial of a grid.

    python benchmarks/experiments/best_trial.py --trial FOLDER "key=value key=value" ... -- COMMAND ...

A trial is a run of tools/train_adco.py that has ended. The best has the highest kNN top-1; of equal ones it is the
first. The overrides of `--last` come after the chosen ones and take precedence.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from adco.evaluation.records import load_record
from adco.utils.errors import UserError, command


def score_of(folder: Path) -> float:
    """The trial's last kNN top-1 in percent. Raises UserError."""
    path = Path(folder) / "record.json"
    try:
        return load_record(path).scores["knn_top1"]
    except KeyError:
        raise UserError(f"{path}: has no knn_top1; a trial needs probe.every_epochs") from None


def best(trials: Sequence[tuple[Path, str]]) -> tuple[str, ...]:
    """The overrides of the best trial, of (folder, overrides): the highest score, of equal ones the first."""
    return tuple(max(trials, key=lambda trial: score_of(trial[0]))[1].split())


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Choose the best trial and replace this process by the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trial", nargs=2, action="append", required=True, metavar=("FOLDER", "OVERRIDES"))
    parser.add_argument("--last", action="append", default=[], metavar="OVERRIDE", help="set after what was chosen")
    parser.add_argument("words", nargs="+", help="the command, after --")
    args = parser.parse_args(argv)
    chosen = best([(Path(folder), overrides) for folder, overrides in args.trial])
    print(f"chosen: {' '.join(chosen)}", flush=True)
    words = [*args.words, *chosen, *args.last]
    os.execvp(words[0], words)


if __name__ == "__main__":
    sys.exit(main())
