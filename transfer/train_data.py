"""Pictures with labels for training a classifier: a function of (seed, epoch, sample), so that a stopped run goes on
with the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as pixels

from adco import augment, counter, distributed, views
from adco.config import View
from adco.errors import UserError
from adco.images import UnreadableImage, read_image
from adco.stopping import leave_ctrl_c
from transfer.features import Pictures
from transfer.recipes import Recipe

VOC_PX = 300
VOC_DEGREES = 25
# AlexNet's colour noise: eigenvalues and eigenvectors of ImageNet's RGB covariance, pixels in [0, 1]
PCA_VALUES = (0.2175, 0.0188, 0.0045)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PCA_DEVIATION = 0.1


@dataclass(frozen=True)
class Labelled:
    """Pictures and their labels: (N,) class numbers, or (N, C) of 1 and 0 for several labels a picture."""

    pictures: Pictures
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Request:
    """This rank's samples of one step, and the epoch whose random choices they take."""

    epoch: int
    samples: np.ndarray


def requests(seed: int, count: int, batch: int, first_step: int, last_step: int) -> Iterator[Request]:
    """This rank's share of steps [first_step, last_step). An epoch's last batch is smaller, filled up to a multiple of
    the ranks with the epoch's first samples, as torch's DistributedSampler does."""
    per_epoch, order, current = -(-count // batch), None, None
    rank, ranks = distributed.rank(), distributed.ranks()
    for step in range(first_step, last_step):
        epoch, place = divmod(step, per_epoch)
        if epoch != current:
            current, order = epoch, counter.permutation(seed, epoch, count)
        samples = order[place * batch : (place + 1) * batch]
        missing = -len(samples) % ranks
        yield Request(epoch, np.concatenate([samples, np.resize(order, missing)])[rank::ranks])


class TrainingPictures(Dataset):
    """Request -> (request, uint8 crops (B, 3, S, S), labels, reasons by path of unreadable pictures).

    An unreadable picture gives its place to the next readable one, with that one's label.
    """

    def __init__(self, data: Labelled, recipe: Recipe, crop_px: int, seed: int):
        self.data, self.recipe, self.crop_px, self.seed = data, recipe, crop_px, seed

    def __getitem__(self, request: Request) -> tuple[Request, Tensor, Tensor, dict[str, str]]:
        bad: dict[str, str] = {}
        uniform = _uniforms(self.recipe, self.seed, request, self.crop_px)
        crops, rows = [], []
        for row, sample in enumerate(request.samples):
            image, found = self._decode(int(sample), bad)
            rows.append(found)
            crops.append(self._cut(image, uniform[row]))
        return request, torch.from_numpy(np.stack(crops)), torch.from_numpy(self.data.labels[rows]), bad

    def _cut(self, image: Image.Image, uniform: np.ndarray) -> np.ndarray:
        if self.recipe.view == "voc":
            return voc_view(image, self.crop_px, uniform)
        scale = _view(self.recipe, self.crop_px).scale
        return views.cut(image, self.crop_px, views.crop_box(*image.size, scale, uniform))

    def _decode(self, sample: int, bad: dict[str, str]) -> tuple[Image.Image, int]:
        pictures = self.data.pictures
        for step in range(len(self.data)):
            found = (sample + step) % len(self.data)
            try:
                return read_image(pictures.root / pictures.paths[found]), found
            except UnreadableImage as error:
                bad[pictures.paths[found]] = error.reason
        raise UserError(f"{pictures.root}: none of the {len(self.data)} {pictures.name} pictures can be read")


def training_batches(data: TrainingPictures, wanted: Iterator[Request], workers: int, device: torch.device):
    """A loader that yields one item of `data` a request, in order."""
    return DataLoader(
        data, sampler=wanted, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None, worker_init_fn=leave_ctrl_c,
    )  # fmt: skip


def to_network(crops: Tensor, request: Request, recipe: Recipe, crop_px: int, seed: int, device: torch.device):
    """uint8 crops -> the network's float input on the device, with the pixel work of the recipe's view."""
    crops = crops.to(device, non_blocking=True)
    if recipe.view == "voc":
        return standardise(crops.float() / 255, recipe)
    choices = views.draw(_view(recipe, crop_px), seed, request.epoch, request.samples, 0).choices
    images = augment.augment(crops, choices.map(lambda tensor: tensor.to(device)))
    if recipe.lighting:
        images = images + lighting(seed, request, images) / images.new_tensor(augment.STD).view(3, 1, 1)
    return renormalised(images, recipe)


def lighting(seed: int, request: Request, images: Tensor) -> Tensor:
    """(B, 3, 1, 1): PCA noise of standard deviation 0.1 for images in [0, 1], one draw a picture."""
    u = counter.uniforms(seed, request.epoch, request.samples, 1, 6)
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, :3])), 2 * np.pi * u[:, 3:]
    alpha = PCA_DEVIATION * radius * np.cos(angle)
    noise = (alpha * np.array(PCA_VALUES)) @ np.array(PCA_VECTORS).T
    return torch.from_numpy(noise).to(images)[:, :, None, None]


def standardise(images: Tensor, recipe: Recipe) -> Tensor:
    """Images in [0, 1] minus the recipe's mean, over its standard deviation."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    return (images - mean) / std


def renormalised(images: Tensor, recipe: Recipe) -> Tensor:
    """Images normalised with ImageNet's statistics -> with the recipe's."""
    if (recipe.mean, recipe.std) == (augment.MEAN, augment.STD):
        return images
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (augment.MEAN, augment.STD))
    return standardise(images * std + mean, recipe)


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


def _view(recipe: Recipe, px: int) -> View:
    jittered = 1.0 if any(recipe.jitter) else 0.0
    return View(
        px=px, scale=[0.08, 1.0], jitter=list(recipe.jitter), jitter_p=jittered, gray_p=0.0, blur_p=0.0, flip_p=0.5
    )


def _uniforms(recipe: Recipe, seed: int, request: Request, px: int) -> np.ndarray:
    if recipe.view == "voc":
        return counter.uniforms(seed, request.epoch, request.samples, 0, 5)
    return views.draw(_view(recipe, px), seed, request.epoch, request.samples, 0).crops
