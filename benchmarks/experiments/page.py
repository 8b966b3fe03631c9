"""The tables of docs/evidence.md, from the plan and the records in results/evidence; without a record: not run.

python benchmarks/experiments/page.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import yaml

from adco.evaluation.records import Record, Score, load_record
from adco.report.elements import MISSING
from adco.report.text_table import markdown_table, score_text
from adco.utils.errors import command
from adco.utils.files import between, write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLAN, PAGE, RESULTS = HERE / "evidence.yaml", ROOT / "docs/evidence.md", ROOT / "results/evidence"
BEGIN, END = "<!-- tables: benchmarks/experiments/page.py writes them -->", "<!-- end of tables -->"
Cells = Iterator[tuple[str, ...]]
RANDOM = {"knn": "knn-k20-t0.07@64px.json", "linear": "linear-cached-features@64px.json"}  # of results/random_r18


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the tables of the page from the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of records (results/evidence)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file whose tables are rewritten")
    args = parser.parse_args(argv)
    records = {path.relative_to(args.results).with_suffix("").as_posix(): load_record(path)
               for path in sorted(args.results.rglob("*.json"))}  # fmt: skip
    for kind, file in RANDOM.items():
        if (path := args.results.parent / "random_r18" / file).is_file():
            records[f"random/{kind}"] = load_record(path)
    plan = yaml.safe_load(PLAN.read_text())
    write_text(args.page, between(args.page, BEGIN, END, tables(plan, records)))
    print(f"wrote {args.page}: {len(records)} records")
    return 0


def tables(plan: Mapping, records: Mapping[str, Record]) -> str:
    """All tables as Markdown.

    Args:
        plan: Content of evidence.yaml.
        records: Path below the results folder without suffix -> record.
    """
    parts = []
    for title, header, rows in (
        ("Grid, on held-out training images", ["method", "trial", "kNN top-1", "minutes"], grid(plan, records)),
        ("Figure 1 in small", ["run", *_epochs(records), "minutes"], figure1(plan, records)),
        ("Does AdCo lead MoCo v2?", ["seeds", "probe", "epoch", "AdCo", "MoCo v2", "difference"], leads(records)),
        ("Time of an epoch, side by side", ["method", "seconds", "bank's share"], seconds(records)),
        ("Table 5 in small: size of the bank", ["bank", "kNN top-1", "linear top-1"], short(plan, records, "table5")),
        ("Ablations", ["change", "kNN top-1", "linear top-1"], short(plan, records, "ablations")),
        ("Figure 2 in small", ["bank of", "outliers among its rows, %"], banks(records)),
        ("Downstream", ["what", "protocol", "scores"], downstream(records, ("downstream", "detection"))),
        ("On a GPU", ["what", "protocol", "scores"], downstream(records, ("gpu",))),
    ):
        cells = list(rows) or [(MISSING.text, *[""] * (len(header) - 1))]
        parts.append(f"\n### {title}\n\n{markdown_table(header, cells)}")
    return "".join(parts) + "\n"


def grid(plan: Mapping[str, Any], records: Mapping[str, Record]) -> Cells:
    """A row for each trial."""
    for name, method in plan["methods"].items():
        for number, trial in enumerate(method["trials"]):
            record = records.get(f"grid/{name}-{number}")
            yield (
                name,
                f"`{trial}`",
                _score(record, "knn_top1"),
                f"{record.duration_seconds / 60:.0f}" if record else "",
            )


def _epochs(records: Mapping[str, Record]) -> list[str]:
    return [f"{kind}, {epoch} ep" for kind, epoch in _columns(records)]


def _columns(records: Mapping[str, Record]) -> list[tuple[str, int]]:
    """Probes and epochs that figure 1's records have."""
    curves = [(name.rpartition("-")[2], record.settings.get("curve", ())) for name, record in records.items()
              if name.startswith("figure1/")]  # fmt: skip
    return sorted({(kind, row["epoch"]) for kind, curve in curves for row in curve})


def figure1(plan: Mapping[str, Any], records: Mapping[str, Record]) -> Cells:
    """Random weights, then a row for each run."""
    columns = _columns(records)
    if columns:
        yield "random weights", *(_score(records.get(f"random/{kind}"), "top1") for kind, _ in columns), ""
    for name, method in plan["methods"].items():
        for run in (f"{name}-s{seed}" for seed in range(method["seeds"])):
            cells = [_score(records.get(f"figure1/{run}-{kind}"), f"top1@{epoch}ep") for kind, epoch in columns]
            record = records.get(f"figure1/{run}-knn")
            yield run, *cells, f"{record.settings['pretraining_seconds'] / 60:.0f}" if record else ""


def leads(records: Mapping[str, Record]) -> Cells:
    """A row for each comparison."""
    for name, record in records.items():
        for row in record.settings["rows"] if name.startswith("figure1/lead") else ():
            sides = f"{row['first']:.2f}", f"{row['second']:.2f}"
            difference = score_text(record.scores[f"lead/{row['probe']}@{row['epoch']}ep"], "+.2f")
            yield str(row["seeds"]), row["probe"], str(row["epoch"]), *sides, difference


def seconds(records: Mapping[str, Record]) -> Cells:
    """A row for each method or bank."""
    for name, value in _scores(records, "table5/times", "seconds_per_epoch").items():
        share = _scores(records, "table5/times", "bank_percent").get(name)
        yield name, f"{value:.1f}", "" if share is None else f"{share:.1f} %"


def short(plan: Mapping[str, Any], records: Mapping[str, Record], section: str) -> Cells:
    """A row for each short run of the section."""
    for name, label in short_runs(plan, section).items():
        kinds = [records.get(f"{section}/{section}-{name}-s0-{kind}") for kind in ("knn", "linear")]
        yield label, *(_score(record, "top1") for record in kinds)


def short_runs(plan: Mapping[str, Any], section: str) -> dict[str, str]:
    """Name of each short run -> description of its change."""
    at = plan[section]
    if section == "ablations":
        return {name: f"`{' '.join(change)}`" if change else "none" for name, change in at["changes"].items()}
    return {f"k{size}{'-sym' if both else ''}": f"{size}{', symmetric' if both else ''}"
            for both in at["symmetric"] for size in at["sizes"]}  # fmt: skip


def banks(records: Mapping[str, Record]) -> Cells:
    """A row for each bank."""
    return ((name, f"{value:.1f}") for name, value in _scores(records, "figure2/bank", "outlier_percent").items())


def downstream(records: Mapping[str, Record], folders: Iterable[str]) -> Cells:
    """A row for each record, its main scores in one cell."""
    for name, record in records.items():
        folder, _, file = name.partition("/")
        if folder in folders:
            scores = ", ".join(f"{key} {score_text(score)}" for key, score in record.scores.items() if _is_main(key))
            yield file.partition("-voc07")[0], record.protocol, scores


def _is_main(key: str) -> bool:
    return key in ("mAP", "AP", "AP50", "segm/AP") or key.startswith(("mAP/k", "ratio/", "loss_", "last_fifth"))


def _score(record: Record | None, name: str) -> str:
    return score_text(record.scores[name] if record else None)


def _scores(records: Mapping[str, Record], name: str, kind: str) -> dict[str, Score]:
    """What follows `KIND/` -> score, of one record."""
    scores = records[name].scores if name in records else {}
    return {key.partition("/")[2]: score for key, score in scores.items() if key.startswith(f"{kind}/")}


if __name__ == "__main__":
    sys.exit(main())
