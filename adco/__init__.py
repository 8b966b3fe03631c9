"""Pretrain a ResNet with AdCo, evaluate any ResNet checkpoint. `from adco import load_backbone` reads every layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adco.utils.version import __version__

if TYPE_CHECKING:
    from adco.weights.backbone import load_backbone

__all__ = ["__version__", "load_backbone"]


def __getattr__(name: str) -> object:
    """Import `load_backbone` on first use, so that `import adco` does not import torch."""
    if name == "load_backbone":
        from adco.weights.backbone import load_backbone

        return load_backbone
    raise AttributeError(f"module 'adco' has no attribute {name!r}")
