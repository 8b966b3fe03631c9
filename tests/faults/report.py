"""Write docs/reliability.md from the faults that the tests name and the records in results/faults.

ADCO_RECORD_FAULTS=1 uv run pytest -n 0 -m "" tests/faults && uv run python tests/faults/report.py
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from adco.utils.files import write_text  # noqa: E402
from tests import ROOT  # noqa: E402
from tests.faults import table  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
HEAD = """\
# What goes wrong, tried on purpose

Made by `tests/faults/report.py` from the tests in `tests/faults/` and their records; not edited by hand. `tries` is
how often a fault was tried, `survived` how often what must happen did, `lost steps` the training steps that were lost
although a checkpoint of them was finished. Where it says bit-identical, every tensor at the end is compared with the
uninterrupted run's. The runs are real, on folders of real files, with a toy in place of the ResNet; all on CPUs. Not
run: NCCL, several machines, network file systems.

```
uv run pytest tests/faults                                               # the short part
ADCO_RECORD_FAULTS=1 uv run pytest -n 0 -m "" tests/faults               # all of it, with records
uv run python tests/faults/report.py                                     # this page
```

"""


def text() -> str:
    """The page as it should be."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.faults.{path.stem}")
    faults = [entry for _, entry in sorted(table.FAULTS.items())]
    return HEAD + table.markdown(faults)


if __name__ == "__main__":
    write_text(PAGE, text())
    print(f"wrote {PAGE}")
