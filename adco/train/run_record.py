"""The record.json of a finished pretraining run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from adco.config.schema import PretrainConfig
from adco.evaluation.records import Record
from adco.train.logger import read_metrics
from adco.utils.files import sha256_of

REPORTED = ("loss", "accuracy", "knn_top1")  # the last value of each is a score of the record


def write_record(
    output: Path, recipe: PretrainConfig, checkpoint: Path, data: dict[str, object], seconds: float, commit: str
) -> Path:
    """Write `output/record.json` from the run's metrics.

    Args:
        output: Output folder of the run.
        recipe: Its configuration.
        checkpoint: Its last checkpoint.
        data: Name and counts of the images.
        seconds: Duration of the training.
        commit: Of the code that ran.

    Returns:
        The record's path.
    """
    rows = read_metrics(output / "metrics.jsonl")
    return Record(
        protocol=f"pretrain/{recipe.method}",
        scores={name: row[name] for name in REPORTED for row in rows if name in row},
        checkpoint={
            "method": recipe.method,
            "epochs": recipe.epochs,
            "name": checkpoint.name,
            "sha256": sha256_of(checkpoint),
            "arch": recipe.encoder.arch,
            "stem": recipe.encoder.stem,
        },
        data=data,
        settings=asdict(recipe),
        duration_seconds=seconds,
        commit=commit,
    ).write(output / "record.json")
