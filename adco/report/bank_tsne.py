"""Figure 2 of the AdCo paper: the bank's rows among the queries of training images, as an image and as numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.loading import as_recipe
from adco.config.schema import PretrainConfig, ViewConfig
from adco.config.validation import BANKED, METHOD_NAMES
from adco.data.batch import Request, RowByRow
from adco.data.images import ImageIndex, UnreadableImage
from adco.data.transforms import parameters
from adco.data.transforms.functional import from_uint8
from adco.data.transforms.reference import reference_levels
from adco.methods import build_method
from adco.train.embedding_metrics import effective_rank
from adco.utils.device import upload
from adco.utils.errors import UserError
from adco.utils.threads import host_memory, in_threads
from adco.weights.readers import read_weights

BATCH = 64  # images at a time
PERCENTILE = 5.0  # of the queries' cosines; about as many percent of a bank spread as the queries are outliers
QUERIES, NEAR, FAR = "#9db4d3", "#e08e2b", "#b3123f"


@dataclass(frozen=True)
class Run:
    """What figure 2 needs of a checkpoint.

    Attributes:
        name: Name of its folder.
        step: Its step.
        recipe: Its configuration.
        encoder: The query encoder, in evaluation mode.
        rows: (K, D) unit rows of the bank.
    """

    name: str
    step: int
    recipe: PretrainConfig
    encoder: nn.Module
    rows: Tensor

    @property
    def title(self) -> str:
        """Title of its panel."""
        return f"{self.name}: {METHOD_NAMES[self.recipe.method]}, step {self.step:,}"


def load_run(path: Path) -> Run:
    """Read a checkpoint of tools/train_adco.py.

    Raises:
        UserError: The file is not readable, is not such a checkpoint, or is of a method without a bank.
    """
    content = read_weights(path)
    try:
        recipe, state, step = content["recipe"], content["method"], int(content["step"])
    except (KeyError, TypeError):
        raise UserError(f"{path}: not a checkpoint of tools/train_adco.py, whose recipe and bank are needed") from None
    recipe = as_recipe(path, recipe)
    if "bank.rows" not in state:
        raise UserError(f"{path}: {recipe.method} has no bank; give checkpoints of {', '.join(BANKED)}")
    encoder = build_method(recipe).encoder
    try:
        encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: its query encoder does not fit its own recipe ({reason})") from error
    rows = F.normalize(state["bank.rows"].float(), dim=1)
    return Run(path.absolute().parent.name, step, recipe, encoder.requires_grad_(False).eval(), rows)


@torch.no_grad()
def queries_of(run: Run, index: ImageIndex, images: int, seed: int, device: torch.device, workers: int) -> Tensor:
    """Embeddings of random query views (the first view of the recipe) of evenly spaced images.

    BatchNorm uses its running statistics.

    Args:
        run: The checkpoint; its encoder is moved to `device`.
        index: The images.
        images: Number of images.
        seed: Seed of the views.
        device: Where the encoder runs.
        workers: Threads that read images.

    Returns:
        (M, D) unit embeddings on the CPU, without gradient. M is smaller than `images` if some cannot be read.

    Raises:
        UserError: Fewer than 10 images can be read.
    """
    chosen = np.linspace(0, len(index) - 1, min(images, len(index))).round().astype(int)
    wanted = (Request(0, rows) for rows in np.array_split(np.arange(len(chosen)), range(BATCH, len(chosen), BATCH)))
    draws = parameters.sample_params(run.recipe.views[0], seed, 0, chosen, 0)
    begin = partial(_views, index, chosen, run.recipe.views[0], draws, device)
    encoder, parts = run.encoder.to(device), []
    for pixels, readable in in_threads(begin, wanted, workers):
        views = from_uint8(upload(pixels, device)).contiguous(memory_format=torch.channels_last)
        embeddings = encoder([views])[0].cpu()  # (B, D)
        parts.append(F.normalize(embeddings, dim=1)[readable])
    queries = torch.cat(parts)
    if len(queries) < 10:
        raise UserError(f"{index.root}: only {len(queries)} images can be read; at least 10 are needed")
    return queries


def _views(
    index: ImageIndex,
    chosen: np.ndarray,
    view: ViewConfig,
    draws: parameters.ViewParams,
    device: torch.device,
    request: Request,
) -> RowByRow:
    """The task that makes random query views of the images `chosen[request.samples]`: (B, 3, px, px) uint8, and (B,)
    bool, whether each could be read."""
    size = len(request.samples)
    pixels = host_memory((size, 3, view.px, view.px), torch.uint8, device)
    readable = torch.ones(size, dtype=torch.bool)

    def fill(row: int, i: int, bad: dict[str, str]) -> None:
        try:
            image = index.image(int(chosen[i]))
        except UnreadableImage:
            pixels.numpy()[row], readable.numpy()[row] = 0, False
        else:
            pixels.numpy()[row] = reference_levels(image, view.px, view.scale, draws, i)

    return RowByRow(request.samples, fill, lambda bad: (pixels, readable))


@dataclass(frozen=True)
class Outliers:
    """Outliers among the rows of a bank.

    Attributes:
        mask: (K,) bool, which rows are outliers.
        floor: Rows whose largest cosine is below it are outliers.
        nearest: (K,) the largest cosine of each row to any query.
    """

    mask: Tensor
    floor: float
    nearest: Tensor

    @property
    def share(self) -> float:
        """Share of the rows that are outliers, in [0, 1]."""
        return self.mask.float().mean().item()


def outliers(queries: Tensor, rows: Tensor, percentile: float = PERCENTILE) -> Outliers:
    """The rows that are farther from every query than queries are from each other.

    A row is an outlier if its largest cosine to any query is below the `percentile`-th percentile of the cosines
    between queries and their nearest other query. A bank spread as the queries has about `percentile` percent of them.

    Args:
        queries: (M, D) unit embeddings.
        rows: (K, D) unit rows of the bank.
        percentile: In [0, 100].
    """
    # largest cosine of each query to another query: (M,)
    among = (queries @ queries.T).fill_diagonal_(-2).amax(dim=1)
    floor = among.quantile(percentile / 100).item()
    # largest cosine of each row to a query: (K,), 4096 rows at a time
    nearest = torch.cat([(part @ queries.T).amax(dim=1) for part in rows.split(4096)])
    return Outliers(nearest < floor, floor, nearest)


def numbers(queries: Tensor, rows: Tensor, outliers: Outliers) -> dict[str, float | int]:
    """The numbers of one checkpoint for the JSON file beside the image.

    Args:
        queries: (M, D) unit embeddings.
        rows: (K, D) unit rows of the bank.
        outliers: Their `outliers`.
    """
    return {
        "outlier_share": outliers.share,
        "outlier_below_cosine": outliers.floor,
        "median_nearest_cosine": outliers.nearest.median().item(),
        "bank_rows": len(rows),
        "queries": len(queries),
        "bank_effective_rank": effective_rank(rows).item(),
        "query_effective_rank": effective_rank(queries).item(),
    }


def lay_out(queries: Tensor, rows: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE (van der Maaten & Hinton, 2008) of queries and rows together in the plane.

    Args:
        queries: (M, D) unit embeddings.
        rows: (R, D) unit rows of the bank.
        seed: Seed of t-SNE.

    Returns:
        (M, 2) and (R, 2) float32.
    """
    points = torch.cat([queries, rows]).numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return plane[: len(queries)], plane[len(queries) :]


