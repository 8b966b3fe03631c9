"""What detectron2's 0.6 release needs to run with today's libraries; a newer detectron2 is left alone.

The newer one is told from the release by what it can do, because both call themselves 0.6: it copes with a missing
extension by itself (`detectron2/utils/develop.py`).
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
    """detectron2 cannot be imported; the message says in one line how to get it."""


class MissingExtension(types.ModuleType):
    """Stands in for detectron2's compiled extension. Anything asked of it is an error that says what is missing."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import machinery and `inspect` look these up on every module
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
    """Whether the compiled extension lies in detectron2's folder. Does not import it."""
    folder = _folder()
    return folder is not None and any(path.suffix in (".so", ".pyd") for path in folder.glob("_C*"))


def apply_patches() -> list[str]:
    """Patch NumPy, Pillow and the missing extension for detectron2 0.6. Returns the names of what was patched now.

    Must run before detectron2's modules are imported (its top package apart, which imports none of them).
    """
    if not needs_patches():
        return []
    done = []
    for name, builtin in REMOVED_FROM_NUMPY.items():
        if name not in vars(np):
            setattr(np, name, builtin)
            done.append(f"numpy.{name}")
    if not hasattr(PIL.Image, "LINEAR"):
        PIL.Image.LINEAR = PIL.Image.BILINEAR
        done.append("PIL.Image.LINEAR")
    if not has_extension() and EXTENSION not in sys.modules:
        sys.modules[EXTENSION] = _stand_in()
        done.append(EXTENSION)
    return done


def _stand_in() -> MissingExtension:
    module = MissingExtension(EXTENSION)
    # detectron2's environment report asks these three of the extension on every start.
    module.get_compiler_version = lambda: "not built"
    module.get_cuda_version = lambda: "not built"
    module.has_cuda = lambda: False
    return module


def _folder() -> Path | None:
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
