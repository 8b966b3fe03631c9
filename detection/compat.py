"""Patches that detectron2's 0.6 release needs to run with current libraries; a newer detectron2 is not patched.

Both report version 0.6. The newer one is recognised by `detectron2/utils/develop.py`, which handles a missing compiled
extension.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image

from adco.utils.errors import UserError

HOW_TO_INSTALL = (
    "detectron2 is not installed; in this checkout `uv sync --group detection` brings it, elsewhere "
    "`pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'`"
)
REMOVED_FROM_NUMPY = {"int": int, "float": float, "str": str, "object": object, "bool": bool}
EXTENSION = "detectron2._C"


class Detectron2Missing(UserError, ImportError):
    """detectron2 is not installed; the message says in one line how to install it."""


class MissingExtension(types.ModuleType):
    """Placeholder for detectron2's compiled extension; using anything of it raises a UserError that says so."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # `import` and `inspect` look these up on every module
            raise AttributeError(name)
        raise UserError(
            f"detectron2's compiled extension is not installed and `{name}` needs it (rotated boxes, deformable "
            "convolution): install detectron2 from its Git repository"
        )


def require_detectron2() -> None:
    """Raise `Detectron2Missing` when detectron2 is not installed. Does not import it."""
    if _folder() is None:
        raise Detectron2Missing(HOW_TO_INSTALL)


def needs_patches() -> bool:
    """Whether the installed detectron2 is the 0.6 release or older. Does not import it."""
    folder = _folder()
    return folder is not None and not (folder / "utils" / "develop.py").is_file()


def has_extension() -> bool:
    """Whether detectron2's folder has the compiled extension. Does not import it."""
    folder = _folder()
    return folder is not None and any(path.suffix in (".so", ".pyd") for path in folder.glob("_C*"))


def apply_patches() -> list[str]:
    """Patch NumPy, Pillow and the missing extension for detectron2 0.6.

    Call it before any module of detectron2 is imported. (`import detectron2` alone imports none of them.)

    Returns:
        The names that this call patched; empty after the first call and for a newer detectron2.
    """
    if not needs_patches():
        return []
    done = []
    for name, builtin in REMOVED_FROM_NUMPY.items():
        if name not in vars(np):
            setattr(np, name, builtin)
            done.append(f"numpy.{name}")
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.Resampling.BILINEAR  # type: ignore[attr-defined]  # removed in Pillow 10
        done.append("PIL.Image.LINEAR")
    if not has_extension() and EXTENSION not in sys.modules:
        sys.modules[EXTENSION] = _placeholder()
        done.append(EXTENSION)
    return done


def _placeholder() -> MissingExtension:
    module = MissingExtension(EXTENSION)
    # detectron2's environment report calls these three functions at every start
    vars(module).update(
        get_compiler_version=lambda: "not built", get_cuda_version=lambda: "not built", has_cuda=lambda: False
    )
    return module


def _folder() -> Path | None:
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
