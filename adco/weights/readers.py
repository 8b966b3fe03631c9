"""Reads torch, safetensors and NumPy pickle files without executing anything that is in them, and writes weights."""

from __future__ import annotations

import argparse
import collections
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from adco.utils.errors import UserError
from adco.utils.files import atomic_write

MAX_DEPTH = 100  # of nested dictionaries
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
# Functions and classes that a pickle of arrays refers to, by name alone: their modules differ between NumPy's versions.
_ARRAYS = {
    "_reconstruct": lambda *_: np.zeros(0),  # what NumPy's own call gives; other arguments could reserve memory
    "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
    "scalar": np.float64(0).__reduce__()[0],
    "ndarray": "ndarray",  # only an argument of _reconstruct; calling it would return uninitialised memory
    "dtype": np.dtype,
}
_ITEMSIZE = {  # bytes of an element, by the storage class that torch writes for a tensor
    "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2, "HalfStorage": 2, "BFloat16Storage": 2,
    "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8, "DoubleStorage": 8, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how pickle protocol 2 writes bytes
    ("__builtin__", "bytes"): bytes,
}


class ArraysOnly(pickle._Unpickler):
    """Unpickler of NumPy arrays and plain containers; anything else is refused and not executed.

    It derives from the unpickler written in Python: the one in C reserves as much memory as a file's memo numbers say.
    """

    def find_class(self, module: str, name: str) -> object:
        """The class of that name; raises UnpicklingError for all that is not plain data."""
        if module.split(".")[0] == "numpy" and name in _ARRAYS:
            return _ARRAYS[name]
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


class Inert:
    """Placeholder for an object of an unknown class in a checkpoint: that class is neither imported nor executed."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def _ignore(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _StorageSizes(pickle._Unpickler):
    """Reads a torch checkpoint's pickle without creating tensors; `sizes`: storage key -> bytes its tensors need."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> object:
        return _ITEMSIZE.get(name, Inert) if module == "torch" else Inert

    def persistent_load(self, pid: tuple) -> Inert:
        _, itemsize, key, _, count = pid
        self.sizes[str(key)] = max(count * (itemsize if isinstance(itemsize, int) else 1), self.sizes.get(str(key), 0))
        return Inert()


def load_arrays(file: IO[bytes], encoding: str = "latin1") -> object:
    """`pickle.load` restricted to NumPy arrays and plain containers.

    Raises:
        pickle.UnpicklingError: The pickle refers to anything else; nothing of it is executed.
    """
    return ArraysOnly(file, encoding=encoding).load()


def read_weights(path: Path) -> dict:
    """Read a checkpoint file.

    Args:
        path: A `.safetensors` file, a pickle of NumPy arrays (`.pkl`), or anything else that `torch.save` wrote.

    Returns:
        The file's dictionary with its nesting; tensors on the CPU in the file's dtype, NumPy arrays of numbers as
        tensors too.

    Raises:
        UserError: Names the file and what is wrong with it: absent, empty, a web page, truncated, not a dictionary, or
            holding objects that could only be read by executing code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(256).lstrip().lower()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix its permissions or copy it again") from error
    if not head:
        raise UserError(f"{path}: the checkpoint is empty (0 bytes); download it again")
    if head.startswith(WEB_PAGES):
        raise UserError(
            f"{path}: this is a web page, not a checkpoint; the download link answered with HTML, download it again"
        )
    try:
        content = _as_tensors(_read(path), {})
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not readable: it is no checkpoint, or holds Python objects, which are refused: only tensors and "
            "containers are read"
        ) from error
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:80].strip()
        raise UserError(
            f"{path}: not readable: truncated or damaged, or no checkpoint at all ({first}); download or copy it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return content


def load_torch(path: Path, classes: Sequence[Callable | tuple[Callable, str]] = ()) -> object:
    """`torch.load` with `weights_only` to the CPU, after checking the sizes that the file states.

    Args:
        path: A file that `torch.save` wrote.
        classes: Classes to allow besides tensors and containers, as `torch.serialization.safe_globals` takes them.

    Raises:
        UserError: A zip that unpacks to more bytes than the file has, or tensors that need more bytes than their
            storage has (some versions of torch do not check this).
        Exception: Whatever torch raises for a file that it cannot read.
    """
    if zipfile.is_zipfile(path):
        _check_archive(path)
    with torch.serialization.safe_globals(list(classes)):
        return torch.load(path, map_location="cpu", weights_only=True)


def write_state(path: Path, state: Mapping[str, Tensor], origin: Mapping[str, object]) -> None:
    """Write tensors atomically, as `.safetensors` or, for any other suffix, with `torch.save`.

    Args:
        path: The file to write.
        state: Names -> tensors, on the CPU.
        origin: Metadata of a `.safetensors` file, its values as text; a file of `torch.save` does not have it.

    Raises:
        UserError: The file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    with atomic_write(path) as file:
        if Path(path).suffix == ".safetensors":
            metadata = {"format": "pt"} | {key: str(value) for key, value in origin.items()}
            file.write(safetensors.torch.save(tensors, metadata))
        else:
            torch.save(tensors, file)


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    if path.suffix == ".pkl" and not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return load_arrays(file)
    return load_torch(path, [argparse.Namespace, *_foreign_classes(path)])


def _check_archive(path: Path) -> None:
    """Raise UserError for what torch.save never writes: compressed or repeated members, storages that are too small."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.lower(): member for member in archive.infolist()}
        unpacked = sum(member.file_size for member in archive.infolist())
        if len(members) < len(archive.infolist()) or unpacked > path.stat().st_size:
            raise UserError(f"{path}: refused: a zip that unpacks to {unpacked} bytes, which no checkpoint does")
        index = next((name for name in members if name.endswith("/data.pkl")), None)
        if index is None:
            return  # torch.load reports what is missing
        with archive.open(members[index]) as file:
            storages = _StorageSizes(file)
            storages.load()
        for key, needed in storages.sizes.items():
            member = members.get(f"{index.removesuffix('data.pkl')}data/{key}".lower())
            size = member.file_size if member else 0
            if size < needed or member is None:
                raise UserError(f"{path}: refused: tensors of {needed} bytes in storage {key[:40]}, which holds {size}")


def _foreign_classes(path: Path) -> list[tuple[type, str]]:
    """(placeholder, name) for each class that torch would refuse, e.g. of settings and meters beside the tensors.

    Modules that torch always blocks, such as `os`, stay refused. Files before torch 1.6, which are not zip archives,
    get no placeholders.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []
    return [(type("Inert", (Inert,), {}), name) for name in names if name != "argparse.Namespace"]


def _as_tensors(value: object, done: dict[int, object], depth: int = 0) -> object:
    """The same containers with arrays as tensors. done: id of an object -> its conversion, which is made once."""
    if depth > MAX_DEPTH:
        raise ValueError(f"dictionaries inside one another, more than {MAX_DEPTH} deep")
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        done[id(value)] = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    elif isinstance(value, Mapping):
        made = done[id(value)] = {}
        made.update((key, _as_tensors(item, done, depth + 1)) for key, item in value.items())
    else:
        return value
    return done[id(value)]
