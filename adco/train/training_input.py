"""The input of a pretraining run: its images, the batches that they make, and which of them could not be read."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.data.images import BadImages
from adco.data.in_memory import in_memory
from adco.data.loader import Batch, ViewDataset, batches, requests
from adco.data.sources import open_images
from adco.train.gradient_cache import split
from adco.utils import distributed
from adco.utils.device import resolve_workers
from adco.utils.errors import UserError


class TrainingInput:
    """This rank's part of the input.

    Args:
        recipe: Configuration of the run.
        device: This rank's device.

    Attributes:
        index: The training images, in memory if the recipe says so.
        sizes: `ImageIndex.sizes` of the files.
        bad: Images that could not be read.
        workers: Number of threads that make batches.
        steps_per_epoch: Number of whole batches of an epoch.

    Raises:
        UserError: The images cannot be opened, or the batch does not fit their number, the ranks and micro-batches.
    """

    def __init__(self, recipe: PretrainConfig, device: torch.device):
        self.recipe, self.device = recipe, device
        self.workers = resolve_workers(recipe.data.workers, device)
        self.index = open_images(recipe.data.root)
        self.sizes = self.index.sizes
        if recipe.data.in_memory:
            self.index = in_memory(self.index, self.workers)
        self.steps_per_epoch = len(self.index) // recipe.batch
        self._check_sizes()
        self.bad = BadImages(self.index.root, len(self.index), recipe.data.max_bad_share, "data.max_bad_share")

    def batches(self, first: int, last: int, first_epoch: int = 0) -> Generator[Batch, None, None]:
        """This rank's batches of the steps from `first` to before `last`, counted from the start of `first_epoch`."""
        recipe, rank, ranks = self.recipe, distributed.rank(), distributed.world_size()
        most_bad = int(recipe.data.max_bad_share * len(self.index))
        dataset = ViewDataset(self.index, recipe.views, recipe.seed, most_bad, recipe.data.backend)
        wanted = requests(recipe.seed, len(self.index), recipe.batch, first, last, first_epoch, rank, ranks)
        return batches(dataset, wanted, self.workers, self.device)

    def micro_batches(self, batch: Batch) -> list[list[Tensor]]:
        """The batch's views on the device, in `compute.accumulate` parts: lists of views (b, 3, S, S)."""
        compute = self.recipe.compute
        return split(batch.to_views(self.device, compute.channels_last), compute.accumulate)

    def files_of(self, step: int) -> list[str]:
        """The images of a step, of all ranks."""
        recipe = self.recipe
        (request,) = requests(recipe.seed, len(self.index), recipe.batch, step, step + 1)
        return [self.index.paths[sample] for sample in request.samples]

    def _check_sizes(self) -> None:
        recipe, images = self.recipe, len(self.index)
        parts = distributed.world_size() * recipe.compute.accumulate * recipe.encoder.norm_splits
        if not self.steps_per_epoch:
            raise UserError(f"recipe: batch={recipe.batch} is larger than the {images} images of {self.index.root}")
        if recipe.batch % parts or recipe.batch // parts < 2:
            raise UserError(
                f"recipe: batch={recipe.batch} does not divide into {parts} parts of at least 2 images (ranks="
                f"{distributed.world_size()} x compute.accumulate x encoder.norm_splits); change one of them"
            )
