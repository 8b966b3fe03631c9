"""torch.hub entry points: `torch.hub.load(REPOSITORY, "moco_v2_r50_800ep")`, one for each model of the zoo.

`backbone` takes anything that the tools take: a file, zoo://NAME, random:ARCH.
"""

import functools as _functools

from adco.weights.zoo import models as _models

dependencies = ["numpy", "safetensors", "torch", "torchvision", "tqdm", "yaml"]


def backbone(checkpoint="random:resnet50"):
    """A torchvision ResNet in eval mode without its classifier: (B, 3, H, W) -> (B, 512 or 2048) pooled features."""
    from adco import load_backbone

    return load_backbone(checkpoint).module()


def _entry(model):
    entry = _functools.partial(backbone, f"zoo://{model.name}")
    entry.__doc__ = f"{model.arch}, {model.method}, {model.epochs or '?'} epochs of {model.data}. {model.source}"
    return entry


globals().update({model.name.replace("-", "_").replace(".", "_"): _entry(model) for model in _models().values()})