@dataclass(frozen=True)
class Panel:
    """The part of the image for one checkpoint.

    Attributes:
        title: Text above it.
        queries: (M, 2) positions of the queries.
        rows: (R, 2) positions of the bank's rows.
        far: (R,) bool, which rows are outliers.
        about: The numbers of the checkpoint, see `numbers`.
    """

    title: str
    queries: np.ndarray
    rows: np.ndarray
    far: np.ndarray
    about: Mapping[str, float | int]


def draw(panels: Sequence[Panel]) -> bytes:
    """The image as PNG: a square for each checkpoint with its queries, negatives and outlier negatives."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.2 * len(panels), 6.9), layout="constrained", squeeze=False, facecolor="white"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.scatter(*panel.queries.T, s=9, color=QUERIES, alpha=0.75, linewidths=0, label="queries")
        axis.scatter(*panel.rows[~panel.far].T, s=9, color=NEAR, alpha=0.85, linewidths=0, label="negatives")
        axis.scatter(
            *panel.rows[panel.far].T, s=11, color=FAR, alpha=0.9, linewidths=0, marker="D", label="outlier negatives"
        )
        about = panel.about
        axis.set_title(panel.title, fontsize=14, fontweight="bold", loc="left", pad=26)
        reported = f"{about['outlier_share']:.1%} of {about['bank_rows']:,} negatives are outliers"
        axis.text(0, 1.015, reported, transform=axis.transAxes, fontsize=12, color="#4b5563")
        axis.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        axis.margins(0.04)
        for side in axis.spines.values():
            side.set_color("#d1d5db")
    handles, labels = axes[0][0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=12, markerscale=2.2
    )
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1)
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=150)
        plt.close(figure)
        return file.getvalue()
