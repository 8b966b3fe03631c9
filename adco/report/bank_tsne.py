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
PERCENTILE = 5.0  # of the queries themselves, so many percent would be outliers
NAMES = {"adco": "AdCo", "caco": "CaCo", "moco": "MoCo v2", "mochi": "MoCHi"}
QUERIES, NEAR, FAR = "#9db4d3", "#e08e2b", "#b3123f"


@dataclass(frozen=True)
class Run:
    """What a checkpoint holds for the image. rows: (K, D) unit rows of the bank; encoder: the query encoder."""

    name: str
    step: int
    recipe: PretrainConfig
    encoder: nn.Module
    rows: Tensor

    @property
    def title(self) -> str:
        return f"{self.name}: {NAMES[self.recipe.method]}, step {self.step:,}"


def load_run(path: Path) -> Run:
    """Read a checkpoint of ours. Raises UserError: not readable, another program's, of a method without a bank."""
    content = read_weights(path)
    try:
        recipe, state, step = content["recipe"], content["method"], int(content["step"])
    except (KeyError, TypeError):
        raise UserError(f"{path}: not a checkpoint of tools/train_adco.py, whose recipe and bank are needed") from None
    recipe = as_recipe(path, recipe)
    if "bank.rows" not in state:
        raise UserError(f"{path}: {recipe.method} has no bank; give checkpoints of {', '.join(NAMES)}")
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
    """(M, D) unit embeddings, on the CPU, of `images` evenly spaced images through the run's first view, a query's.

    BatchNorm uses its running statistics; images that cannot be read are left out. Raises UserError if fewer than 10
    are left.
    """
    chosen = np.linspace(0, len(index) - 1, min(images, len(index))).round().astype(int)
    wanted = (Request(0, rows) for rows in np.array_split(np.arange(len(chosen)), range(BATCH, len(chosen), BATCH)))
    draws = parameters.sample_params(run.recipe.views[0], seed, 0, chosen, 0)
    begin = partial(_views, index, chosen, run.recipe.views[0], draws, device)
    encoder, found = run.encoder.to(device), []
    for pixels, readable in in_threads(begin, wanted, workers):
        images = from_uint8(upload(pixels, device)).contiguous(memory_format=torch.channels_last)
        rows = encoder([images])[0].cpu()
        found.append(F.normalize(rows, dim=1)[readable])
    found = torch.cat(found)
    if len(found) < 10:
        raise UserError(f"{index.root}: only {len(found)} images can be read; at least 10 are needed")
    return found


def _views(
    index: ImageIndex,
    chosen: np.ndarray,
    view: ViewConfig,
    draws: parameters.ViewParams,
    device: torch.device,
    request: Request,
) -> RowByRow:
    """Random query views of images `chosen[request.samples]` in the making: (B, 3, px, px) uint8, and (B,)
    whether each could be read."""
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
    """mask: (K,) which rows are outliers; floor: the cosine below which they are; nearest: (K,) each one's largest."""

    mask: Tensor
    floor: float
    nearest: Tensor

    @property
    def share(self) -> float:
        return self.mask.float().mean().item()


def outliers(queries: Tensor, rows: Tensor, percentile: float = PERCENTILE) -> Outliers:
    """The rows that are farther from every query than queries are from each other.

    A row is an outlier if its largest cosine to any query is below the `percentile`-th percentile of what queries have
    to their nearest other query. A bank spread as the queries are has about `percentile` percent of them.
    queries: (M, D), rows: (K, D), unit rows.
    """
    among = (queries @ queries.T).fill_diagonal_(-2).amax(dim=1)
    floor = among.quantile(percentile / 100).item()
    nearest = torch.cat([(part @ queries.T).amax(dim=1) for part in rows.split(4096)])
    return Outliers(nearest < floor, floor, nearest)


def numbers(queries: Tensor, rows: Tensor, found: Outliers) -> dict[str, float | int]:
    """What the JSON beside the image says of one checkpoint."""
    return {
        "outlier_share": found.share,
        "outlier_below_cosine": found.floor,
        "median_nearest_cosine": found.nearest.median().item(),
        "bank_rows": len(rows),
        "queries": len(queries),
        "bank_effective_rank": effective_rank(rows).item(),
        "query_effective_rank": effective_rank(queries).item(),
    }


def lay_out(queries: Tensor, rows: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE (van der Maaten & Hinton, 2008) of both together in the plane: (M, 2) and (R, 2)."""
    points = torch.cat([queries, rows]).numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return plane[: len(queries)], plane[len(queries) :]


@dataclass(frozen=True)
class Panel:
    """One checkpoint's part of the image. queries (M, 2), rows (R, 2) in the plane; far: (R,) which are outliers."""

    title: str
    queries: np.ndarray
    rows: np.ndarray
    far: np.ndarray
    about: Mapping[str, float | int]


def draw(panels: Sequence[Panel]) -> bytes:
    """The PNG: a square a checkpoint, its queries, its adversaries, and among these the outliers."""
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
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=150)
        plt.close(figure)
        return file.getvalue()
