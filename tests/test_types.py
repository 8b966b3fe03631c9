"""The type checker finds no error in the project, and would find one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import ROOT

PINNED = re.search(r"torch==([\d.]+)", (ROOT / "pyproject.toml").read_text())


def errors_of(folder: Path) -> list[str]:
    """What basedpyright finds in a folder with a configuration of its own: one line an error."""
    pytest.importorskip("basedpyright", reason="basedpyright is not installed")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # others: it did not run
    errors = [entry for entry in json.loads(done.stdout)["generalDiagnostics"] if entry["severity"] == "error"]
    return [f"{e['file']}:{e['range']['start']['line'] + 1}: {e['message']} ({e.get('rule')})" for e in errors]


@pytest.mark.skipif(
    PINNED is None or torch.__version__.partition("+")[0] != PINNED[1],
    reason="types are checked against the torch that pyproject.toml pins: other versions are annotated differently",
)
def test_the_project_has_no_type_error():
    errors = errors_of(ROOT)
    assert not errors, f"{len(errors)} type errors\n" + "\n".join(errors[:20])


def test_a_planted_type_error_is_found(tmp_path):
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')
    (tmp_path / "right.py").write_text("def half(x: float) -> float:\n    return x / 2\n")
    (tmp_path / "wrong.py").write_text("from right import half\n\nhalf('two')\n")
    (error,) = errors_of(tmp_path)
    assert "wrong.py:3:" in error and "reportArgumentType" in error
