"""Unusual and broken images, and helpers for tests with them: no root rights, a bound on memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import multiprocessing
import os
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (48, 40)
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def photo(seed: int, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def huge_jpeg() -> bytes:
    """A small JPEG whose header says 20,000 x 20,000."""
    content = bytearray(encoded(photo(0), "JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    return bytes(content)


@functools.cache
def huge_png() -> bytes:
    """20,000 x 20,000 true pixels of one bit each, which would be 1.6 GB as RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row, packer = bytes(1 + 20_000 // 8), zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for _ in range(20_000)) + packer.flush()
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@functools.cache
def text_bomb() -> bytes:
    """A PNG whose comment unpacks to 100 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", " " * 100_000_000, zip=True)
    return encoded(photo(0), "PNG", pnginfo=info)


def frames() -> list[Image.Image]:
    return [photo(seed) for seed in (1, 2, 3)]


# name -> content; every reader can read these
SOUND: dict[str, Callable[[], bytes]] = {
    "plain.jpg": lambda: encoded(photo(0), "JPEG"),
    "progressive.jpg": lambda: encoded(photo(0), "JPEG", progressive=True),
    "four-colours.jpg": lambda: encoded(photo(0, mode="CMYK"), "JPEG"),
    "grey.jpg": lambda: encoded(photo(0, mode="L"), "JPEG"),
    "sixteen-bits.png": lambda: encoded(Image.fromarray(np.asarray(photo(0, mode="L")).astype(np.uint16) << 8), "PNG"),
    "sixteen-bits.tif": lambda: encoded(Image.fromarray(np.asarray(photo(0, mode="L")).astype(np.uint16) << 8), "TIFF"),
    "transparent.png": lambda: encoded(photo(0, mode="RGBA"), "PNG"),
    "palette.png": lambda: encoded(photo(0, mode="P"), "PNG"),
    "animated.png": lambda: encoded(frames()[0], "PNG", save_all=True, append_images=frames()[1:]),
    "animated.webp": lambda: encoded(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]),
    "one-pixel.png": lambda: encoded(photo(0, (1, 1)), "PNG"),
    "one-pixel.jpg": lambda: encoded(photo(0, (1, 1)), "JPEG"),
    "one-row.png": lambda: encoded(photo(0, (9000, 1)), "PNG"),
    "one-column.jpg": lambda: encoded(photo(0, (1, 9000)), "JPEG"),
    "a-png.jpg": lambda: encoded(photo(0), "PNG"),
    "a-gif.jpg": lambda: encoded(photo(0, mode="P"), "GIF"),
    "a-jpeg.png": lambda: encoded(photo(0), "JPEG"),
    "trailing-bytes.jpg": lambda: encoded(photo(0), "JPEG") + bytes(5000),
    "two\nlines.jpg": lambda: encoded(photo(0), "JPEG"),
    os.fsdecode(b"caf\xe9.jpg"): lambda: encoded(photo(0), "JPEG"),
}
# name -> (content, a word of the reason); no reader can read these
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty"),
    "cut.jpg": (lambda: encoded(photo(0, (200, 200)), "JPEG")[:-900], "truncated"),
    "cut.png": (lambda: encoded(photo(0, (200, 200)), "PNG")[:9000], "truncated"),
    "head-only.jpg": (lambda: encoded(photo(0), "JPEG")[:160], ""),
    "damaged.png": (lambda: encoded(photo(0), "PNG").replace(b"IDAT", b"IDAU"), ""),
    "page.jpg": (lambda: b"<html>404</html>", "cannot identify"),
    "noise.png": (lambda: np.random.default_rng(0).bytes(5000), "cannot identify"),
    "a-program.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) =\n", "cannot identify"),
    "huge.jpg": (huge_jpeg, "exceeds limit"),
    "huge.png": (huge_png, "exceeds limit"),
    "text-bomb.png": (text_bomb, "Decompressed"),
    "floating.tif": (lambda: encoded(photo(0, mode="F"), "TIFF"), "floating-point"),
    "32-bits.tif": (lambda: encoded(Image.fromarray(np.full((9, 9), 1 << 20, dtype=np.int32)), "TIFF"), "16 bits"),
}


def write_images(folder: Path, contents: dict[str, Callable[[], bytes]]) -> Path:
    """Write files below `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content())
    return folder


def write_broken(folder: Path) -> dict[str, str]:
    """Write every broken image, and entries that are not files; name -> a word of the reason."""
    write_images(folder, {name: content for name, (content, _) in BROKEN.items()})
    reasons = {name: word for name, (_, word) in BROKEN.items()}
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to("absent.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "locked.jpg").write_bytes(encoded(photo(0), "JPEG"))
    (folder / "locked.jpg").chmod(0)
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    more = {"pipe": "regular file", "nowhere": "No such file", "itself": "symbolic links", "device": "regular file"}
    more |= {"locked": "Permission denied", "sparse": "bytes, more than"}
    return reasons | {f"{name}.jpg": word for name, word in more.items()}


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Make this thread obey file permissions, even as root; so do processes that it starts."""
    if os.getuid():
        yield
        return
    libc, head = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, before) == 0
    less[:] = before[:]
    less[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert libc.capset(head, less) == 0
    try:
        yield
    finally:
        libc.capset(head, before)


def peak_mib(work: Callable[[], object], limit_mib: int = 8192) -> float:
    """Run the work in a forked copy of this process and measure its memory.

    Args:
        work: What to run.
        limit_mib: Address space that the copy may add, so that a failing test does not exhaust the machine.

    Returns:
        How much the memory grows at its peak, in MiB.
    """
    receive, send = multiprocessing.Pipe(duplex=False)

    def measured() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        bound = pages * os.sysconf("SC_PAGE_SIZE") + (limit_mib << 20)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = _peak_kib()
        work()
        send.send((_peak_kib() - before) / 1024)

    child = multiprocessing.get_context("fork").Process(target=measured)
    child.start()
    child.join(400)
    if child.is_alive():
        child.kill()
        raise AssertionError("did not end within 400 s")
    assert child.exitcode == 0, f"ended with {child.exitcode}"
    return receive.recv()


def _peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
