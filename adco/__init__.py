"""Pretrain a ResNet with AdCo, and judge any ResNet checkpoint. `from adco import load_backbone` reads every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adco.weights.backbone import load_backbone

__all__ = ["load_backbone"]


def __getattr__(name: str) -> object:
    """`load_backbone` on first use, so that `import adco` stays free of torch."""
    if name == "load_backbone":
        from adco.weights.backbone import load_backbone

        return load_backbone
    raise AttributeError(f"module 'adco' has no attribute {name!r}")
