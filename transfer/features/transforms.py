"""How an image becomes the input of a frozen backbone: the protocols' sizes, and a name for each transform."""

from __future__ import annotations

from dataclasses import dataclass

from adco.data.transforms.evaluation import EvalTransform
from adco.utils.errors import UserError

CROP_PX, RESIZE_PX = 224, 256  # the protocols' sizes
LEAST_PX = 32


@dataclass(frozen=True)
class Transform(EvalTransform):
    """An EvalTransform at the protocols' sizes, with a name for records and cached features."""

    fit: str = "center"
    crop_px: int = CROP_PX
    resize_px: int = RESIZE_PX

    def __post_init__(self):
        super().__post_init__()
        if not LEAST_PX <= self.crop_px <= self.resize_px:
            raise UserError(
                f"image size {self.crop_px} px with resize {self.resize_px} px: "
                f"expected {LEAST_PX} <= image size <= resize"
            )

    @property
    def name(self) -> str:
        """`center224`, `squash224`, `center128-resize146`: the resize is named when it is not 256 to 224."""
        standard = (self.crop_px, self.resize_px) == (CROP_PX, RESIZE_PX)
        return f"{self.fit}{self.crop_px}" + ("" if standard else f"-resize{self.resize_px}")
