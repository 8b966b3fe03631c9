"""Tiny VOC and COCO folders of coloured rectangles, and checkpoints with BatchNorm statistics unlike a new model's."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from adco.models.resnet import build_resnet
from adco.weights.backbone import load_backbone

CLASSES = {"cat": (200, 60, 60), "dog": (60, 60, 200), "bus": (60, 180, 60)}
SIZE = (120, 96)

Thing = tuple[str, tuple[int, int, int, int]]


def draw(path: Path, seed: int, classes: Sequence[str] = tuple(CLASSES)) -> list[Thing]:
    """Write an image of two rectangles and return what is where, as (class, (x0, y0, x1, y1))."""
    rng = random.Random(seed)
    image = Image.new("RGB", SIZE, (230, 230, 220))
    things = []
    for left in (4, 62):
        name = rng.choice(list(classes))
        x, y = left + rng.randrange(8), 8 + rng.randrange(20)
        box = (x, y, x + 30 + rng.randrange(14), y + 30 + rng.randrange(30))
        ImageDraw.Draw(image).rectangle(box, fill=CLASSES[name])
        things.append((name, box))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return things


def make_voc(root: Path, train: int = 8, test: int = 5) -> Path:
    """`root`/VOC2007 with `trainval` and `test` lists; no `bus` in the test images. Returns root."""
    folder = root / "VOC2007"
    for split, count, classes in (("trainval", train, tuple(CLASSES)), ("test", test, ("cat", "dog"))):
        ids = [f"{len(split)}{k:05d}" for k in range(count)]
        for k, name in enumerate(ids):
            things = draw(folder / "JPEGImages" / f"{name}.jpg", 100 * len(split) + k, classes)
            write_annotation(folder / "Annotations" / f"{name}.xml", things)
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(ids) + "\n")
    return root


def write_annotation(path: Path, things: Sequence[Thing]) -> None:
    objects = "".join(
        f"<object><name>{name}</name><pose>Frontal</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1 + 1}</xmax><ymax>{y1 + 1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in things
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>{objects}</annotation>"
    )


def make_coco(root: Path, train: int = 8, test: int = 5) -> Path:
    """`root`/coco with train2017 and val2017, boxes and polygons, COCO's own category numbers. Returns root."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    numbers = {item["name"]: item["id"] for item in COCO_CATEGORIES if item["isthing"]}
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    for split, count in (("train2017", train), ("val2017", test)):
        images, annotations = [], []
        for k in range(count):
            name = f"{k + 1:012d}.jpg"
            images.append({"id": k + 1, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            for label, (x0, y0, x1, y1) in draw(root / "coco" / split / name, len(split) + 10 * k):
                width, height = x1 - x0, y1 - y0
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": k + 1, "category_id": numbers[label], "iscrowd": 0,
                        "bbox": [x0, y0, width, height], "area": width * height,
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    }
                )  # fmt: skip
        path = root / "coco" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def trained_state(arch: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A torchvision state dict whose BatchNorm statistics and weights are not those of a fresh model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_resnet(arch).state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return state


def save_torchvision(path: Path, arch: str) -> Path:
    """A file as torchvision publishes them, classifier included."""
    torch.save(trained_state(arch) | {"fc.weight": torch.zeros(10, 8), "fc.bias": torch.zeros(10)}, path)
    return path


def converted(tmp_path: Path, arch: str):
    """(backbone, its tensors under detectron2's names, the path to write them to) of a new torchvision file."""
    from detection import weights

    backbone = load_backbone(save_torchvision(tmp_path / "net.pth", arch))
    return backbone, weights.to_detectron2(backbone), tmp_path / "net.pkl"
