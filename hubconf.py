"""torch.hub entry points: one for each model of the zoo, e.g. `torch.hub.load(REPOSITORY, "moco_v2_r50_800ep")`.

`backbone` loads any checkpoint that the tools take: a file, zoo://NAME or random:ARCH.
"""

import functools as _functools

from adco.weights.zoo import models as _models

dependencies = ["numpy", "safetensors", "torch", "torchvision", "tqdm", "yaml"]


def backbone(checkpoint="random:resnet50"):
    """A torchvision ResNet in eval mode without its classifier.

    Args:
        checkpoint: A file, `zoo://NAME` or `random:ARCH[:SEED]`.

    Returns:
        A module: images (B, 3, H, W), normalised as in pretraining -> average-pooled features (B, 512 or 2048).
    """
    from adco import load_backbone

    return load_backbone(checkpoint).module()


def _entry(model):
    entry = _functools.partial(backbone, f"zoo://{model.name}")
    entry.__doc__ = f"{model.arch}, {model.method}, {model.epochs or '?'} epochs of {model.data}. {model.source}"
    return entry


globals().update({model.name.replace("-", "_").replace(".", "_"): _entry(model) for model in _models().values()})
