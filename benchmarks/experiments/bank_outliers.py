"""Figure 2 in small: draw the bank among the queries (tools/draw_bank.py), and record its share of outliers.

python benchmarks/experiments/bank_outliers.py CHECKPOINT ... --data IMAGENETTE \
    --output FOLDER/bank.png [draw_bank.py's options]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from adco.evaluation.records import Record
from adco.utils.errors import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run draw_bank.py and write the record; returns its exit code."""
    words, start = list(sys.argv[1:] if argv is None else argv), time.perf_counter()
    done = subprocess.run([sys.executable, "tools/draw_bank.py", *words])
    if done.returncode == 0:
        image, data = (Path(words[words.index(option) + 1]) for option in ("--output", "--data"))
        reported = json.loads(image.with_suffix(".json").read_text())
        record = as_record(reported, data.resolve().name, round(time.perf_counter() - start, 1))
        print(f"wrote {record.write(image.with_name('record.json'))}")
    return done.returncode


def as_record(reported: dict, data: str, seconds: float) -> Record:
    """A record of what draw_bank.py has written beside the image: the percentage of outliers of each bank."""
    scores = {f"outlier_percent/{run['name']}": 100 * run["outlier_share"] for run in reported["runs"]}
    settings = reported | {"interval": "none: every row of the bank is counted, for one view of the images"}
    return Record("pretraining/bank-outliers", scores, {}, {"name": data}, settings, seconds)


if __name__ == "__main__":
    sys.exit(main())
