"""The report's last chapters: speed races, every record with what it was made by, and files that could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adco.report.collect import Item, Study, identity, is_evaluation
from adco.report.elements import Cell, Column, Section, Table, measured
from adco.report.result_tables import data_in_words, link


def speed_section(study: Study, out: Path) -> Section | None:
    """Ratios of the benchmarks, each against a reference in the same run, beside the goal they were given."""
    columns = [Column("race", numeric=False), Column("times as fast"), Column("goal")]
    columns += [Column("hardware", numeric=False), Column("record", numeric=False)]
    rows = [row for item in study.items for row in _races(item, out)]
    if not rows:
        return None
    caption = "Each ratio is ours to the reference named, in one run on one machine; above 1 ours is the faster."
    return Section("speed", "Speed", [], [Table("races", "Races", columns, rows, caption)])


def _races(item: Item, out: Path) -> Iterator[tuple[Cell, ...]]:
    if not item.record.protocol.startswith("benchmark/"):
        return
    goals = item.record.settings.get("goals") or {}
    for name, score in item.record.scores.items():
        if name.startswith("ratio/"):
            race = name.removeprefix("ratio/")
            goal = goals.get(race)
            wanted = Cell("–") if goal is None else Cell(f"{goal:.2f}", value=float(goal))
            words = race.replace("_", " ").replace(".", ": ")
            yield (
                Cell(words), measured(score.value, low=score.low, high=score.high), wanted, Cell(item.record.hardware),
                Cell(item.path.stem, href=link(item.path, out)),
            )  # fmt: skip


def records_section(study: Study, out: Path) -> Section:
    """The checkpoints by hash, every record by what made it, and what could not be read."""
    blocks = [_checkpoints(study)] if study.models else []
    blocks += [_records(study, out)] if study.items else []
    blocks += [_broken(study, out)] if study.broken else []
    return Section("records", "Where the numbers come from", [], blocks)


def _checkpoints(study: Study) -> Table:
    columns = [Column(name, numeric=False) for name in ("model", "network", "pretrained by", "sha256")]
    rows = {}
    for item in study.items:
        checkpoint = item.record.checkpoint.pretrained
        if is_evaluation(item.record) and (item.model not in rows or identity(item.record)):
            by = checkpoint.method or checkpoint.source or "not recorded"
            epochs = f", {checkpoint.epochs} epochs" if checkpoint.epochs else ""
            sha256 = identity(item.record)
            short = sha256 if ":" in sha256 else sha256[:16]
            cells = Cell(item.model), Cell(checkpoint.arch or "–"), Cell(by + epochs), Cell(short, note=sha256)
            rows.setdefault(item.model, cells)
    return Table("checkpoints", "Checkpoints", columns, list(rows.values()))


def _records(study: Study, out: Path) -> Table:
    names = ("protocol", "model", "data", "hardware", "seconds", "commit", "made", "record")
    columns = [Column(name, numeric=name == "seconds") for name in names]
    rows = [
        (
            Cell(item.record.protocol),
            Cell(item.model if is_evaluation(item.record) else "–"),
            Cell(data_in_words(item.record.data)),
            Cell(item.record.hardware),
            Cell(f"{item.record.duration_seconds:,.0f}", value=item.record.duration_seconds),
            Cell(_short(item.record.commit), note=item.record.commit),
            Cell(item.record.created[:10]),
            Cell(item.path.name, href=link(item.path, out)),
        )
        for item in sorted(study.items, key=lambda item: (item.record.protocol, item.model))
    ]
    return Table("all-records", "All records", columns, rows)


def _short(commit: str) -> str:
    head, dirty, _ = commit.partition("-")
    return head[:8] + (" + changes" if dirty else "")


def _broken(study: Study, out: Path) -> Table:
    columns = [Column("file", numeric=False), Column("why it could not be read", numeric=False)]
    rows = [(Cell(link(path, out)), Cell(reason)) for path, reason in study.broken]
    return Table(
        "unreadable", "Files that could not be read", columns, rows, "Nothing of them is in this report.", prose=True
    )
