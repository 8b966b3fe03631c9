"""Result records: one JSON file per measured row. Reports and MODEL_ZOO.md are made from these alone."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

from adco.errors import UserError
from adco.files import write_text

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """What was measured, under which protocol, on what, by what.

    protocol: the benchmark and protocol by name, e.g. `voc07-svm/pcl`, `knn/k20-t0.07`, `detection/smoke_voc_R_18_C4`
    scores: metric name -> value; fractions are given in percent, as papers do
    checkpoint: {name, sha256, arch, source, ...} of what was judged
    data: {name, fingerprint, counts...} of what it was judged on
    settings: every choice that can move the score (seed, k, C, image size, norm, iterations ...)
    """

    protocol: str
    scores: dict[str, float]
    checkpoint: dict[str, object]
    data: dict[str, object]
    settings: dict[str, object] = field(default_factory=dict)
    duration_seconds: float = 0.0
    hardware: str = field(default_factory=lambda: hardware())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    commit: str = field(default_factory=lambda: commit())
    command: str = field(default_factory=lambda: shlex.join(sys.argv))
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    def write(self, path: Path) -> Path:
        """Write the record as JSON, atomically, and return the path."""
        write_text(path, json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")
        return Path(path)


def load_record(path: Path) -> Record:
    """Read a record. Raises UserError when it is not one or comes from a newer version."""
    try:
        content = json.loads(Path(path).read_text())
        found = content["schema"]
        if found > SCHEMA:
            raise UserError(f"{path}: record schema {found} is newer than {SCHEMA}; update this project")
        return Record(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a result record ({error})") from error


def hardware() -> str:
    """The machine in words: the GPUs' names, else the processor and how many cores may be used."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} cores of {_processor()}, no GPU"


def versions() -> dict[str, str]:
    """Versions of the libraries that can move a score."""
    import torchvision

    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}


def commit() -> str:
    """The checkout's commit, `-dirty` when files differ from it; `unknown` for an installed copy."""
    root = Path(__file__).resolve().parent.parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
