"""A folder with all that benchmarks/gpu.py needs on a machine that has stock PyTorch and no network.

It holds the project's files (project.tar.gz), the C kernel, small images (images.tar.gz), a wheel of each distribution
that a stock PyTorch image lacks, and manifest.json with the sha256 of each file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path, PurePosixPath

from adco.evaluation.provenance import commit
from adco.utils.errors import UserError, one_line
from adco.utils.files import output_folder, sha256_of
from benchmarks.on_gpu.unpack import IMAGES, MANIFEST, PROJECT

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_MIB = 60
IMAGE_PX, JPEG_QUALITY = 96, 85  # the shorter side
LEFT_OUT = (
    "adco/weights/models/",
    "results/",
    ".ci/",
    "docs/",
    "MODEL_ZOO.md",
    "uv.lock",
)  # what running does not need
STOCK = ("torch", "torchvision", "scikit-learn", "matplotlib", "tensorboard", "PyYAML", "safetensors", "tqdm", "pytest")
NEEDED = ("adco", "pb1-detectron2", "faster-coco-eval")
ALWAYS = ("setuptools", "cloudpickle")  # some versions of STOCK bring them, others not
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def check_data(data: Path) -> None:
    """Raise UserError unless it has train and val folders of classes."""
    for split in ("train", "val"):
        if not (data / split).is_dir():
            raise UserError(f"{data / split}: no such folder; expected train/CLASS/IMAGE and val/CLASS/IMAGE in {data}")


def pack(folder: Path, data: Path | None, python: str) -> str:
    """Write the folder, whole or not at all, in place of an earlier pack; returns what was packed, in words.

    data: images to re-encode; python: the version that it is for, e.g. `3.12`. Raises UserError.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise UserError(f"--python {python}: expected a version such as 3.12")
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty and holds no pack; choose a new folder")
    if data:
        check_data(data)
    output_folder(folder.absolute().parent)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "pack"
        made.mkdir()
        versions = pack_wheels(made, python)
        pack_project(made / PROJECT)
        for kernel in sorted((ROOT / "adco" / "native").glob("_pixels*.so"))[:1]:
            shutil.copyfile(kernel, made / kernel.name)
        count = pack_images(data, made / IMAGES) if data else 0
        mib = check_size(made, folder)
        write_manifest(made, {"python": python, "commit": commit(), "images": count, "versions": versions})
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return (
        f"{folder}: {mib:.1f} MiB for Python {python}: {len(versions)} packages, {count} images, the project. There:\n"
        f"  tar -xf {folder.name}/{PROJECT} && python benchmarks/gpu.py --packed {folder.name} --out OUT"
    )


def check_size(made: Path, folder: Path) -> float:
    """MiB of what was made. Raises UserError, which names `folder` and the largest files, when it is too much."""
    mib = {path.name: path.stat().st_size / 2**20 for path in made.iterdir()}
    if sum(mib.values()) > MOST_MIB:
        largest = sorted(mib.items(), key=lambda item: -item[1])[:5]
        shown = ", ".join(f"{name} {size:.1f}" for name, size in largest)
        raise UserError(f"{folder}: {sum(mib.values()):.1f} MiB, more than {MOST_MIB}: {shown} MiB; give less --data")
    return sum(mib.values())


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """manifest.json: the facts, and each file's sha256 and size."""
    files = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n")


