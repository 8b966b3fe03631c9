"""Labelled images for training a classifier: each view is a function of (seed, epoch, sample), so that a resumed run
sees the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from adco.config.schema import ViewConfig
from adco.data.batch import Request, RowByRow
from adco.data.images import ImageIndex, UnreadableImage, read_image
from adco.data.loader import shuffled_steps
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
    """Images and their labels.

    Attributes:
        images: N images.
        labels: (N,) class numbers, or (N, C) of 1 and 0 where an image has several labels.
        classes: the names of the C classes.
    """

    images: ImageList
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def labelled(index: ImageIndex, name: str) -> Labelled:
    """Turn an indexed image folder into training data; `name` is a word for progress and files, e.g. `val`."""
    return Labelled(ImageList(index.root, index.paths, name), np.array(index.labels), index.classes)


def requests(seed: int, count: int, batch: int, first_step: int, last_step: int) -> Iterator[Request]:
    """Yield this rank's share of the steps [first_step, last_step), `batch` of `count` samples each over all ranks.

    An epoch's last batch is smaller. It is filled up to a multiple of the ranks with the epoch's first samples, as
    torch's DistributedSampler does.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    for epoch, place, order in shuffled_steps(seed, count, -(-count // batch), first_step, last_step):
        samples = order[place * batch : (place + 1) * batch]
        missing = -len(samples) % ranks
        yield Request(epoch, np.concatenate([samples, np.resize(order, missing)])[rank::ranks])


class TrainingBatch(NamedTuple):
    """One rank's images of a step.

    Attributes:
        request: the epoch and the samples.
        crops: (B, 3, S, S) uint8.
        labels: (B,) class numbers, or (B, C) of 1 and 0.
        bad: the reasons of unreadable images by path.
    """

    request: Request
    crops: Tensor
    labels: Tensor
    bad: dict[str, str]


class TrainingPictures:
    """Request -> TrainingBatch.

    The next readable image, with its label, takes the place of an unreadable one.
    """

    def __init__(self, data: Labelled, protocol: ClassifierProtocol, crop_px: int, seed: int):
        self.data, self.protocol, self.crop_px, self.seed = data, protocol, crop_px, seed

    def __getitem__(self, request: Request) -> TrainingBatch:
        return at_once(self.begin(request, torch.device("cpu")))

    def begin(self, request: Request, device: torch.device) -> RowByRow[TrainingBatch]:
        """Start a batch that threads make row by row, in memory that can be copied to the device quickly."""
        size, uniform = len(request.samples), _uniforms(self.protocol, self.seed, request, self.crop_px)
        crops = host_memory((size, 3, self.crop_px, self.crop_px), torch.uint8, device)
        shown = np.empty(size, dtype=np.int64)  # the image in each row

        def fill(row: int, sample: int, bad: dict[str, str]) -> None:
            image, shown[row] = self._decode(sample, bad)
            crops.numpy()[row] = self._crop(image, uniform[row])

        def finish(bad: dict[str, str]) -> TrainingBatch:
            return TrainingBatch(request, crops, torch.from_numpy(self.data.labels[shown]), bad)

        return RowByRow(request.samples, fill, finish)

    def _crop(self, image: Image.Image, uniform: np.ndarray) -> np.ndarray:
        if self.protocol.view == "voc":
            return voc_view(image, self.crop_px, uniform)
        scale = _view(self.protocol, self.crop_px).scale
        return parameters.resized_crop(image, self.crop_px, parameters.crop_box(*image.size, scale, uniform))

    def _decode(self, sample: int, bad: dict[str, str]) -> tuple[Image.Image, int]:
        images = self.data.images
        for step in range(len(self.data)):
            position = (sample + step) % len(self.data)
            try:
                return read_image(images.root / images.paths[position]), position
            except UnreadableImage as error:
                bad[images.paths[position]] = error.reason
        raise UserError(f"{images.root}: none of the {len(self.data)} {images.name} images can be read")


