"""The last chapters of a report: speed benchmarks, all records with their provenance, and unreadable files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adco.report.collect import Item, Study, identity, is_evaluation
from adco.report.elements import Cell, Section, Table, columns, measured, number
from adco.report.result_tables import describe_data, link


def speed_section(study: Study, out: Path) -> Section | None:
    """Speed ratios of the benchmarks to a reference in the same run, with their goals; None without any."""
    heads = columns("benchmark", numeric=False) + columns("times as fast", "goal")
    heads += columns("hardware", "record", numeric=False)
    rows = [row for item in study.items for row in _ratios(item, out)]
    if not rows:
        return None
    caption = "Speed of ours divided by that of the named reference, in one run on one machine; above 1 ours is faster."
    return Section("speed", "Speed", [], [Table("races", "Speed against a reference", heads, rows, caption)])


def _ratios(item: Item, out: Path) -> Iterator[tuple[Cell, ...]]:
    if not item.record.protocol.startswith("benchmark/"):
        return
    goals = item.record.settings.get("goals") or {}
    for name, score in item.record.scores.items():
        if name.startswith("ratio/"):
            benchmark = name.removeprefix("ratio/")
            ratio, goal = measured(score.value, interval=score.interval), number(goals.get(benchmark))
            label = Cell(benchmark.replace("_", " ").replace(".", ": "))
            yield label, ratio, goal, Cell(item.record.hardware), Cell(item.path.stem, href=link(item.path, out))


def records_section(study: Study, out: Path) -> Section:
    """The checkpoints with their hashes, all records with their provenance, and the files that could not be read."""
    blocks = [_checkpoints(study)] if study.models else []
    blocks += [_records(study, out)] if study.items else []
    blocks += [_broken(study, out)] if study.broken else []
    return Section("records", "Provenance", [], blocks)


def _checkpoints(study: Study) -> Table:
    rows = {}
    for item in study.items:
        checkpoint = item.record.checkpoint.pretrained
        if is_evaluation(item.record) and (item.model not in rows or identity(item.record)):
            by = checkpoint.method or checkpoint.source or "not recorded"
            by += f", {checkpoint.epochs} epochs" if checkpoint.epochs else ""
            sha256 = identity(item.record)
            short = Cell(sha256 if ":" in sha256 else sha256[:16], note=sha256)
            rows.setdefault(item.model, (Cell(item.model), Cell(checkpoint.arch or "–"), Cell(by), short))
    heads = columns("model", "network", "pretrained by", "sha256", numeric=False)
    return Table("checkpoints", "Checkpoints", heads, list(rows.values()))


def _records(study: Study, out: Path) -> Table:
    heads = columns("protocol", "model", "data", "hardware", numeric=False) + columns("seconds")
    heads += columns("commit", "made", "record", numeric=False)
    rows = [
        (
            Cell(item.record.protocol),
            Cell(item.model if is_evaluation(item.record) else "–"),
            Cell(describe_data(item.record.data)),
            Cell(item.record.hardware),
            number(item.record.duration_seconds, ",.0f"),
            Cell(_short(item.record.commit), note=item.record.commit),
            Cell(item.record.created[:10]),
            Cell(item.path.name, href=link(item.path, out)),
        )
        for item in sorted(study.items, key=lambda item: (item.record.protocol, item.model))
    ]
    return Table("all-records", "All records", heads, rows)


def _short(commit: str) -> str:
    head, dirty, _ = commit.partition("-")
    return head[:8] + (" + changes" if dirty else "")


def _broken(study: Study, out: Path) -> Table:
    heads = columns("file", "why it could not be read", numeric=False)
    rows = [(Cell(link(path, out)), Cell(reason)) for path, reason in study.broken]
    caption = "This report contains nothing of them."
    return Table("unreadable", "Files that could not be read", heads, rows, caption, prose=True)
