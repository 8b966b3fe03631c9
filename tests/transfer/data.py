"""Tiny data sets for the tests of transfer/: coloured shapes that even an untrained network can tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from adco.data.images import index_folder
from transfer.classifier.dataset import Labelled, labelled

COLOURS = {"bird": (220, 40, 40), "cat": (40, 200, 60), "dog": (50, 70, 230)}


def draw_image(seed: int, colours: list[tuple[int, int, int]], size: tuple[int, int] = (80, 64)) -> Image.Image:
    """Grey noise with one filled shape per colour."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(90, 160, (size[1], size[0], 3), dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    for colour in colours:
        x, y = generator.integers(0, size[0] // 2), generator.integers(0, size[1] // 2)
        draw.ellipse([x, y, x + size[0] // 2, y + size[1] // 2], fill=colour)
    return image


def make_voc(parent: Path, trainval: int = 24, test: int = 12) -> Path:
    """VOCdevkit/VOC2007 below `parent` with three classes; every sixth image calls one absent class difficult."""
    root = parent / "VOCdevkit" / "VOC2007"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    names = list(COLOURS)
    for split, first, count in (("trainval", 0, trainval), ("test", trainval, test)):
        lines = {name: [] for name in names}
        for i in range(first, first + count):
            present = [names[i % 3]] + ([names[(i + 1) % 3]] if i % 4 == 0 else [])
            draw_image(i, [COLOURS[name] for name in present]).save(root / "JPEGImages" / f"{i:06d}.jpg")
            for name in names:
                absent = 0 if i % 6 == 5 and name == names[(i + 1) % 3] else -1
                lines[name].append(f"{i:06d} {1 if name in present else absent:2d}\n")
        for name in names:
            lists = {split: lines[name]}
            if split == "trainval":
                lists |= {"train": lines[name][: count // 2], "val": lines[name][count // 2 :]}
            for which, content in lists.items():
                (root / "ImageSets" / "Main" / f"{name}_{which}.txt").write_text("".join(content))
    return root


def make_folder(root: Path, train: int = 8, val: int = 4) -> Path:
    """root/{train,val}/CLASS/N.png, that many images of each of three classes."""
    for split, count, offset in (("train", train, 0), ("val", val, 1000)):
        for c, (name, colour) in enumerate(COLOURS.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                draw_image(offset + 100 * c + i, [colour]).save(folder / f"{i}.png")
    return root


def splits(folder: Path) -> list[Labelled]:
    """Both splits of `make_folder` as training data: train and val."""
    return [labelled(index_folder(folder / name), name) for name in ("train", "val")]


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    """A command line on a small network and small images; of `more` the later words win."""
    fixed = ["--checkpoint", "random:resnet18", "--image-px", "32", "--device", "cpu", "--workers", "0"]
    return [*fixed, "--data", str(folder), "--output-dir", str(out), *more]


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder that may not exist."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_one_line_error(capsys, code: int, *parts: str) -> None:
    """Exit code 2, one line on stderr that starts with `error:` and holds all the parts."""
    error = capsys.readouterr().err
    assert code == 2
    assert len(error.splitlines()) == 1 and error.startswith("error: "), error
    for part in parts:
        assert part in error, error
