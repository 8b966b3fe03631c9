"""A pack of pack.py on a machine with stock PyTorch: it is verified, and what is missing is unpacked."""

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
# detectron2 0.6 imports pkg_resources, which setuptools 81 no longer has: where it runs, these come before the image's.
IN_FRONT, SECTIONS_WITH_DETECTRON2 = "setuptools", ("cuda_tests", "detection")


@dataclass(frozen=True)
class Unpacked:
    """A pack that was unpacked: the folders with modules, the images (None: there are none), the tree's commit."""

    site: Path
    front: Path
    images: Path | None
    commit: str

    def python_path(self, section: str) -> list[Path]:
        """The folders that a section finds modules in, after the project."""
        return [self.front, self.site] if section in SECTIONS_WITH_DETECTRON2 else [self.site]


def unpack(folder: Path, work: Path) -> Unpacked:
    """Verify the pack and unpack it below `work`, unless this very pack already is. Raises UserError."""
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
    """The manifest, once every file has the sha256 that it names. Raises UserError."""
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
    """The wheels that fit this Python; says which do not."""
    here = "{}.{}".format(*sys.version_info)
    fit = [name for name in wheels if manifest["python"] == here or name.endswith("-none-any.whl")]
    if len(fit) < len(wheels):
        others = ", ".join(sorted(set(wheels) - set(fit)))
        print(f"packed for Python {manifest['python']}, this is {here}: not used: {others}", flush=True)
    return fit


def is_missing(wheel: Path) -> bool:
    """Whether this Python lacks one of the wheel's modules. detectron2 always counts as missing: this project is tried
    with the packed release."""
    with zipfile.ZipFile(wheel) as file:
        top = {PurePosixPath(name).parts[0].partition(".")[0] for name in file.namelist() if ".dist-info/" not in name}
    modules = [name for name in top if name.isidentifier()]
    return "detectron2" in modules or any(importlib.util.find_spec(name) is None for name in modules)


def put(folder: Path, identity: Mapping[str, str], fill: Callable[[Path], object]) -> Path:
    """Make the folder with `fill`, whole or not at all, unless it was made of the same files."""
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
    """Put the packed C kernel where adco.data.native looks for it, if none there can be loaded."""
    native = ROOT / "adco" / "native"
    if packed and not any(map(_loads, native.glob("_pixels*.so"))):
        with atomic_write(native / packed[0].name) as file:
            file.write(packed[0].read_bytes())


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True
