"""Write docs/reliability.md from the faults of the tests and the records in results/faults.

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
# Reliability: faults injected on purpose

Written by `tests/faults/report.py` from the tests in `tests/faults/` and their records; not edited by hand. `tries` is
how often a fault was injected, `survived` how often the expected behaviour followed, `lost steps` the training steps
that were lost although a checkpoint of them was finished. Bit-identical: every tensor at the end equals the
uninterrupted run's. The runs use the real trainer on folders of real files, with a small network in place of the
ResNet; all on CPUs. Not run: NCCL, several machines, network file systems.

```
uv run pytest tests/faults                                               # the fast tests
ADCO_RECORD_FAULTS=1 uv run pytest -n 0 -m "" tests/faults               # all tests, with records
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
