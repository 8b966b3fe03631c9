"""Verify a pack on a machine with a stock PyTorch, and unpack what the machine lacks."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adco.utils.errors import UserError, one_line
from adco.utils.files import atomic_write, sha256_of

ROOT = Path(__file__).resolve().parent.parent.parent
MANIFEST, PROJECT, IMAGES = "manifest.json", "project.tar.gz", "images.tar.gz"
# detectron2 0.6 imports pkg_resources, which setuptools 81 no longer has: its sections use the packed setuptools.
IN_FRONT, SECTIONS_WITH_DETECTRON2 = "setuptools", ("cuda_tests", "detection")


@dataclass(frozen=True)
class Unpacked:
    """An unpacked pack.

    Attributes:
        site: The folder with modules that the machine lacks.
        front: The folder with modules that are used instead of the machine's.
        images: The folder with images; None when there are none.
        commit: The commit of the packed project.
    """

    site: Path
    front: Path
    images: Path | None
    commit: str

    def python_path(self, section: str) -> list[Path]:
        """The folders with a section's modules, to be searched after the project."""
        return [self.front, self.site] if section in SECTIONS_WITH_DETECTRON2 else [self.site]


def unpack(folder: Path, work: Path) -> Unpacked:
    """Verify the pack and unpack it below `work`, unless it has been unpacked before. Raises UserError."""
    manifest = verify(folder)
    wheels = usable(manifest, [name for name in manifest["files"] if name.endswith(".whl")])
    digest = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    front = [name for name in wheels if name.startswith(f"{IN_FRONT}-")]
    behind = [name for name in wheels if name not in front and is_missing(folder / name)]
    for name, chosen in (("site", behind), ("front", front)):
        put(work / name, {n: digest[n] for n in chosen}, lambda there, c=chosen: [unzip(folder / n, there) for n in c])
    images = None
    if IMAGES in digest:
        images = put(work / "images", {IMAGES: digest[IMAGES]}, lambda there: untar(folder / IMAGES, there))
    place_kernel([folder / name for name in digest if name.endswith(".so")])
    return Unpacked(work / "site", work / "front", images, str(manifest["commit"]))


def verify(folder: Path) -> dict:
    """Compare every file with its sha256 in the manifest; returns the manifest. Raises UserError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        digests = {str(name): facts["sha256"] for name, facts in manifest["files"].items()}
        manifest["commit"], manifest["python"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: not a pack ({type(error).__name__}: {error}); gpu.py --pack makes one") from error
    for name, digest in digests.items():
        path = folder / name
        if name in (".", "..") or Path(name).name != name or not path.is_file() or sha256_of(path) != digest:
            raise UserError(f"{path}: is not the file that was packed; copy the pack again")
    return manifest


def usable(manifest: Mapping, wheels: Sequence[str]) -> list[str]:
    """The wheels for this version of Python; prints those that are for another."""
    here = "{}.{}".format(*sys.version_info)
    fit = [name for name in wheels if manifest["python"] == here or name.endswith("-none-any.whl")]
    if len(fit) < len(wheels):
        others = ", ".join(sorted(set(wheels) - set(fit)))
        print(f"packed for Python {manifest['python']}, this is {here}: not used: {others}", flush=True)
    return fit


def is_missing(wheel: Path) -> bool:
    """Whether this Python lacks one of the wheel's modules. detectron2 always counts as missing: the packed release is
    the one that this project is tested with."""
    with zipfile.ZipFile(wheel) as file:
        top = {PurePosixPath(name).parts[0].partition(".")[0] for name in file.namelist() if ".dist-info/" not in name}
    modules = [name for name in top if name.isidentifier()]
    return "detectron2" in modules or any(importlib.util.find_spec(name) is None for name in modules)


def put(folder: Path, identity: Mapping[str, str], fill: Callable[[Path], object]) -> Path:
    """Fill a folder, completely or not at all, unless it was filled from the same files before.

    Args:
        folder: The folder.
        identity: The files' sha256 by name.
        fill: Writes the content into the folder that it is given.

    Returns:
        The folder.
    """
    marker = folder / ".unpacked.json"
    text = json.dumps(identity, sort_keys=True)
    if marker.is_file() and marker.read_text() == text:
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        fill(made)
        (made / marker.name).write_text(text)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return folder


def unzip(path: Path, folder: Path) -> None:
    """Unpack a wheel. Raises UserError for a name that leads out of the folder."""
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.startswith(("/", "\\")) or ":" in name or ".." in re.split(r"[/\\]", name):
                raise UserError(f"{path}: {name!r} leads out of the folder; it is not unpacked")
        file.extractall(folder)


def untar(path: Path, folder: Path) -> None:
    """Unpack a tar file of plain files and folders. Raises UserError for anything else."""
    try:
        with tarfile.open(path) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise UserError(f"{path}: {one_line(error)}; it is not unpacked") from error


def place_kernel(packed: Sequence[Path]) -> None:
    """Copy the packed C kernel to the folder of adco.data.native, unless a kernel there can be loaded."""
    native = ROOT / "adco" / "data" / "native"
    if packed and not any(map(_loads, native.glob("_pixels*.so"))):
        with atomic_write(native / packed[0].name) as file:
            file.write(packed[0].read_bytes())


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True
