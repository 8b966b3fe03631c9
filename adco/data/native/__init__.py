"""The C kernel: decode the needed part of a JPEG and make every view of it in one call, without the GIL.

The library is built at install where there is a C compiler (setup.py); `available()` says whether it was. JPEGs are
decoded by the libjpeg-turbo that Pillow contains; unusual files are left to Pillow.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_double, c_float, c_int, c_int32, c_size_t, c_void_p
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import PIL

from adco.data.transforms.functional import MEAN, STD
from adco.data.transforms.parameters import ViewParams

OK = 0
_JPEG_CALLS = (
    "jpeg_std_error",
    "jpeg_CreateDecompress",
    "jpeg_mem_src",
    "jpeg_read_header",
    "jpeg_start_decompress",
    "jpeg_crop_scanline",
    "jpeg_skip_scanlines",
    "jpeg_read_scanlines",
    "jpeg_destroy_decompress",
)


class _View(ctypes.Structure):  # struct view of native.h
    _fields_ = (
        ("px", c_int32),
        ("as_float", c_int32),
        ("scale", c_double * 2),
        ("gain", c_float * 3),
        ("offset", c_float * 3),
        ("crops", c_void_p),
        ("factors", c_void_p),
        ("order", c_void_p),
        ("gray", c_void_p),
        ("sigma_px", c_void_p),
        ("solarize", c_void_p),
        ("flip", c_void_p),
        ("out", c_void_p),
    )


class Canvas:
    """The arrays in which the views of one batch are made. Threads may render different rows at the same time.

    Args:
        scales: each view's (least, largest) share of the image's area that a crop takes.
        draws: each view's random numbers.
        out: one contiguous (B, px, px, 3) array a view: float32, normalised by ImageNet's statistics, or uint8 levels.
        full: whether to do colour, blur, solarize and flip too; otherwise crop and resize alone.

    Raises:
        ValueError: an array of `out` has another type or is not contiguous.
    """

    def __init__(
        self, scales: Iterable[Sequence[float]], draws: Sequence[ViewParams], out: Sequence[np.ndarray], full: bool
    ):
        self.out, self._library = out, _kernel()
        self._keep: list[np.ndarray] = []  # C has only pointers to them
        self._views = (_View * len(out))(*map(functools.partial(self._view, full), scales, draws, out))

    def jpeg(self, row: int, file: bytes) -> bool:
        """Make every view of a JPEG file's content in row `row`. Returns False for what is no ordinary, intact JPEG."""
        calls = _jpeg_calls()
        if calls is None:
            return False
        scratch, views = _scratch(), self._views
        return self._library.adco_render_jpeg(calls, scratch, file, len(file), views, len(views), row) == OK

    def pixels(self, row: int, rgb: np.ndarray) -> None:
        """Make every view of a decoded image, (H, W, 3) uint8 RGB, in row `row`. Raises MemoryError."""
        rgb = np.ascontiguousarray(rgb, dtype=np.uint8)
        (height, width, _), views = rgb.shape, self._views
        if self._library.adco_render_pixels(_scratch(), rgb.ctypes.data, width, height, views, len(views), row) != OK:
            raise MemoryError

    def _view(self, full: bool, scale: Sequence[float], draws: ViewParams, out: np.ndarray) -> _View:
        if not out.flags.c_contiguous or out.dtype not in (np.float32, np.uint8):
            raise ValueError("a view is made in a contiguous array of float32 or uint8")
        view = _View(px=out.shape[1], as_float=out.dtype == np.float32, out=out.ctypes.data)
        view.scale[:] = scale
        view.gain[:] = [1 / std for std in STD]
        view.offset[:] = [-mean / std for mean, std in zip(MEAN, STD, strict=True)]
        view.crops = self._pointer(draws.crops, np.float64)
        if full:
            choices = draws.choices
            for name, dtype in (("factors", np.float32), ("order", np.int64), ("sigma_px", np.float32)):
                setattr(view, name, self._pointer(getattr(choices, name).numpy(), dtype))
            for name in ("gray", "solarize", "flip"):
                setattr(view, name, self._pointer(getattr(choices, name).numpy(), np.bool_))
        return view

    def _pointer(self, array: np.ndarray, dtype: type) -> int:
        self._keep.append(np.ascontiguousarray(array, dtype=dtype))
        return self._keep[-1].ctypes.data


def available() -> bool:
    """Whether the library was built when this project was installed."""
    return _library() is not None


def fast_jpeg() -> bool:
    """Whether Pillow's libjpeg-turbo can be used from C; without it Pillow decodes the whole of every JPEG."""
    return available() and _jpeg_calls() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    for path in sorted(Path(__file__).parent.glob("_pixels*.so")):
        try:
            library = ctypes.CDLL(str(path))
            if library.adco_view_size() != ctypes.sizeof(_View):
                continue
        except (OSError, AttributeError):  # built for another kind of machine, or from older sources
            continue
        library.adco_scratch.restype = c_void_p
        library.adco_scratch_free.argtypes = (c_void_p,)
        views = (POINTER(_View), c_int, c_int)
        library.adco_render_jpeg.argtypes = (c_void_p, c_void_p, ctypes.c_char_p, c_size_t, *views)
        library.adco_render_pixels.argtypes = (c_void_p, c_void_p, c_int, c_int, *views)
        return library
    return None


def _kernel() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("the C kernel is not built; ask native.available() first")
    return library


@functools.cache
def _jpeg_calls() -> ctypes.Array | None:
    """The functions of a libjpeg-turbo of the right ABI: the one in Pillow's wheel, else the system's."""
    folder = Path(PIL.__file__).parent
    bundled = [*folder.parent.glob("pillow.libs/libjpeg*"), *folder.glob(".dylibs/libjpeg*")]
    for name in (*map(str, sorted(bundled)), find_library("jpeg")):
        try:
            library = ctypes.CDLL(name or "")
            pointers = [ctypes.cast(getattr(library, call), c_void_p).value for call in _JPEG_CALLS]
        except (OSError, AttributeError):
            continue
        calls = (c_void_p * len(pointers))(*pointers)
        if name and _kernel().adco_jpeg_fits(calls):
            return calls
    return None


class _Scratch(threading.local):
    """A thread's working memory in C, freed when the thread ends."""

    def __init__(self):
        self.pointer = _kernel().adco_scratch()
        if not self.pointer:
            raise MemoryError
        weakref.finalize(threading.current_thread(), _kernel().adco_scratch_free, self.pointer).atexit = False


@functools.cache
def _scratches() -> _Scratch:
    return _Scratch()


def _scratch() -> int:
    return _scratches().pointer
