"""Provenance of a number: the machine, the libraries, the commit, and the code that can change it."""

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

from adco.utils.version import __version__

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("adco", "transfer", "detection", "benchmarks")
SUFFIXES = (".py", ".c", ".h", ".yaml")


def code_version(protocol: str) -> str:
    """16 hexadecimal digits that change when the source code that can change this protocol's score changes.

    They are the hash of every file of the protocol's package (`detection/` for detection protocols, `benchmarks/` for
    benchmarks, adco's trainer for `pretrain/`, `transfer/` for all others) and of every module of adco that these
    import, directly or indirectly. The hash is of the contents of the files, so uncommitted changes count. Versions of
    libraries are not part of it; `Record.versions` has them. The result is cached for the process: call this when the
    work starts.

    Args:
        protocol: Name of a protocol, e.g. `voc07-svm/pcl`.

    Returns:
        The digits; `unknown` if the files are not there.
    """
    kind = protocol.partition("/")[0]
    if kind == "pretrain":
        return _code_version(("adco/train/trainer.py",))
    return _code_version(({"detection": "detection", "benchmark": "benchmarks"}.get(kind, "transfer"),))


def source_files(entries: tuple[str, ...], root: Path = ROOT) -> list[Path]:
    """The files of some modules and of everything that they import from the project.

    Args:
        entries: Paths below `root`: modules, or folders, which stand for all files in them.
        root: Root of the project.

    Returns:
        The files, sorted.
    """
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
    """A file, or all files of a folder that are code or configuration."""
    return [path for path in entry.rglob("*") if path.suffix in SUFFIXES] if entry.is_dir() else [entry]


def _files_of_import(module: Path) -> list[Path]:
    """A module's file; for a package its __init__ and the C sources beside it."""
    if not module.is_dir():
        return [module.with_suffix(".py")]
    return [module / "__init__.py", *(path for path in module.iterdir() if path.suffix in (".c", ".h"))]


def _imports(path: Path, root: Path) -> Iterator[str]:
    """The project's modules that a file imports anywhere in it, as paths without suffix below `root`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            for depth in range(1, len(parts) + 1 if parts[0] in PACKAGES else 1):
                place = "/".join(parts[:depth])
                if (root / place).is_dir() or (root / f"{place}.py").is_file():
                    yield place


def command_line() -> str:
    """The command of this process for a shell in the project's root; paths below the root are relative to it."""
    return shlex.join(word.removeprefix(f"{ROOT}/") for word in sys.argv)


def hardware() -> str:
    """Description of the machine: number and name of the GPUs, else the cores in use and the processor's name."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cores = torch.get_num_threads()
    return f"{cores} core{'s' * (cores > 1)} of {_processor()}, no GPU"


def versions() -> dict[str, str]:
    """Versions of this project, of Python and of the libraries that can change a score."""
    import torch
    import torchvision

    return {
        "adco": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def commit() -> str:
    """The commit of the checkout, with `-dirty` if files differ from it; `unknown` for an installed copy."""
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
