"""Checkpoints with the key layouts of public projects, generated from modules built as their released code builds them.

Each builder takes a torchvision ResNet and returns the file's content and the project's own forward pass of it.
Widths of heads are small; names and nesting are the projects'.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet

Forward = Callable[[Tensor], Tensor]  # (B, 3, H, W) -> (B, C)
Built = tuple[dict, Forward]
D = 4  # width of every head


@functools.cache
def network(arch: str = "resnet18", seed: int = 3) -> nn.Module:
    """A torchvision ResNet in eval mode whose BatchNorm is not that of a fresh one. Shared: copy it to change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = getattr(resnet, arch)(num_classes=D)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def pooled(net: nn.Module) -> Forward:
    """The backbone's forward pass without its last layer."""
    net = copy.deepcopy(net)
    net.fc = nn.Identity()
    return net


def modules(**parts: nn.Module | Tensor) -> nn.Module:
    """A module with these children and buffers."""
    whole = nn.Module()
    for name, part in parts.items():
        whole.register_buffer(name, part) if isinstance(part, Tensor) else whole.add_module(name, part)
    return whole


def ddp(module: nn.Module) -> dict:
    """State dict as DistributedDataParallel has it."""
    return {f"module.{name}": value for name, value in module.state_dict().items()}


def mlp(*, norm: bool = False, layers: int = 2) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(D, D), *([nn.BatchNorm1d(D)] if norm else []), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(D, D))


def with_fc(net: nn.Module, fc: nn.Module) -> nn.Module:
    """The same layers under the same names with another last one; for state dicts, not for calling."""
    return modules(**(dict(net.named_children()) | {"fc": fc}))


