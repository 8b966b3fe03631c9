"""Every kind of source that `data.root` may name, opened as images in a fixed order (adco.data.images.ImageIndex)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adco.data.images import ArrayIndex, ImageIndex, index_folder
from adco.data.shards import index_shards
from adco.utils.errors import UserError


def open_images(root: str, split: str = "train") -> ImageIndex:
    """The `train` or `val` images of `root`.

    Args:
        root: FOLDER with `train/` and `val/` (ImageNet's layout), or for training any folder of images; tar shards
            `PATH/{000..146}.tar` or `https://HOST/{000..146}.tar`; `cifar10:FOLDER`, `cifar100:FOLDER`,
            `imagenette:FOLDER` in torchvision's layout.
        split: `train` or `val`.

    Raises:
        UserError: there is no such source, or it has no images.
    """
    if not root:
        raise UserError(
            "recipe: data.root is not set; add data.root=FOLDER, with train/CLASS/*.jpg or images in it; "
            "without images of your own, python tools/make_sample.py OUT --seed 0 draws some"
        )
    if root == "sample" and not Path(root).exists():
        raise UserError(
            "data.root=sample: no such folder; draw the sample with python tools/make_sample.py OUT --seed 0, "
            "then set data.root=OUT/imagenet"
        )
    kind, colon, place = root.partition(":")
    if colon and kind in _LAYOUTS:
        return _LAYOUTS[kind](Path(place).expanduser(), split)
    if root.endswith(".tar"):
        if split != "train":
            raise UserError(f"{root}: shards hold training images only; set probe.root to a folder with train and val")
        return index_shards(root)
    folder = Path(root)
    inner = folder / split
    return index_folder(inner if inner.is_dir() or split != "train" else folder)


def _imagenette(place: Path, split: str) -> ImageIndex:
    names = ("imagenette2", "imagenette2-320", "imagenette2-160", ".")
    for folder in (place / name / split for name in names):
        if folder.is_dir():
            return index_folder(folder)
    raise UserError(
        f"imagenette:{place}: none of {', '.join(names[:-1])} is there; torchvision's Imagenette makes them"
    )


def _cifar(name: str) -> Callable[[Path, str], ImageIndex]:
    def opened(place: Path, split: str) -> ImageIndex:
        from torchvision import datasets

        try:  # torchvision unpickles these files only when their MD5 is the published one
            dataset = getattr(datasets, name)(str(place), train=split == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{name.lower()}:{place}: {error}; expected torchvision's {name} there") from error
        paths = tuple(f"{split}/{number:05d}" for number in range(len(dataset.data)))
        return ArrayIndex(place, paths, tuple(map(int, dataset.targets)), tuple(dataset.classes), dataset.data)

    return opened


_LAYOUTS = {"cifar10": _cifar("CIFAR10"), "cifar100": _cifar("CIFAR100"), "imagenette": _imagenette}
