"""Write the GPU's tables in docs/speed.md and docs/evidence.md from the records of benchmarks/gpu.py in results/gpu.

python benchmarks/on_gpu/page.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from adco.evaluation.records import Record, load_record
from adco.utils.errors import UserError, command
from adco.utils.files import between, write_text
from benchmarks.on_gpu.sections import SECTIONS

ROOT = Path(__file__).resolve().parent.parent.parent
BEGIN, END = "<!-- tables: benchmarks/on_gpu/page.py writes them -->", "<!-- end of tables of the GPU -->"
NOT_RUN = "Not run: no record of a GPU is there.\n"
PAGES = {  # page: the sections that it shows
    "speed.md": ("machine", "step", "bank", "loader", "end_to_end", "profile", "detection"),
    "evidence.md": ("correctness", "cuda_tests", "input_races", "nccl", "learning"),
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Read the records and rewrite the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results/gpu", help="folder of records (results/gpu)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages (docs)")
    args = parser.parse_args(argv)
    records = {path: load_record(path) for path in sorted(args.results.glob("*.json"))}
    for path, record in records.items():
        if record.protocol != "benchmark/gpu" or record.settings.get("device", "cuda") == "cpu":
            raise UserError(
                f"{path}: not measured on a GPU by benchmarks/gpu.py ({record.protocol}); move it elsewhere"
            )
    pages = {args.docs / name: between(args.docs / name, BEGIN, END, tables(records, sections))
             for name, sections in PAGES.items()}  # fmt: skip
    for page, text in pages.items():
        write_text(page, text)
    print(f"wrote {', '.join(map(str, pages))}: {len(records)} records")
    return 0


def tables(records: Mapping[Path, Record], sections: Sequence[str]) -> str:
    """The tables in Markdown: for each record a heading with its card, and a table for each section; without records a
    line that nothing was run."""
    return "\n" + ("".join(part for item in records.items() for part in _of_record(*item, sections)) or NOT_RUN) + "\n"


def _of_record(path: Path, record: Record, sections: Sequence[str]) -> Iterator[str]:
    link = f"[{path.name}](../results/gpu/{path.name})"
    yield f"**{record.hardware}**, torch {record.versions['torch']}, {record.created[:10]}: {link}\n\n"
    figures, units = {**record.scores, **record.settings["figures"]}, record.settings["units"]
    for section in SECTIONS:
        module = section.module
        if module not in sections:
            continue
        yield f"`{module}`, {section.title}: {_result(record.settings['sections'].get(module))}\n\n"
        rows = [(key, value) for key, value in figures.items() if key.startswith(f"{module}/")]
        if rows:
            yield "| figure | value |\n| --- | --- |\n"
            yield "".join(f"| {key.partition('/')[2]} | {_cell(value, units.get(key, ''))} |\n" for key, value in rows)
            yield "\n"


def _result(known: Mapping | None) -> str:
    """How a section ended, as text."""
    if known is None:
        return "not run"
    return known.get("result", "not finished") + (f" ({known['reason']})" if known.get("reason") else "")


def _cell(value: object, unit: str) -> str:
    if value is None:
        return "not run"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
    return f"{shown} {unit}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