def queue(width: int = D) -> dict[str, Tensor]:
    return {"queue": torch.zeros(width, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}


def optimizer() -> dict:
    return {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}


def moco_v2(net: nn.Module) -> Built:
    """moco/builder.py; PCL writes the same."""
    model = modules(encoder_q=with_fc(net, mlp()), encoder_k=with_fc(network(seed=9), mlp()), **queue())
    content = {"epoch": 200, "arch": "resnet50", "state_dict": ddp(model), "optimizer": optimizer()}
    return content, pooled(net)


def adco_released(net: nn.Module) -> Built:
    """AdCo's model/AdCo.py: the bank is an entry of its own."""
    model = modules(encoder_q=with_fc(net, mlp()), encoder_k=with_fc(net, mlp()))
    bank = {"W": torch.zeros(D, 8), "v": torch.zeros(D, 8)}
    return {"epoch": 1, "best_acc": 0.0, "state_dict": ddp(model), "Memory_Bank": bank}, pooled(net)


def caco(net: nn.Module) -> Built:
    """CaCo's three-layer head."""
    head = mlp(norm=True, layers=3)
    model = modules(encoder_q=with_fc(net, head), encoder_k=with_fc(net, head))
    return {"epoch": 1, "state_dict": ddp(model), "optimizer": optimizer()}, pooled(net)


def moco_v3(net: nn.Module) -> Built:
    head = mlp(norm=True)
    model = modules(
        base_encoder=with_fc(net, head), momentum_encoder=with_fc(network(seed=9), head), predictor=mlp(norm=True)
    )
    content = {"epoch": 1, "arch": "resnet50", "state_dict": ddp(model), "scaler": {"scale": 65536.0}}
    return content, pooled(net)


def simsiam(net: nn.Module) -> Built:
    head = nn.Sequential(*mlp(norm=True, layers=3), nn.BatchNorm1d(D, affine=False))
    model = modules(encoder=with_fc(net, head), predictor=mlp(norm=True))
    return {"epoch": 100, "arch": "resnet50", "state_dict": ddp(model)}, pooled(net)


def padded_stem(net: nn.Module) -> nn.Module:
    """SwAV's and VICReg's own ResNet: one pixel of padding in a layer, two in the convolution."""
    net = copy.deepcopy(net)
    net.fc = nn.Identity()
    net.conv1.padding = (2, 2)
    net.conv1.register_forward_pre_hook(lambda module, inputs: nn.functional.pad(inputs[0], (1, 1, 1, 1)))
    return net


def swav(net: nn.Module) -> Built:
    """src/resnet50.py; the released file is the bare, wrapped state dict."""
    own = padded_stem(net)
    own.add_module("projection_head", mlp(norm=True))
    own.add_module("prototypes", nn.Linear(D, 6, bias=False))
    return ddp(own), padded_stem(net)


def swav_training(net: nn.Module) -> Built:
    own = padded_stem(net)
    own.add_module("projection_head", mlp(norm=True))
    own.add_module("prototypes", modules(prototypes0=nn.Linear(D, 6), prototypes1=nn.Linear(D, 6)))
    return {"epoch": 3, "state_dict": ddp(own), "optimizer": optimizer()}, padded_stem(net)


def dino_wrapper(net: nn.Module) -> nn.Module:
    head = modules(mlp=mlp(), last_layer=nn.utils.weight_norm(nn.Linear(D, 6, bias=False)))
    return modules(backbone=with_fc(net, nn.Identity()), head=head)


def dino(net: nn.Module) -> Built:
    """main_dino.py: student and teacher, both wrapped for a ResNet, and the arguments as a Namespace."""
    content = {
        "student": ddp(dino_wrapper(network(seed=9))),
        "teacher": ddp(dino_wrapper(net)),
        "optimizer": optimizer(),
        "epoch": 1,
        "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.zeros(1, 6)},
    }
    return content, pooled(net)


def barlow_twins(net: nn.Module) -> Built:
    model = modules(
        backbone=with_fc(net, nn.Identity()), projector=mlp(norm=True, layers=3), bn=nn.BatchNorm1d(D, affine=False)
    )
    return {"epoch": 1, "model": ddp(model), "optimizer": optimizer()}, pooled(net)


def vicreg(net: nn.Module) -> Built:
    model = modules(backbone=padded_stem(net), projector=mlp(norm=True, layers=3))
    return {"epoch": 1, "model": ddp(model), "optimizer": optimizer()}, padded_stem(net)


def extracted(net: nn.Module) -> Built:
    """DINO's, Barlow Twins' and VICReg's resnet50.pth: the backbone alone."""
    return with_fc(net, nn.Identity()).state_dict(), pooled(net)


def densecl(net: nn.Module) -> Built:
    """OpenSelfSup's DenseCL in training: `backbone` is `encoder_q[0]` once more."""
    body, neck = with_fc(net, nn.Identity()), modules(mlp=mlp(), mlp2=nn.Sequential(nn.Conv2d(D, D, 1)))
    model = modules(encoder_q=nn.Sequential(body, neck), encoder_k=nn.Sequential(network(seed=9), neck), **queue())
    model.add_module("backbone", model.encoder_q[0])
    model.register_buffer("queue2", torch.zeros(D, 8))
    model.register_buffer("queue2_ptr", torch.zeros(1, dtype=torch.long))
    return {"meta": {"epoch": 200}, "state_dict": model.state_dict(), "optimizer": optimizer()}, pooled(net)


def densecl_released(net: nn.Module) -> Built:
    """tools/extract_backbone_weights.py."""
    return {"state_dict": with_fc(net, nn.Identity()).state_dict(), "author": "OpenSelfSup"}, pooled(net)


def mmselfsup(net: nn.Module) -> Built:
    """MMSelfSup 1.x, MoCo: encoder_k is an averaged model with a step counter."""
    twin = modules(module=nn.Sequential(network(seed=9), mlp()), steps=torch.tensor(1))
    model = modules(
        data_preprocessor=modules(mean=torch.zeros(3, 1, 1), std=torch.ones(3, 1, 1)),
        backbone=with_fc(net, nn.Identity()), neck=modules(mlp=mlp()), head=modules(predictor=mlp()), encoder_k=twin,
        **queue(),
    )  # fmt: skip
    return {"meta": {}, "state_dict": model.state_dict(), "message_hub": {}, "param_schedulers": []}, pooled(net)


def vissl(net: nn.Module) -> Built:
    """vissl/models/trunks/resnext.py: a ModuleDict of feature blocks; heads beside the trunk."""
    blocks = nn.ModuleDict(
        {
            "conv1": net.conv1, "bn1": net.bn1, "conv1_relu": net.relu, "maxpool": net.maxpool, "layer1": net.layer1,
            "layer2": net.layer2, "layer3": net.layer3, "layer4": net.layer4, "avgpool": net.avgpool,
            "flatten": nn.Flatten(1),
        }
    )  # fmt: skip
    trunk = modules(_feature_blocks=blocks).state_dict()
    heads = nn.ModuleList([modules(clf=mlp())]).state_dict()
    inner = {"model": {"trunk": trunk, "heads": heads}, "meters": {}, "optim": optimizer()}
    return {"phase_idx": 1, "classy_state_dict": {"base_model": inner, "loss": {}}}, nn.Sequential(*blocks.values())


def solo_learn(net: nn.Module, name: str = "backbone") -> Built:
    body = with_fc(net, nn.Identity())
    model = modules(
        **{name: body, f"momentum_{name}": with_fc(network(seed=9), nn.Identity())}, classifier=nn.Linear(D, 3),
        projector=mlp(norm=True), momentum_projector=mlp(norm=True), predictor=mlp(), momentum_classifier=mlp(),
        prototypes=nn.Linear(D, 6), **queue(),
    )  # fmt: skip
    content = {"epoch": 9, "state_dict": model.state_dict(), "hyper_parameters": argparse.Namespace(lr=0.1)}
    return content | {"pytorch-lightning_version": "1.5.0", "callbacks": {}}, pooled(net)


def solo_learn_older(net: nn.Module) -> Built:
    return solo_learn(net, "encoder")


def lightly(net: nn.Module) -> Built:
    """examples/pytorch_lightning/moco.py: the backbone is a Sequential of torchvision's children."""
    body = nn.Sequential(*list(net.children())[:-1])
    model = modules(
        backbone=body, projection_head=modules(layers=mlp()), prediction_head=modules(layers=mlp(norm=True)),
        backbone_momentum=copy.deepcopy(body), projection_head_momentum=modules(layers=mlp()),
        online_classifier=modules(linear=nn.Linear(D, 3)),
        criterion=modules(memory_bank=modules(bank=torch.zeros(D, 8))),
    )  # fmt: skip
    return {"epoch": 1, "state_dict": model.state_dict(), "loops": {}}, nn.Sequential(body, nn.Flatten())


def lightly_module(net: nn.Module) -> Built:
    """lightly's ImageNet benchmarks: a torchvision module without its last layer."""
    model = modules(
        backbone=with_fc(net, nn.Identity()), projection_head=modules(layers=mlp()),
        online_classifier=modules(linear=nn.Linear(D, 3)),
    )  # fmt: skip
    return {"epoch": 1, "state_dict": model.state_dict()}, pooled(net)


def lightly_bare(net: nn.Module) -> Built:
    body = nn.Sequential(*list(net.children())[:-1])
    return body.state_dict(), nn.Sequential(body, nn.Flatten())


def torchvision_file(net: nn.Module) -> Built:
    return net.state_dict(), pooled(net)


def timm_training(net: nn.Module) -> Built:
    """timm's train.py; its ResNets have torchvision's names."""
    content = {"epoch": 1, "arch": "resnet50", "state_dict": net.state_dict(), "args": argparse.Namespace(model="x")}
    return content, pooled(net)


def adco_suite(net: nn.Module) -> Built:
    """Ours."""
    head = mlp()
    encoder, key = (modules(backbone=with_fc(body, nn.Identity()), head=head) for body in (net, network(seed=9)))
    method = modules(encoder=encoder, key_encoder=key, bank=modules(rows=torch.zeros(8, D), velocity=torch.zeros(8, D)))
    method.add_module("predictor", mlp())
    method.add_module("prototypes", nn.Linear(D, 6))
    return {"schema": 1, "step": 3, "recipe": {}, "method": method.state_dict(), "optimizer": optimizer()}, pooled(net)


SOURCES = {
    "adco-suite": (adco_suite,),
    "moco": (moco_v2, adco_released, caco),
    "moco-v3": (moco_v3,),
    "simsiam": (simsiam,),
    "torchvision": (torchvision_file, timm_training, extracted, densecl_released),
    "swav": (swav, swav_training),
    "dino": (dino,),
    "barlow-twins": (barlow_twins,),
    "vicreg": (vicreg,),
    "mmselfsup": (densecl, mmselfsup),
    "solo-learn": (solo_learn, solo_learn_older),
    "lightly": (lightly, lightly_module, lightly_bare),
    "vissl": (vissl,),
}
BUILDERS = {builder.__name__: (source, builder) for source, builders in SOURCES.items() for builder in builders}
