"""The C4 head of MoCo's and AdCo's detection runs: detectron2's res5 head with one more norm layer."""

from __future__ import annotations

from detectron2.layers import get_norm
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

BASIC_BLOCKS = {18: 2, 34: 3}  # depth -> number of blocks of res5


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """`Res5ROIHeads` with a norm layer after res5, which brings pretrained features to a known scale.

    It also supports the basic blocks of ResNet-18 and 34; detectron2's head has the bottleneck block only.
    """

    @classmethod
    def _build_res5_block(cls, cfg) -> tuple[nn.Sequential, int]:
        if cfg.MODEL.RESNETS.DEPTH in BASIC_BLOCKS:
            res5, channels = _basic_res5(cfg)
        else:
            res5, channels = super()._build_res5_block(cfg)
        norm = get_norm(cfg.MODEL.RESNETS.NORM, channels)
        if norm is not None:
            res5.add_module("norm", norm)
        return res5, channels


def _basic_res5(cfg) -> tuple[nn.Sequential, int]:
    channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8
    count = BASIC_BLOCKS[cfg.MODEL.RESNETS.DEPTH]
    blocks = ResNet.make_stage(
        BasicBlock,
        count,
        stride_per_block=[2] + [1] * (count - 1),
        in_channels=channels // 2,
        out_channels=channels,
        norm=cfg.MODEL.RESNETS.NORM,
    )
    return nn.Sequential(*blocks), channels
