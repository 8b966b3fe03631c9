"""A dataset's views, made by Pillow, and what every other backend takes from it: the images and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from adco.config.schema import ViewConfig
from adco.data.batch import Batch, Request, RowByRow
from adco.data.images import ImageIndex, UnreadableImage, decode
from adco.data.transforms import parameters
from adco.data.transforms.reference import reference_levels
from adco.utils.threads import at_once, host_memory


class ViewDataset:
    """Request -> Batch: decode each image once, and make every view of it with the numbers of parameters.sample_params.

    An unreadable image is replaced by the next readable one of the index and named in `Batch.bad`. After more than
    `max_bad` of them in a row the image is black, and the trainer stops, because `bad` is then longer than it allows.

    Args:
        index: the images.
        specs: one configuration a view.
        seed: with epoch, sample and view, what the random numbers depend on.
        max_bad: unreadable images in a row that are replaced.
        backend: `data.backend`.
    """

    def __init__(self, index: ImageIndex, specs: Sequence[ViewConfig], seed: int, max_bad: int, backend: str = "auto"):
        self.index, self.specs, self.seed, self.max_bad, self.backend = index, specs, seed, max_bad, backend

    def __getitem__(self, request: Request) -> Batch:
        """The batch, made by Pillow at once; backend `reference`, or else `device`."""
        return at_once(self.by_pillow(request, torch.device("cpu")))

    def by_pillow(self, request: Request, device: torch.device) -> RowByRow[Batch]:
        """The batch in the making, by Pillow: uint8 pixels on the CPU, in memory from which a copy to the device is
        fast. The backend `reference` makes whole views, the others crops."""
        full = self.backend == "reference"
        draws, size = self.draws(request), len(request.samples)
        pixels = [host_memory((size, 3, spec.px, spec.px), torch.uint8, device) for spec in self.specs]

        def fill(row: int, sample: int, bad: dict[str, str]) -> None:
            image = self.image(sample, bad)
            for spec, draw, out in zip(self.specs, draws, pixels, strict=True):
                if full:
                    out.numpy()[row] = reference_levels(image, spec.px, spec.scale, draw, row)
                else:
                    box = parameters.crop_box(*image.size, spec.scale, draw.crops[row])
                    out.numpy()[row] = parameters.resized_crop(image, spec.px, box)

        choices = None if full else tuple(draw.choices for draw in draws)
        return RowByRow(request.samples, fill, lambda bad: Batch(tuple(pixels), choices, bad))

    def draws(self, request: Request) -> list[parameters.ViewParams]:
        """The random numbers of the request's views, one ViewParams a view."""
        return [
            parameters.sample_params(spec, self.seed, request.epoch, request.samples, v)
            for v, spec in enumerate(self.specs)
        ]

    def image(self, sample: int, bad: dict[str, str]) -> Image.Image:
        """The sample's RGB image, or the next readable one; adds unreadable files to `bad`, path -> reason."""
        for step in range(min(self.max_bad + 1, len(self.index))):
            number = (sample + step) % len(self.index)
            try:
                return decode(self.index.read(number), self.index.paths[number])
            except UnreadableImage as error:
                bad[self.index.paths[number]] = error.reason
        return Image.new("RGB", (8, 8))
