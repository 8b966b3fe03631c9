"""The C kernel against torchvision on Pillow images, one operation at a time and all together, same choices."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as pixels

from adco.config.schema import ViewConfig
from adco.data import native
from adco.data.transforms import functional, parameters
from adco.data.transforms.reference import reference_levels
from benchmarks.speed.photographs import jpeg, photograph
from tests import ROOT

pytestmark = pytest.mark.skipif(not native.available(), reason="the C kernel is not built: no compiler at install")

COUNT = 12
STD = torch.tensor(functional.STD).view(3, 1, 1)
PLAIN: dict[str, Any] = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0, "flip_p": 0.0}
FULL_VIEW: dict[str, Any] = {"scale": [1.0, 1.0], "px": 120}  # with images of 120 x 120 the resize changes nothing


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [photograph(seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def squares() -> list[np.ndarray]:
    return [photograph(100 + seed, 120, 120) for seed in range(COUNT)]


def draws(spec: ViewConfig, count: int = COUNT, seed: int = 0) -> parameters.ViewParams:
    return parameters.sample_params(spec, seed, 0, np.arange(count), 0)


def rendered(spec: ViewConfig, drawn: parameters.ViewParams, images, dtype: type = np.float32, full=True) -> np.ndarray:
    """(B, px, px, 3): every image's view by the kernel, from pixels or from a file's content."""
    out = np.empty((len(images), spec.px, spec.px, 3), dtype)
    canvas = native.Canvas([spec.scale], [drawn], [out], full)
    for row, image in enumerate(images):
        if isinstance(image, bytes):
            assert canvas.jpeg(row, image)
        else:
            canvas.pixels(row, image)
    return out


def levels(normalised: np.ndarray) -> torch.Tensor:
    """(B, px, px, 3) normalised -> (B, 3, px, px) in levels of 255."""
    mean = torch.tensor(functional.MEAN).view(3, 1, 1)
    return (torch.from_numpy(normalised).permute(0, 3, 1, 2) * STD + mean) * 255


def test_a_crop_has_pillows_pixels(photos):
    for px in (16, 48, 224):  # shrinking, and enlarging
        spec = ViewConfig(px=px, **PLAIN)
        drawn = draws(spec)
        boxes = [parameters.crop_box(160, 120, spec.scale, u) for u in drawn.crops]
        theirs = [parameters.resized_crop(Image.fromarray(p), px, box) for p, box in zip(photos, boxes, strict=True)]
        ours = rendered(spec, drawn, photos, np.uint8, full=False).transpose(0, 3, 1, 2)
        difference = np.abs(ours.astype(int) - np.stack(theirs))
        assert difference.max() <= 1  # Pillow rounds between its two passes
        assert difference.mean() < 0.3


def test_crops_are_those_of_views_for_every_shape():
    rng = np.random.default_rng(0)
    spec = ViewConfig(px=8, scale=[0.05, 1.0], **PLAIN)
    drawn = draws(spec, 60, seed=3)
    for width, height in ((500, 375), (13, 200), (1, 1), (300, 7)):
        # an image whose pixels tell their place; a crop's mean colour is the mean of its places
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        image = np.stack([x, y, rng.integers(0, 255, x.shape)], axis=-1).astype(np.uint8)
        ours = rendered(spec, drawn, [image] * 60, np.uint8, full=False)
        for row, u in enumerate(drawn.crops):
            theirs = parameters.resized_crop(
                Image.fromarray(image), 8, parameters.crop_box(width, height, spec.scale, u)
            )
            assert np.abs(ours[row].astype(int).transpose(2, 0, 1) - theirs).max() <= 1


OPERATIONS = {
    "brightness": (0, pixels.adjust_brightness, (0.6, 1.4), 0.6),
    "contrast": (1, pixels.adjust_contrast, (0.6, 1.4), 0.6),
    "saturation": (2, pixels.adjust_saturation, (0.6, 1.4), 0.6),
    "hue": (3, pixels.adjust_hue, (-0.1, 0.1), 2.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_colour_operations_equal_torchvisions(squares, name):
    number, theirs, (low, high), bound = OPERATIONS[name]
    spec = ViewConfig(**FULL_VIEW, **PLAIN)
    drawn, factors = draws(spec), np.linspace(low, high, COUNT)
    drawn.choices.factors[:, number] = torch.from_numpy(factors)
    ours = levels(rendered(spec, drawn, squares))
    on_pillow, on_floats = [], []
    for square, factor in zip(squares, factors, strict=True):
        on_pillow.append(pixels.pil_to_tensor(theirs(Image.fromarray(square), factor)))
        on_floats.append(theirs(pixels.to_tensor(square), factor) * 255)
    assert (ours - torch.stack(on_pillow)).abs().mean() < bound
    assert (ours - torch.stack(on_floats)).abs().max() < 0.1  # torchvision's red weight is 0.2989, ours Pillow's 0.299
    assert (ours - torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)).abs().mean() > 2  # it did something


def test_grey_solarize_flip_and_blur_equal_pillow(squares):
    spec = ViewConfig(**FULL_VIEW, **PLAIN)
    changes = {
        "gray": (lambda image, _: image.convert("L").convert("RGB"), 0.6),
        "solarize": (lambda image, _: pixels.solarize(image, 128), 0.01),
        "flip": (lambda image, _: pixels.hflip(image), 0.01),
        "sigma_px": (lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)), 1.0),
    }
    for name, (theirs, bound) in changes.items():
        drawn = draws(spec)
        values = torch.linspace(0.1, 2, COUNT) if name == "sigma_px" else torch.ones(COUNT, dtype=torch.bool)
        getattr(drawn.choices, name)[:] = values
        expected = [theirs(Image.fromarray(s), v) for s, v in zip(squares, values.tolist(), strict=True)]
        expected = torch.stack([pixels.pil_to_tensor(image) for image in expected])
        assert (levels(rendered(spec, drawn, squares)) - expected).abs().mean() < bound, name


def test_a_whole_view_is_within_two_levels_of_torchvision_and_of_the_device_backend(photos):
    spec = ViewConfig(px=64, solarize_p=0.3)
    drawn = draws(spec)
    ours = torch.from_numpy(rendered(spec, drawn, photos)).permute(0, 3, 1, 2)
    made = [reference_levels(Image.fromarray(p), 64, spec.scale, drawn, row) for row, p in enumerate(photos)]
    reference = [functional.from_uint8(torch.from_numpy(view.copy())) for view in made]
    assert ((ours - torch.stack(reference)).abs() * STD * 255).mean() < 2
    crops = torch.from_numpy(rendered(spec, drawn, photos, np.uint8, full=False)).permute(0, 3, 1, 2)
    device = functional.augment(crops, drawn.choices)
    assert ((ours - device).abs() * STD * 255).mean() < 0.5


def test_each_image_has_its_own_order_of_colour_operations(squares):
    spec = ViewConfig(**FULL_VIEW, **PLAIN)
    drawn = draws(spec, 24)
    drawn.choices.factors[:] = torch.tensor([1.3, 0.7, 1.4, 0.08])
    drawn.choices.order[:] = torch.from_numpy(parameters.ORDERS)
    ours = levels(rendered(spec, drawn, [squares[0]] * 24))
    for row, order in enumerate(parameters.ORDERS):
        expected = pixels.to_tensor(squares[0])
        for number in order:
            expected = list(OPERATIONS.values())[number][1](expected, drawn.choices.factors[row, number].item())
        assert (ours[row] - expected * 255).abs().max() < 0.2


def test_levels_are_the_rounded_view(photos):
    spec = ViewConfig(px=40)
    drawn = draws(spec)
    exact = levels(rendered(spec, drawn, photos)).permute(0, 2, 3, 1)
    assert (torch.from_numpy(rendered(spec, drawn, photos, np.uint8)) - exact).abs().max() < 0.51


@pytest.mark.skipif(not native.fast_jpeg(), reason="no libjpeg-turbo of this ABI beside Pillow or on the system")
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_part_of_a_jpeg_decodes_to_pillows_very_pixels(subsampling, progressive):
    images = [photograph(seed, 203 + seed, 151) for seed in range(COUNT)]
    files = [jpeg(p, subsampling=subsampling, progressive=progressive) for p in images]
    spec = ViewConfig(px=40, scale=[0.05, 0.5], **PLAIN)
    drawn = draws(spec)
    whole = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    assert np.array_equal(rendered(spec, drawn, files), rendered(spec, drawn, whole))


@pytest.mark.skipif(not native.fast_jpeg(), reason="no libjpeg-turbo of this ABI beside Pillow or on the system")
def test_unsound_and_unusual_files_are_left_to_pillow(tmp_path):
    spec = ViewConfig(px=16)
    canvas = native.Canvas([spec.scale], [draws(spec, 1)], [np.empty((1, 16, 16, 3), np.uint8)], True)
    whole = jpeg(photograph(0))
    assert canvas.jpeg(0, whole)
    middle = len(whole) // 2
    with io.BytesIO() as file:
        Image.fromarray(photograph(0)).convert("CMYK").save(file, "JPEG")
        ink = file.getvalue()
    for content in (whole[:-200], whole[:30], b"", b"\xff\xd8\xff\xd9", b"GIF89a", ink):
        assert not canvas.jpeg(0, content)
    cut = whole[:middle] + b"\xff\xd9"  # ends as a JPEG does, but half of the image is missing
    all_of_it = ViewConfig(px=16, scale=[1.0, 1.0])
    square = native.Canvas([all_of_it.scale], [draws(all_of_it, 1)], [np.empty((1, 16, 16, 3), np.uint8)], True)
    assert not square.jpeg(0, cut)
    with io.BytesIO() as file:
        Image.fromarray(photograph(0)).convert("L").save(file, "JPEG")
        assert canvas.jpeg(0, file.getvalue())  # grey is ordinary


@pytest.mark.slow
def test_a_machine_without_a_compiler_installs_without_the_kernel(tmp_path):
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"],
        cwd=ROOT, env={"CC": str(tmp_path / "no-compiler"), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert not list((tmp_path / "lib").rglob("*.so"))
