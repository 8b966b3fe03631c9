"""The tables of docs/evidence.md, from the plan and the records in results/evidence; what has no record is not run.

python benchmarks/experiments/page.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import yaml

from adco.evaluation.records import Record, Score, load_record
from adco.utils.errors import command
from adco.utils.files import between, write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLAN, PAGE, RESULTS = HERE / "evidence.yaml", ROOT / "docs/evidence.md", ROOT / "results/evidence"
BEGIN, END = "<!-- tables: benchmarks/experiments/page.py writes them -->", "<!-- end of tables -->"
NOT_RUN = "not run"
RANDOM = {"knn": "knn-k20-t0.07@64px.json", "linear": "linear-cached-features@64px.json"}  # of results/random_r18


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
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
    """All tables as Markdown. records: name below the results folder, without suffix -> record."""
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
        made = list(rows) or [(NOT_RUN, *[""] * (len(header) - 1))]
        lines = [" | ".join(header), " | ".join(["---"] * len(header)), *(" | ".join(row) for row in made)]
        parts.append(f"\n### {title}\n\n" + "".join(f"| {line} |\n" for line in lines))
    return "".join(parts) + "\n"


def grid(plan: Mapping, records: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    """A row a trial."""
    for name, method in plan["methods"].items():
        for number, trial in enumerate(method["trials"]):
            record = records.get(f"grid/{name}-{number}")
            cells = (
                (cell(record.scores["knn_top1"]), f"{record.duration_seconds / 60:.0f}") if record else (NOT_RUN, "")
            )
            yield (name, f"`{trial}`", *cells)


def _epochs(records: Mapping[str, Record]) -> list[str]:
    return [f"{kind}, {epoch} ep" for kind, epoch in _columns(records)]


def _columns(records: Mapping[str, Record]) -> list[tuple[str, int]]:
    """Probes and epochs that figure 1's records have."""
    found = {(name.rpartition("-")[2], row["epoch"]) for name, record in records.items()
             if name.startswith("figure1/") for row in record.settings.get("curve", ())}  # fmt: skip
    return sorted(found)


def figure1(plan: Mapping, records: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    """Random weights, then a row a run."""
    known = {kind: records.get(f"random/{kind}") for kind in RANDOM}
    if _columns(records):
        yield (
            "random weights",
            *(cell(at.scores["top1"]) if (at := known[k]) else NOT_RUN for k, _ in _columns(records)),
            "",
        )
    for name, method in plan["methods"].items():
        for seed in range(method["seeds"]):
            run, cells = f"{name}-s{seed}", []
            for kind, epoch in _columns(records):
                record = records.get(f"figure1/{run}-{kind}")
                cells.append(cell(record.scores[f"top1@{epoch}ep"]) if record else NOT_RUN)
            record = records.get(f"figure1/{run}-knn")
            yield (run, *cells, f"{record.settings['pretraining_seconds'] / 60:.0f}" if record else "")


def leads(records: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    """A row a comparison."""
    for name, record in records.items():
        if name.startswith("figure1/lead"):
            for row in record.settings["rows"]:
                score = record.scores[f"lead/{row['probe']}@{row['epoch']}ep"]
                sides = (f"{row['first']:.2f}", f"{row['second']:.2f}")
                yield (str(row["seeds"]), row["probe"], str(row["epoch"]), *sides, cell(score, "+.2f"))


def seconds(records: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    """A row a method or bank."""
    record = records.get("table5/times")
    for key, value in record.scores.items() if record else ():
        kind, _, name = key.partition("/")
        if kind == "seconds_per_epoch":
            share = record.scores.get(f"bank_percent/{name}")
            yield (name, f"{value:.1f}", "" if share is None else f"{share:.1f} %")


def short(plan: Mapping, records: Mapping[str, Record], section: str) -> Iterator[tuple[str, ...]]:
    """A row a short run of the section."""
    for name, words in short_runs(plan, section).items():
        kinds = [records.get(f"{section}/{section}-{name}-s0-{kind}") for kind in ("knn", "linear")]
        yield (words, *(cell(record.scores["top1"]) if record else NOT_RUN for record in kinds))


def short_runs(plan: Mapping, section: str) -> dict[str, str]:
    """Name of each short run -> what it changes, in words."""
    at = plan[section]
    if section == "ablations":
        return {name: f"`{' '.join(change)}`" if change else "none" for name, change in at["changes"].items()}
    return {f"k{size}{'-sym' if both else ''}": f"{size}{', symmetric' if both else ''}"
            for both in at["symmetric"] for size in at["sizes"]}  # fmt: skip


def banks(records: Mapping[str, Record]) -> Iterator[tuple[str, ...]]:
    """A row a bank."""
    record = records.get("figure2/bank")
    for name, value in record.scores.items() if record else ():
        yield (name.partition("/")[2], f"{value:.1f}")


def downstream(records: Mapping[str, Record], folders: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """A row a record, its main scores in one cell."""
    for name, record in records.items():
        folder, _, file = name.partition("/")
        if folder in folders:
            main = {key: score for key, score in record.scores.items() if _is_main(key)}
            yield (file.partition("-voc07")[0], record.protocol, ", ".join(f"{k} {cell(v)}" for k, v in main.items()))


def _is_main(key: str) -> bool:
    return key in ("mAP", "AP", "AP50", "segm/AP") or key.startswith(("mAP/k", "ratio/", "loss_", "last_fifth"))


def cell(score: Score, form: str = ".2f") -> str:
    """A value with its 95% interval, or the deviation over trials."""
    if score.low is not None and score.over != "trials":
        return f"{score:{form}} ({score.low:{form}} to {score.high:{form}})"
    return f"{score:{form}}" if score.std is None else f"{score:{form}} ± {score.std:.2f}"


if __name__ == "__main__":
    sys.exit(main())
