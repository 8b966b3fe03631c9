"""Weight files of every kind, read without running anything that is in them: torch, safetensors, NumPy pickles."""

from __future__ import annotations

import argparse
import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from adco.errors import UserError
from adco.files import atomic_write

WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
_ARRAYS = {  # what a pickle of arrays names; NumPy has moved these functions between its versions
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
    "scalar": np.float64(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}
_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes in an old pickle protocol
    ("__builtin__", "bytes"): bytes,
}


class ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and plain containers; anything else in a pickle is refused, not run."""

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

    def __setstate__(self, state: object) -> None:
        pass


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
    with path.open("rb") as file:
        head = file.read(256).lstrip().lower()
    if not head:
        raise UserError(f"{path}: the checkpoint is empty (0 bytes); download it again")
    if head.startswith(WEB_PAGES):
        raise UserError(
            f"{path}: this is a web page, not a checkpoint; the download link answered with HTML, download it again"
        )
    try:
        content = _read(path)
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
    return _as_tensors(content)


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
    with torch.serialization.safe_globals([argparse.Namespace, *_foreign_classes(path)]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _foreign_classes(path: Path) -> list[tuple[type, str]]:
    """(a stand-in, its name) for each class that torch would refuse, so that settings and meters do no harm.

    Modules that torch blocks outright, such as `os`, stay refused; older files, which are no zip, get no stand-ins.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []
    return [(type("Inert", (Inert,), {}), name) for name in names if name != "argparse.Namespace"]


def _as_tensors(value: object) -> object:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))
    if isinstance(value, Mapping):
        return {key: _as_tensors(item) for key, item in value.items()}
    return value
