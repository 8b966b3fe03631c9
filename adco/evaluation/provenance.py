"""Where a number came from: the machine, the libraries, the commit, and the code that could have moved it."""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ("adco", "transfer", "detection", "benchmarks")
SUFFIXES = (".py", ".c", ".h", ".yaml")


def code_version(protocol: str) -> str:
    """16 hexadecimal digits that change when the source that can move this protocol's score changes.

    It is the hash of every file of the protocol's room (`detection/` for detection protocols, `benchmarks/` for
    benchmarks, adco's trainer for `pretrain/`, `transfer/` for all others) and of every module of adco that these
    import, directly or not: what merely draws a report does not count. It says what the files hold, so a dirty tree
    never passes for the commit it began at. Libraries are not in it: `Record.versions` has them. Computed once a
    process, so call it as the work begins. `unknown` where the files are not there.
    """
    kind = protocol.partition("/")[0]
    if kind == "pretrain":
        return _code_version(("adco/train/trainer.py",))
    return _code_version(({"detection": "detection", "benchmark": "benchmarks"}.get(kind, "transfer"),))


def source_files(entries: tuple[str, ...], root: Path = ROOT) -> list[Path]:
    """The entries (modules, or folders with everything in them) and what they import of the project, sorted."""
    found: set[Path] = set()
    waiting = [path for entry in entries for path in _files_of(root / entry)]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        if path.suffix == ".py":
            waiting += [file for module in _imports(path, root) for file in _files_of_import(root / module)]
    return sorted(found)


@functools.cache
def _code_version(entries: tuple[str, ...], root: Path = ROOT) -> str:
    files = source_files(entries, root)
    if not files:
        return "unknown"
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _files_of(entry: Path) -> list[Path]:
    """A file, or everything in a folder that is code or read by code."""
    return [path for path in entry.rglob("*") if path.suffix in SUFFIXES] if entry.is_dir() else [entry]


def _files_of_import(module: Path) -> list[Path]:
    """A module's file; a package's __init__ and, of one inside a room, the C sources beside it."""
    if not module.is_dir():
        return [module.with_suffix(".py")]
    return [module / "__init__.py", *(path for path in module.iterdir() if path.suffix in (".c", ".h"))]


def _imports(path: Path, root: Path) -> Iterator[str]:
    """The project's own modules that a file imports anywhere in it, as paths without suffix below `root`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            for depth in range(1, len(parts) + 1 if parts[0] in ROOMS else 1):
                place = "/".join(parts[:depth])
                if (root / place).is_dir() or (root / f"{place}.py").is_file():
                    yield place


def command_line() -> str:
    """The command of this process, as it can be copied from the project's root: paths below that are relative to it."""
    return shlex.join(word.removeprefix(f"{ROOT}/") for word in sys.argv)


def hardware() -> str:
    """The machine in words: the GPUs' names, else the processor and how many cores may be used."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cores = torch.get_num_threads()
    return f"{cores} core{'s' * (cores > 1)} of {_processor()}, no GPU"


def versions() -> dict[str, str]:
    """Versions of the libraries that can move a score."""
    import torch
    import torchvision

    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}


def commit() -> str:
    """The checkout's commit, `-dirty` when files differ from it; `unknown` for an installed copy."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=10,
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
