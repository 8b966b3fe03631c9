"""Write a folder with all that benchmarks/gpu.py needs on a machine with a stock PyTorch and no network.

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
# Not needed to run the benchmark.
LEFT_OUT = ("adco/weights/models/", "results/", ".ci/", "docs/", "MODEL_ZOO.md", "uv.lock")
STOCK = ("torch", "torchvision", "scikit-learn", "matplotlib", "tensorboard", "PyYAML", "safetensors", "tqdm", "pytest")
NEEDED = ("adco", "pb1-detectron2", "faster-coco-eval")
ALWAYS = ("setuptools", "cloudpickle")  # only some versions of STOCK have them
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def check_data(data: Path) -> None:
    """Raise UserError unless it has train and val folders of classes."""
    for split in ("train", "val"):
        if not (data / split).is_dir():
            raise UserError(f"{data / split}: no such folder; expected train/CLASS/IMAGE and val/CLASS/IMAGE in {data}")


def pack(folder: Path, data: Path | None, python: str) -> str:
    """Write a pack, completely or not at all; it replaces an earlier one.

    Args:
        folder: Where it is written.
        data: A folder with train/CLASS and val/CLASS, whose images are re-encoded; None for no images.
        python: The version of Python that it is for, e.g. `3.12`.

    Returns:
        A description of the pack, and how to use it.

    Raises:
        UserError: For a wrong version, or a folder that has other content.
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
        for kernel in sorted((ROOT / "adco" / "data" / "native").glob("_pixels*.so"))[:1]:
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
    """The size of a pack in MiB. Raises UserError, which names `folder` and the largest files, when it is too large."""
    mib = {path.name: path.stat().st_size / 2**20 for path in made.iterdir()}
    if sum(mib.values()) > MOST_MIB:
        largest = sorted(mib.items(), key=lambda item: -item[1])[:5]
        shown = ", ".join(f"{name} {size:.1f}" for name, size in largest)
        raise UserError(f"{folder}: {sum(mib.values()):.1f} MiB, more than {MOST_MIB}: {shown} MiB; give less --data")
    return sum(mib.values())


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write manifest.json: the facts, and each file's sha256 and size."""
    files = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n")


def pack_project(path: Path) -> None:
    """Write the files of the checkout that are needed to a tar file. Raises UserError where there is no checkout."""
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
    """Write train/CLASS/NAME.jpg and val/CLASS/NAME.jpg, at most IMAGE_PX on the shorter side; returns how many."""
    from adco.data.images import SUFFIXES

    files = [f for s in ("train", "val") for f in sorted((data / s).glob("*/*")) if f.suffix.lower() in SUFFIXES]
    with tarfile.open(path, "w:gz", compresslevel=1) as tar, ThreadPoolExecutor() as pool:
        for file, content in zip(files, pool.map(small_jpeg, files), strict=True):
            member = tarfile.TarInfo(file.relative_to(data).with_suffix(".jpg").as_posix())
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return len(files)


def small_jpeg(path: Path) -> bytes:
    """An image file as a JPEG with at most IMAGE_PX pixels on the shorter side. Raises UserError if unreadable."""
    from PIL import Image

    from adco.data.images import UnreadableImage, decode, read_file

    try:
        image = decode(read_file(path), path)
    except UnreadableImage as error:
        raise UserError(f"{error}; remove it from --data") from error
    factor = min(1.0, IMAGE_PX / min(image.size))
    image = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=JPEG_QUALITY)  # with the usual tables, which compress well
        return file.getvalue()


def pack_wheels(folder: Path, python: str) -> dict[str, str]:
    """Write a wheel of each distribution that NEEDED requires and STOCK does not.

    Wheels of pure Python are made from the installed files, compiled ones are downloaded for `python`.

    Returns:
        The version of each by its name.
    """
    omitted = {"adco", *closure(STOCK, python)} - {*ALWAYS}
    wanted = {name: dist for name, dist in closure((*NEEDED, *ALWAYS), python).items() if name not in omitted}
    compiled = []
    for dist in wanted.values():
        if any(file.suffix in (".so", ".pyd") for file in dist.files or []):
            compiled.append(f"{dist.name}=={dist.version}")
        else:
            write_wheel(dist, folder)
    if compiled:
        download(compiled, python, folder)
    return {name: dist.version for name, dist in sorted(wanted.items())}


def closure(names: Sequence[str], python: str) -> dict[str, metadata.Distribution]:
    """These distributions and all that they require, as far as they are installed, by normalised name."""
    from packaging.requirements import Requirement

    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    distributions: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in distributions:
            continue
        try:
            distributions[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # not needed here, or listed for developers only
            continue
        needs = map(Requirement, distributions[name].requires or [])
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate(environment)]
    return distributions


def write_wheel(dist: metadata.Distribution, folder: Path) -> Path:
    """Write a wheel of an installed distribution of pure Python, without the files that its installation added."""
    name = re.sub(r"[-_.]+", "_", dist.name).lower()
    info = f"{name}-{dist.version}.dist-info"
    contents = {f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: adco\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    for file in dist.files or []:
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
    path = folder / f"{name}-{dist.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in contents.items():
            wheel.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def download(requirements: Sequence[str], python: str, folder: Path) -> None:
    """Download wheels for Linux on x86-64 with the first pip that works. Raises UserError."""
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