def to_network(
    crops: Tensor, request: Request, protocol: ClassifierProtocol, crop_px: int, seed: int, device: torch.device
) -> Tensor:
    """Turn crops into the network's input, with the pixel work of the protocol's view: flip, jitter, lighting.

    The random choices are made on the CPU, which waits for no copy to a GPU.

    Args:
        crops: (B, 3, S, S) uint8 on the CPU.
        request: the epoch and the B samples that the choices belong to.
        protocol: its view, jitter, lighting and statistics are used.
        crop_px: S.
        seed: the seed of the choices.
        device: where the result is computed.

    Returns:
        (B, 3, S, S) float32 on the device, normalised with the protocol's mean and standard deviation.
    """
    crops = upload(crops, device)
    if protocol.view == "voc":
        return standardise(crops.float() / 255, protocol)
    choices = parameters.sample_params(_view(protocol, crop_px), seed, request.epoch, request.samples, 0).choices
    images = functional.augment(crops, choices)
    if protocol.lighting:
        images = images + lighting(seed, request, images) / _per_channel(functional.STD, images)
    return renormalised(images, protocol)


def lighting(seed: int, request: Request, images: Tensor) -> Tensor:
    """Draw AlexNet's PCA colour noise (Krizhevsky et al., 2012), one draw per image.

    Args:
        seed: the seed; with the request's epoch and samples it determines the noise.
        request: B samples.
        images: gives dtype and device.

    Returns:
        (B, 3, 1, 1), the noise of standard deviation 0.1 along the principal components, for images in [0, 1].
    """
    u = philox.uniforms(seed, request.epoch, request.samples, 1, 6)
    # Box-Muller: two uniform numbers -> one normal number, three per image: (B, 3)
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, :3])), 2 * np.pi * u[:, 3:]
    alpha = PCA_DEVIATION * radius * np.cos(angle)
    # from principal components to RGB: (B, 3)
    noise = (alpha * np.array(PCA_VALUES)) @ np.array(PCA_VECTORS).T
    return upload(torch.from_numpy(noise).to(images.dtype), images.device)[:, :, None, None]


def standardise(images: Tensor, protocol: ClassifierProtocol) -> Tensor:
    """Normalise images (..., 3, H, W) in [0, 1] with the protocol's mean and standard deviation."""
    return (images - _per_channel(protocol.mean, images)) / _per_channel(protocol.std, images)


def renormalised(images: Tensor, protocol: ClassifierProtocol) -> Tensor:
    """Images (..., 3, H, W) normalised with ImageNet's statistics -> the same normalised with the protocol's."""
    if (protocol.mean, protocol.std) == (functional.MEAN, functional.STD):
        return images
    return standardise(images * _per_channel(functional.STD, images) + _per_channel(functional.MEAN, images), protocol)


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    """Three numbers as (3, 1, 1), with the images' device and dtype."""
    return constant(values, images.device, images.dtype).view(3, 1, 1)


def voc_view(image: Image.Image, px: int, uniform: np.ndarray) -> np.ndarray:
    """The training view of the released AdCo code for VOC07.

    Resize to px x px, then with probability 0.5 brightness 0.8 to 1.2, else grey (p = 0.25), then flip (p = 0.25), then
    rotate by up to 25 degrees.

    Args:
        image: RGB.
        px: side of the view.
        uniform: (5,) numbers in [0, 1): brightness or not, its strength, grey, flip, angle.

    Returns:
        (3, px, px) uint8.
    """
    choice, strength, gray, flip, angle = uniform
    image = image.resize((px, px), Image.Resampling.BILINEAR)
    if choice < 0.5:
        image = ImageEnhance.Brightness(image).enhance(0.8 + 0.4 * strength)
    elif gray < 0.25:
        image = image.convert("L").convert("RGB")
    if flip < 0.25:
        image = ImageOps.mirror(image)
    return np.asarray(image.rotate(VOC_DEGREES * (2 * angle - 1))).transpose(2, 0, 1).copy()


def _view(protocol: ClassifierProtocol, px: int) -> ViewConfig:
    jitter_p = 1.0 if any(protocol.jitter) else 0.0
    return ViewConfig(
        px=px, scale=[0.08, 1.0], jitter=list(protocol.jitter), jitter_p=jitter_p, gray_p=0.0, blur_p=0.0, flip_p=0.5
    )


def _uniforms(protocol: ClassifierProtocol, seed: int, request: Request, px: int) -> np.ndarray:
    """The random numbers of each image's crop, or of its VOC view: (B, ...)."""
    if protocol.view == "voc":
        return philox.uniforms(seed, request.epoch, request.samples, 0, 5)
    return parameters.sample_params(_view(protocol, px), seed, request.epoch, request.samples, 0).crops
