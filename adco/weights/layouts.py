r"""How each public project writes a ResNet checkpoint: one `Layout` per format, taken from the projects' released code.

To add a format, add a `Layout` to LAYOUTS. Example: a project saves `{"model": {...}, "epoch": 9}`, and the state dict
in it has `module.net.conv1.weight`, ..., `module.net.fc.weight`, `module.proj.0.weight` and `module.queue`. Its row is

    Layout(
        "my-project",  # the name that `--source` takes and that records keep
        (("model",),),  # keys that lead from the file to the state dict; (("a", "b"),) for content["a"]["b"]
        r"net\.",  # prefix of the backbone's names; `module.` of DistributedDataParallel is already removed
        ((r"net\.fc\.", CLASSIFIER), (r"proj\.", HEAD), (r"queue", NEGATIVES)),  # tensors to drop, each with a reason
    )

What follows the prefix must be torchvision's name (`layer1.0.bn2.weight`); where a project has other names, give a
`rename` function and the `probe`, its name of the first convolution (see `from_sequential`, `from_detectron2`). Every
tensor must match the prefix or a dropped pattern; otherwise the other layouts are tried, and if none fits the file is
refused. Order matters: the first layout that knows every tensor is used, so more specific rows come first.

Then add a builder of such a file to tests/adco/weights/public_checkpoints.py (SOURCES), which tests the row end to end,
and a line to the table in docs/detection.md.
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
    """The name unchanged, for projects that use torchvision's names."""
    return name


def from_sequential(name: str) -> str:
    """torchvision's name of a tensor in `nn.Sequential(*resnet.children())`, e.g. `0.weight` -> `conv1.weight`.

    The children are conv1, bn1, relu, maxpool, layer1 to layer4; a name with another first part is returned unchanged.
    """
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    first, _, rest = name.partition(".")
    return f"{children[first]}.{rest}" if first in children else name


def from_detectron2(name: str) -> str:
    """torchvision's name of a tensor in detectron2's ResNet, e.g. `res2.0.conv2.norm.weight` -> `layer1.0.bn2.weight`.

    The inverse of `detection.weights.detectron2_name`.
    """
    name = name.removeprefix("stem.")
    name = re.sub(r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", name)
    name = name.replace(".shortcut.norm.", ".downsample.1.").replace(".shortcut.", ".downsample.0.")
    return re.sub(r"conv(\d)\.norm\.", r"bn\1.", name)


@dataclass(frozen=True)
class Layout:
    """The format of one project's checkpoints.

    Patterns are regular expressions. They are matched at the start of a name, after wrapper prefixes such as `module.`
    are removed.

    Attributes:
        name: Name of the layout; several rows may share one.
        entries: Where the state dict may be, each as a path of keys; `()` is the file's top level.
        prefix: Pattern of what precedes the backbone's names.
        dropped: (pattern, reason) of the known tensors that are not the backbone. Tested before `prefix`.
        probe: Name of the first convolution after the prefix. A file without it has another layout.
        rename: Function from the project's name of a backbone tensor, without the prefix, to torchvision's.
        small_stem: Whether a 3x3 first convolution of this project is built like ours: stride 1, padding 1, no max
            pooling. Where it is not, a file with such a stem is refused, because its outputs would differ.
    """

    name: str
    entries: tuple[tuple[str, ...], ...]
    prefix: str
    dropped: Dropped = ()
    probe: str = "conv1.weight"
    rename: Callable[[str], str] = same
    small_stem: bool = True

    def split(self, tensors: Mapping[str, object]) -> tuple[dict[str, str], dict[str, str], list[str]]:
        """Divide the names of a state dict into backbone, dropped and unexpected.

        Args:
            tensors: A state dict; only its names are used.

        Returns:
            (name -> torchvision's name of the backbone's tensors, dropped name -> reason, unexpected names).
        """
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
        """Whether the state dict has a ResNet's first convolution under this layout's name."""
        wrapper, pattern = wrapper_of(tensors), re.compile(self.prefix + re.escape(self.probe))
        return any(pattern.fullmatch(name[len(wrapper) :]) for name in tensors)


def wrapper_of(tensors: Mapping[str, object]) -> str:
    """The wrapper prefix that all names share, e.g. `module.` or `module._orig_mod.`; "" for an unwrapped model."""
    wrapper = ""
    while tensors and (
        more := next((w for w in WRAPPERS if all(name.startswith(wrapper + w) for name in tensors)), None)
    ):
        wrapper += more
    return wrapper


STATE_DICT, BARE, MODEL = ("state_dict",), (), ("model",)
RESNET = r"(?=(conv1|bn1|layer\d+)\.)"  # no prefix, but the first part of a name must be a ResNet's

# Ordered: the first layout whose probe is present and which knows every other tensor is used.
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
