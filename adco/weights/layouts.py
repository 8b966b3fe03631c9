"""How each public project writes a ResNet checkpoint: one row per layout, read from the projects' released code.

A row says which dictionaries inside the file may hold the tensors, what precedes the backbone's names in them, how
those names differ from torchvision's, and which other tensors are known and left out, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile

HEAD = "projection or prediction head"
CLASSIFIER = "classifier"
TWIN = "second encoder (momentum, teacher, target), not the one that is evaluated"
NEGATIVES = "queue, bank or memory of the loss"
PROTOTYPES = "prototypes or cluster assignments of the loss"
COPY = "the same backbone under another name"
DETECTOR = "detector: proposals, heads, pyramid"
LOSS = "buffers of the loss or the data preprocessing"

Dropped = tuple[tuple[str, str], ...]


def same(name: str) -> str:
    """torchvision's own names."""
    return name


def from_sequential(name: str) -> str:
    """Names of `nn.Sequential(*list(resnet.children()))`: `0.weight` -> `conv1.weight`, `4.1.` -> `layer1.1.`"""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    first, _, rest = name.partition(".")
    return f"{children[first]}.{rest}" if first in children else name


def from_detectron2(name: str) -> str:
    """`res2.0.conv2.norm.weight` -> `layer1.0.bn2.weight`; `stem.conv1.weight` -> `conv1.weight`, and so on."""
    name = name.removeprefix("stem.")
    name = re.sub(r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", name)
    name = name.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")
    return re.sub(r"conv(\d)\.norm\.", r"bn\1.", name)


@dataclass(frozen=True)
class Layout:
    """One way of writing a checkpoint. All patterns are matched at the start of a name whose wrapper is taken off.

    entries: where the tensors may lie, as paths of keys; () is the file itself
    prefix: pattern of what precedes the backbone's names
    probe: the first convolution's name behind the prefix; a file without it is of another layout
    rename: the project's name of a backbone tensor -> torchvision's
    dropped: (pattern, reason) of the tensors beside the backbone; they come before `prefix`
    small_stem: whether a 3x3 first convolution is ours, stride 1 and padding 1, with no pooling after it
    """

    name: str
    entries: tuple[tuple[str, ...], ...]
    prefix: str
    dropped: Dropped = ()
    probe: str = "conv1.weight"
    rename: Callable[[str], str] = same
    small_stem: bool = True

    def split(self, tensors: Mapping[str, object]) -> tuple[dict[str, str], dict[str, str], list[str]]:
        """Sort names into (name -> torchvision's name, dropped name -> reason, names that the layout does not have)."""
        backbone, dropped, unexpected = {}, {}, []
        wrapper = wrapper_of(tensors)
        for name in tensors:
            bare = name[len(wrapper) :]
            reason = next((reason for pattern, reason in self.dropped if re.match(pattern, bare)), None)
            match = re.match(self.prefix, bare)
            if reason is not None:
                dropped[name] = reason
            elif match is None:
                unexpected.append(name)
            else:
                backbone[name] = self.rename(bare[match.end() :])
        return backbone, dropped, unexpected

    def has_probe(self, tensors: Mapping[str, object]) -> bool:
        """Whether a ResNet's first convolution stands where this layout has it."""
        wrapper, pattern = wrapper_of(tensors), re.compile(self.prefix + re.escape(self.probe))
        return any(pattern.fullmatch(name[len(wrapper) :]) for name in tensors)


def wrapper_of(tensors: Mapping[str, object]) -> str:
    """What every name begins with because the model was wrapped, e.g. `module.`; "" for an unwrapped model."""
    found = ""
    while tensors and (
        more := next((w for w in WRAPPERS if all(name.startswith(found + w) for name in tensors)), None)
    ):
        found += more
    return found


STATE_DICT, BARE, MODEL = ("state_dict",), (), ("model",)
RESNET = r"(?=(conv1|bn1|layer\d+)\.)"  # no prefix, but the first part of a name must be a ResNet's

# Ordered: the first layout whose probe is there and which knows every other tensor wins.
LAYOUTS = (
    Layout(
        "adco-suite",
        (("method",),),
        r"encoder\.backbone\.",
        (
            (r"encoder\.(?!backbone\.)|(head|projector|predictor)\b", HEAD),
            (r"(key|target|momentum|teacher)_\w+\.", TWIN),
            (r"(bank|queue|memory)", NEGATIVES),
            (r"prototypes|center\b", PROTOTYPES),
        ),
    ),
    Layout(
        "moco",  # MoCo v1 and v2, AdCo, CaCo, PCL
        (STATE_DICT,),
        r"encoder_q\.",
        ((r"encoder_q\.fc\.|predictor\.", HEAD), (r"encoder_k\.", TWIN), (r"queue|memory", NEGATIVES)),
    ),
    Layout(
        "moco-v3",
        (STATE_DICT,),
        r"base_encoder\.",
        ((r"base_encoder\.fc\.|predictor\.", HEAD), (r"momentum_encoder\.", TWIN)),
    ),
    Layout("simsiam", (STATE_DICT,), r"encoder\.", ((r"encoder\.fc\.|predictor\.", HEAD),)),
    Layout(
        "torchvision", (BARE, STATE_DICT, MODEL), RESNET, ((r"fc\.", CLASSIFIER),)
    ),  # timm and extracted backbones too
    Layout("swav", (STATE_DICT, BARE), RESNET, ((r"projection_head\.", HEAD), (r"prototypes\.", PROTOTYPES))),
    Layout("dino", (("teacher",),), r"backbone\.", ((r"head\.", HEAD), (r"backbone\.fc\.", CLASSIFIER))),
    Layout("dino-student", (("student",),), r"backbone\.", ((r"head\.", HEAD), (r"backbone\.fc\.", CLASSIFIER))),
    Layout("vicreg", (MODEL,), r"backbone\.", ((r"projector\.", HEAD),)),
    Layout("barlow-twins", (MODEL,), r"backbone\.", ((r"projector\.", HEAD), (r"bn\.", LOSS))),
    Layout(
        "mmselfsup",  # OpenSelfSup and DenseCL too
        (STATE_DICT,),
        r"backbone\.",
        (
            (r"(neck|head)\.", HEAD),
            (r"(encoder_q|online_net)\.0\.", COPY),
            (r"(encoder_q|online_net)\.1\.", HEAD),
            (r"(encoder_k|target_net|momentum_encoder|teacher)\.", TWIN),
            (r"queue2?(_ptr)?$|memory_bank\.|feature_bank", NEGATIVES),
            (r"data_preprocessor\.", LOSS),
        ),
    ),
    Layout(
        "solo-learn",  # its CIFAR stem pads by 2, ours by 1: the tensors fit, the outputs would not
        (STATE_DICT,),
        r"(backbone|encoder)\.",
        (
            (r"(momentum_)?classifier\.|(backbone|encoder)\.fc\.", CLASSIFIER),
            (r"(projector|predictor\d?|head|transformer_encoder)\.", HEAD),
            (r"momentum_\w+\.", TWIN),
            (r"queue", NEGATIVES),
            (r"prototypes|local_memory|assignments", PROTOTYPES),
            (r"dino_loss_func\.|\w*whitening\w*\.", LOSS),
        ),
        small_stem=False,
    ),
    *(
        Layout(
            "lightly",  # backbone as nn.Sequential(*list(resnet.children())[:-1]), or as a torchvision module
            (STATE_DICT, BARE),
            r"backbone\.",
            (
                (r"(projection|prediction)_head|(student|teacher)_\w*head\.|backbone\.fc\.", HEAD),
                (r"backbone_momentum\.|teacher_\w+\.", TWIN),
                (r"\w*classifier\.", CLASSIFIER),
                (r"prototypes\.|smog\.", PROTOTYPES),
                (r"memory_bank|queues?\.|criterion\.memory_bank", NEGATIVES),
                (r"criterion\.", LOSS),
            ),
            probe,
            rename,
        )
        for probe, rename in (("0.weight", from_sequential), ("conv1.weight", same))
    ),
    Layout("lightly", (BARE, STATE_DICT), r"(?=[014-7]\.)", (), "0.weight", from_sequential),
    Layout("vissl", (("classy_state_dict", "base_model", "model", "trunk"),), r"(base_model\.)?_feature_blocks\."),
    Layout(
        "detectron2",  # a converted backbone, or a fine-tuned detector: C4 keeps res5 in its head, FPN in `bottom_up`
        (MODEL, BARE),
        r"(backbone\.(bottom_up\.)?|roi_heads\.(?=res5\.\d))?(?=stem\.conv1|res[2-5]\.)",
        (
            (r"(backbone\.(bottom_up\.)?)?stem\.fc\.", CLASSIFIER),
            (r"proposal_generator\.|roi_heads\.(?!res5\.\d)|backbone\.(fpn|top_block)|pixel_(mean|std)$", DETECTOR),
        ),
        "stem.conv1.weight",
        from_detectron2,
    ),
)
SOURCES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))