def pack_project(path: Path) -> None:
    """The checkout's files that running needs, as a tar file."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{ROOT}: --pack needs a git checkout of the project, and git") from error
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    with tarfile.open(path, "w:gz") as tar:
        for name in sorted(set(names)):
            if not name.startswith(LEFT_OUT) and (ROOT / name).is_file():
                tar.add(ROOT / name, name)


def pack_images(data: Path, path: Path) -> int:
    """train/CLASS/NAME.jpg and val/CLASS/NAME.jpg, RGB, the shorter side IMAGE_PX at most; returns how many."""
    from adco.data.images import SUFFIXES

    files = [f for s in ("train", "val") for f in sorted((data / s).glob("*/*")) if f.suffix.lower() in SUFFIXES]
    with tarfile.open(path, "w:gz", compresslevel=1) as tar, ThreadPoolExecutor() as pool:
        for file, content in zip(files, pool.map(small_jpeg, files), strict=True):
            member = tarfile.TarInfo(file.relative_to(data).with_suffix(".jpg").as_posix())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return len(files)


def small_jpeg(path: Path) -> bytes:
    """An image file as a JPEG whose shorter side has IMAGE_PX pixels, or what it has where that is less."""
    from PIL import Image

    from adco.data.images import UnreadableImage, decode, read_file

    try:
        image = decode(read_file(path), path)
    except UnreadableImage as error:
        raise UserError(f"{error}; remove it from --data") from error
    factor = min(1.0, IMAGE_PX / min(image.size))
    image = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=JPEG_QUALITY)  # with the usual tables, which the tar file has but once
        return file.getvalue()


def pack_wheels(folder: Path, python: str) -> dict[str, str]:
    """A wheel of each distribution that NEEDED needs and STOCK does not bring: {name: version}. Those of pure Python
    are made of what is installed, compiled ones are downloaded for `python`."""
    omitted = {"adco", *closure(STOCK, python)} - {*ALWAYS}
    wanted = {name: found for name, found in closure((*NEEDED, *ALWAYS), python).items() if name not in omitted}
    compiled = []
    for found in wanted.values():
        if any(file.suffix in (".so", ".pyd") for file in found.files or []):
            compiled.append(f"{found.name}=={found.version}")
        else:
            write_wheel(found, folder)
    if compiled:
        download(compiled, python, folder)
    return {name: found.version for name, found in sorted(wanted.items())}


def closure(names: Sequence[str], python: str) -> dict[str, metadata.Distribution]:
    """The installed ones of these distributions and of all that they need, by normalised name."""
    from packaging.requirements import Requirement

    there = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # not needed here, or listed for developers only
            continue
        needs = map(Requirement, found[name].requires or [])
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate(there)]
    return found


def write_wheel(found: metadata.Distribution, folder: Path) -> Path:
    """An installed distribution of pure Python as a wheel again; what the installation added is left out."""
    name = re.sub(r"[-_.]+", "_", found.name).lower()
    info = f"{name}-{found.version}.dist-info"
    contents = {f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: adco\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    for file in found.files or []:
        parts = PurePosixPath(file).parts
        if ".." in parts or "__pycache__" in parts or file.suffix == ".pyc":
            continue
        if parts[0].endswith(".dist-info"):
            if parts[-1] not in ("METADATA", "top_level.txt", "LICENSE"):
                continue
            parts = (info, parts[-1])
        contents["/".join(parts)] = file.read_binary()
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{name}-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in contents.items():
            wheel.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def download(requirements: Sequence[str], python: str, folder: Path) -> None:
    """Wheels for Linux on x86-64 by whichever pip there is. Raises UserError."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    words = ["download", "--quiet", "--only-binary=:all:", "--no-deps", "--python-version", python, *platforms]
    pips = (
        [sys.executable, "-m", "pip"],
        ["uv", "run", "--no-project", "--with", "pip", "python", "-m", "pip"],
        ["python3", "-m", "pip"],
    )
    for pip in pips:
        if not _succeeds([*pip, "--version"]):
            continue
        done = subprocess.run([*pip, *words, "--dest", str(folder), *requirements], capture_output=True, text=True)
        if done.returncode:
            last = one_line((done.stderr.strip().splitlines() or ["no reason given"])[-1])
            raise UserError(f"pip cannot download {' '.join(requirements)} for Python {python}: {last}")
        return
    raise UserError(f"no pip to download {' '.join(requirements)} with: install pip or uv")


def _succeeds(words: Sequence[str]) -> bool:
    try:
        return not subprocess.run(words, capture_output=True, cwd=tempfile.gettempdir()).returncode
    except OSError:
        return False
