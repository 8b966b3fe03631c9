"""Which view's query is to find which view's key, and with what weight: single crop, symmetric and multi-crop alike."""

from __future__ import annotations

from dataclasses import dataclass

LARGE_VIEWS = (0, 1)  # of CaCo's and SwAV's multi-crop: the keys, and the crops that are assigned to prototypes


@dataclass(frozen=True)
class Pair:
    """A term of the loss.

    Attributes:
        query: Number of the view whose queries are classified.
        key: Number of the view whose keys are their positives.
        weight: Factor of the pair's cross-entropy, and of its part of the bank's gradient.
    """

    query: int
    key: int
    weight: float


def make_pairs(views: int, symmetric: bool) -> tuple[Pair, ...]:
    """The pairs of AdCo, MoCo, SimCLR and SimSiam.

    The last view is the key of all others, and their losses are summed, as in the released multi-crop code.

    Args:
        views: Number of views, at least 2.
        symmetric: Make the first view a key of all others as well, and take the mean of the two directions.

    Returns:
        The pairs, grouped by their key.
    """
    keys = (views - 1, 0) if symmetric else (views - 1,)
    return tuple(Pair(query, key, 1 / len(keys)) for key in keys for query in range(views) if query != key)


def make_caco_pairs(views: int) -> tuple[Pair, ...]:
    """The pairs of CaCo: views 0 and 1, the large ones, are the keys of all other views.

    Args:
        views: Number of views, at least 2.

    Returns:
        With two views both directions, summed, as released. With more, the mean over the pairs of large views and the
        mean over the others.
    """
    large = ((0, 1), (1, 0))
    if views == 2:
        return tuple(Pair(query, key, 1.0) for query, key in large)
    small = tuple((query, key) for query in range(2, views) for key in LARGE_VIEWS)
    return tuple(Pair(query, key, 1 / len(group)) for group in (large, small) for query, key in group)


def make_swav_pairs(views: int) -> tuple[Pair, ...]:
    """The pairs of SwAV: every other view predicts the assignments of views 0 and 1; the mean over all of them.

    Args:
        views: Number of views, at least 2.

    Returns:
        The pairs; `key` is the view that is assigned, `query` the one that predicts.
    """
    weight = 1 / (len(LARGE_VIEWS) * (views - 1))
    return tuple(Pair(query, key, weight) for key in LARGE_VIEWS for query in range(views) if query != key)
