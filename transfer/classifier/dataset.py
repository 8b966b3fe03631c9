"""ImageList with labels for training a classifier: a function of (seed, epoch, sample), so that a stopped run goes on
with the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as pixels

from adco.config.schema import ViewConfig
from adco.data.batch import Request, RowByRow
from adco.data.images import UnreadableImage, read_image
from adco.data.transforms import functional, parameters
from adco.utils import distributed, philox
from adco.utils.device import constant, upload
from adco.utils.errors import UserError
from adco.utils.threads import at_once, host_memory
from transfer.classifier.protocols import ClassifierProtocol
from transfer.features.reading import ImageList

VOC_PX = 300
VOC_DEGREES = 25
# AlexNet's colour noise: eigenvalues and eigenvectors of ImageNet's RGB covariance, pixels in [0, 1]
PCA_VALUES = (0.2175, 0.0188, 0.0045)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PCA_DEVIATION = 0.1


@dataclass(frozen=True)
class Labelled:
    """ImageList and their labels: (N,) class numbers, or (N, C) of 1 and 0 for several labels an image."""

    images: ImageList
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def requests(seed: int, count: int, batch: int, first_step: int, last_step: int) -> Iterator[Request]:
    """This rank's share of steps [first_step, last_step). An epoch's last batch is smaller, filled up to a multiple of
    the ranks with the epoch's first samples, as torch's DistributedSampler does."""
    per_epoch, order, current = -(-count // batch), None, None
    rank, ranks = distributed.rank(), distributed.world_size()
    for step in range(first_step, last_step):
        epoch, place = divmod(step, per_epoch)
        if epoch != current:
            current, order = epoch, philox.permutation(seed, epoch, count)
        samples = order[place * batch : (place + 1) * batch]
        missing = -len(samples) % ranks
        yield Request(epoch, np.concatenate([samples, np.resize(order, missing)])[rank::ranks])


class TrainingPictures:
    """Request -> (request, uint8 crops (B, 3, S, S), labels, reasons by path of unreadable images).

    An unreadable image gives its place to the next readable one, with that one's label.
    """

    def __init__(self, data: Labelled, recipe: ClassifierProtocol, crop_px: int, seed: int):
        self.data, self.recipe, self.crop_px, self.seed = data, recipe, crop_px, seed

    def __getitem__(self, request: Request) -> tuple[Request, Tensor, Tensor, dict[str, str]]:
        return at_once(self.begin(request, torch.device("cpu")))

    def begin(self, request: Request, device: torch.device) -> RowByRow:
        """The same in the making, in memory that a copy to the device is fast from."""
        size, uniform = len(request.samples), _uniforms(self.recipe, self.seed, request, self.crop_px)
        crops = host_memory((size, 3, self.crop_px, self.crop_px), torch.uint8, device)
        taken = np.empty(size, dtype=np.int64)  # which image each row shows

        def fill(row: int, sample: int, bad: dict[str, str]) -> None:
            image, taken[row] = self._decode(sample, bad)
            crops.numpy()[row] = self._cut(image, uniform[row])

        def finish(bad: dict[str, str]) -> tuple[Request, Tensor, Tensor, dict[str, str]]:
            return request, crops, torch.from_numpy(self.data.labels[taken]), bad

        return RowByRow(request.samples, fill, finish)

    def _cut(self, image: Image.Image, uniform: np.ndarray) -> np.ndarray:
        if self.recipe.view == "voc":
            return voc_view(image, self.crop_px, uniform)
        scale = _view(self.recipe, self.crop_px).scale
        return parameters.resized_crop(image, self.crop_px, parameters.crop_box(*image.size, scale, uniform))

    def _decode(self, sample: int, bad: dict[str, str]) -> tuple[Image.Image, int]:
        images = self.data.images
        for step in range(len(self.data)):
            found = (sample + step) % len(self.data)
            try:
                return read_image(images.root / images.paths[found]), found
            except UnreadableImage as error:
                bad[images.paths[found]] = error.reason
        raise UserError(f"{images.root}: none of the {len(self.data)} {images.name} images can be read")


def to_network(
    crops: Tensor, request: Request, recipe: ClassifierProtocol, crop_px: int, seed: int, device: torch.device
):
    """uint8 crops (B, 3, S, S) -> the network's float input on the device, with the pixel work of the recipe's view.

    The random choices stay on the CPU, and the CPU waits for no copy to a GPU.
    """
    crops = upload(crops, device)
    if recipe.view == "voc":
        return standardise(crops.float() / 255, recipe)
    choices = parameters.sample_params(_view(recipe, crop_px), seed, request.epoch, request.samples, 0).choices
    images = functional.augment(crops, choices)
    if recipe.lighting:
        images = images + lighting(seed, request, images) / _per_channel(functional.STD, images)
    return renormalised(images, recipe)


def lighting(seed: int, request: Request, images: Tensor) -> Tensor:
    """(B, 3, 1, 1): PCA noise of standard deviation 0.1 for images in [0, 1], one draw an image."""
    u = philox.uniforms(seed, request.epoch, request.samples, 1, 6)
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, :3])), 2 * np.pi * u[:, 3:]
    alpha = PCA_DEVIATION * radius * np.cos(angle)
    noise = (alpha * np.array(PCA_VALUES)) @ np.array(PCA_VECTORS).T
    return upload(torch.from_numpy(noise).to(images.dtype), images.device)[:, :, None, None]


def standardise(images: Tensor, recipe: ClassifierProtocol) -> Tensor:
    """Images in [0, 1] minus the recipe's mean, over its standard deviation."""
    return (images - _per_channel(recipe.mean, images)) / _per_channel(recipe.std, images)


def renormalised(images: Tensor, recipe: ClassifierProtocol) -> Tensor:
    """Images normalised with ImageNet's statistics -> with the recipe's."""
    if (recipe.mean, recipe.std) == (functional.MEAN, functional.STD):
        return images
    return standardise(images * _per_channel(functional.STD, images) + _per_channel(functional.MEAN, images), recipe)


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    """Three numbers as (3, 1, 1), where and as what the images are."""
    return constant(values, images.device, images.dtype).view(3, 1, 1)


def voc_view(image: Image.Image, px: int, uniform: np.ndarray) -> np.ndarray:
    """The released AdCo code's view: px x px, brightness 0.8-1.2 or (p = 0.25) grey, flip (p = 0.25), +-25 degrees."""
    choice, strength, gray, flip, angle = uniform
    image = pixels.resize(image, [px, px], pixels.InterpolationMode.BILINEAR, antialias=True)
    if choice < 0.5:
        image = pixels.adjust_brightness(image, 0.8 + 0.4 * strength)
    elif gray < 0.25:
        image = pixels.rgb_to_grayscale(image, 3)
    if flip < 0.25:
        image = pixels.hflip(image)
    return np.asarray(pixels.rotate(image, VOC_DEGREES * (2 * angle - 1))).transpose(2, 0, 1).copy()


def _view(recipe: ClassifierProtocol, px: int) -> ViewConfig:
    jittered = 1.0 if any(recipe.jitter) else 0.0
    return ViewConfig(
        px=px, scale=[0.08, 1.0], jitter=list(recipe.jitter), jitter_p=jittered, gray_p=0.0, blur_p=0.0, flip_p=0.5
    )


def _uniforms(recipe: ClassifierProtocol, seed: int, request: Request, px: int) -> np.ndarray:
    if recipe.view == "voc":
        return philox.uniforms(seed, request.epoch, request.samples, 0, 5)
    return parameters.sample_params(_view(recipe, px), seed, request.epoch, request.samples, 0).crops
