"""The house's floors: tools and benchmarks above detection and transfer, these above adco; imports go down only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

ROOMS = ("adco", "detection", "transfer", "tools")
ALLOWED = {
    "adco": {"adco"},
    "detection": {"adco", "detection"},
    "transfer": {"adco", "transfer"},
    "tools": {"adco", "detection", "transfer"},  # nobody imports a tool, not even another tool
}


def imported_rooms(path: Path) -> set[str]:
    """The rooms of this project that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the room"
            found.add(node.module.split(".")[0])
    return found & set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        astray = imported_rooms(path) - ALLOWED[room]
        assert not astray, f"{path.relative_to(ROOT)} imports {', '.join(astray)}"


def test_only_detection_knows_detectron2_and_only_one_file_names_torch_distributed():
    for room in ("adco", "transfer", "tools"):
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"^\s*(import|from) detectron2", text, re.MULTILINE), path
            assert path.name == "distributed.py" or "torch.distributed" not in text, path


def test_importing_adco_and_transfer_needs_no_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "import adco.train.trainer, adco.weights.backbone, transfer.voc07, transfer.knn, transfer.linear"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
