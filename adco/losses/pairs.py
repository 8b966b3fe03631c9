"""Which view's query is to find which view's key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """The query of view `query` is to find the key of view `key`; `weight` scales its loss and its bank gradient."""

    query: int
    key: int
    weight: float


def make_pairs(views: int, symmetric: bool) -> tuple[Pair, ...]:
    """The weighted query-key pairs of single crop, symmetric, multi-crop and symmetric multi-crop AdCo.

    The last view is the key of all others and their losses are summed (one query view: single crop). Symmetric: the
    first view is a key of all others as well, and the mean of the two directions is taken.
    """
    keys = (views - 1, 0) if symmetric else (views - 1,)
    return tuple(Pair(query, key, 1 / len(keys)) for key in keys for query in range(views) if query != key)
