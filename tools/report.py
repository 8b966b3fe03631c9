"""Write the measured rows of MODEL_ZOO.md from the records in results/ (everything else in it stays as it is)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adco.errors import UserError, command
from adco.files import write_text
from adco.model_zoo import as_markdown
from adco.records import load_record

BEGIN, END = "<!-- measured rows: tools/report.py writes them -->\n", "<!-- end of measured rows -->\n"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of MODEL/RECORD.json")
    parser.add_argument("--zoo", type=Path, default=ROOT / "MODEL_ZOO.md", help="the file whose rows are rewritten")
    args = parser.parse_args(argv)
    write_text(args.zoo, with_measured_rows(args.zoo, args.results))
    print(f"wrote {args.zoo}")
    return 0


def with_measured_rows(zoo: Path, results: Path) -> str:
    """The text of `zoo` with the rows between its two markers made anew from the records below `results`."""
    paths = sorted(results.glob("*/*.json"))
    if not paths:
        raise UserError(f"{results}: no records; expected MODEL/RECORD.json below it")
    text = zoo.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{zoo}: expected one line {BEGIN.strip()!r} and one {END.strip()!r}")
    records = {path.relative_to(results.parent).as_posix(): load_record(path) for path in paths}
    records = {path: record for path, record in records.items() if not record.protocol.startswith("benchmark/")}
    before, rest = text.split(BEGIN)
    return before + BEGIN + as_markdown(records) + END + rest.split(END)[1]


if __name__ == "__main__":
    sys.exit(main())
