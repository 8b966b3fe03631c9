"""Weight files of every kind, read without running anything that is in them: torch, safetensors, NumPy pickles."""

from __future__ import annotations

import argparse
import collections
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from adco.utils.errors import UserError
from adco.utils.files import atomic_write

MOST_DEEP = 100  # dictionaries inside one another
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
_ARRAYS = {  # what a pickle of arrays names; NumPy has moved these functions between its versions
    "_reconstruct": lambda *_: np.zeros(0),  # as NumPy writes it; a file could ask for memory that it does not fill
    "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
    "scalar": np.float64(0).__reduce__()[0],
    "ndarray": "ndarray",  # an argument; a call would make an array of whatever lies in memory
    "dtype": np.dtype,
}
_ITEMSIZE = {  # bytes of a number, by the class that torch writes in a tensor's place
    "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2, "HalfStorage": 2, "BFloat16Storage": 2,
    "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8, "DoubleStorage": 8, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes in an old pickle protocol
    ("__builtin__", "bytes"): bytes,
}


class ArraysOnly(pickle._Unpickler):
    """Reads NumPy arrays and plain containers; anything else in a pickle is refused, not run.

    It is the unpickler written in Python: the one in C reserves whatever memory a file's memo numbers ask for.
    """

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" and name in _ARRAYS:
            return _ARRAYS[name]
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


class Inert:
    """Takes the place of an object of somebody else's class in a checkpoint: made without running that class."""

    def __init__(self, *args: object, **kwargs: object):
        pass

    def _ignore(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Census(pickle._Unpickler):
    """Goes through a torch checkpoint's pickle, making nothing; `sizes`: storage's key -> bytes that tensors expect."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> object:
        return _ITEMSIZE.get(name, Inert) if module == "torch" else Inert

    def persistent_load(self, pid: tuple) -> Inert:
        _, itemsize, key, _, count = pid
        self.sizes[str(key)] = max(count * (itemsize if isinstance(itemsize, int) else 1), self.sizes.get(str(key), 0))
        return Inert()


def load_arrays(file: BinaryIO, encoding: str = "latin1") -> object:
    """`pickle.load` restricted to arrays and plain containers. Raises pickle.UnpicklingError for anything else."""
    return ArraysOnly(file, encoding=encoding).load()


def read_weights(path: Path) -> dict:
    """A checkpoint's dictionary, tensors on the CPU; NumPy arrays become tensors at any depth.

    Raises UserError that names the file and what is wrong with it: absent, empty, a web page, truncated, holding
    objects that would have to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(256).lstrip().lower()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend its permissions, or copy it again") from error
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
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return content


def load_torch(path: Path, classes: Sequence[object] = ()) -> object:
    """`torch.load` to the CPU, of tensors, containers and `classes` alone, of a file whose sizes are what they say.

    Raises UserError for a zip that unpacks to more than it is or whose tensors are larger than their bytes (which some
    versions of torch do not look at), and whatever torch raises for anything else it does not read.
    """
    if zipfile.is_zipfile(path):
        _check_archive(path)
    with torch.serialization.safe_globals(list(classes)):
        return torch.load(path, map_location="cpu", weights_only=True)


def write_state(path: Path, state: Mapping[str, Tensor], origin: Mapping[str, object]) -> None:
    """Write tensors as `.safetensors` (origin as its metadata) or as `.pth` (a bare state dict), atomically."""
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
    """Raise UserError for what torch.save never writes: packed or doubled members, tensors without their bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.lower(): member for member in archive.infolist()}
        unpacked = sum(member.file_size for member in archive.infolist())
        if len(members) < len(archive.infolist()) or unpacked > path.stat().st_size:
            raise UserError(f"{path}: refused: a zip that unpacks to {unpacked} bytes, which no checkpoint does")
        index = next((name for name in members if name.endswith("/data.pkl")), None)
        if index is None:
            return  # torch will say what it misses
        with archive.open(members[index]) as file:
            census = _Census(file)
            census.load()
        for key, size in census.sizes.items():
            member = members.get(f"{index.removesuffix('data.pkl')}data/{key}".lower())
            if member is None or member.file_size < size:
                found = member.file_size if member else 0
                raise UserError(f"{path}: refused: tensors of {size} bytes in storage {key[:40]}, which holds {found}")


def _foreign_classes(path: Path) -> list[tuple[type, str]]:
    """(a stand-in, its name) for each class that torch would refuse, so that settings and meters do no harm.

    Modules that torch blocks outright, such as `os`, stay refused; older files, which are no zip, get no stand-ins.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []
    return [(type("Inert", (Inert,), {}), name) for name in names if name != "argparse.Namespace"]


def _as_tensors(value: object, done: dict[int, object], depth: int = 0) -> object:
    """The same with arrays as tensors, each object once, whatever refers to it. done: by identity."""
    if depth > MOST_DEEP:
        raise ValueError(f"dictionaries inside one another, more than {MOST_DEEP} deep")
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
