"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., 2018), as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from adco.utils.errors import UserError

MIN_TEMPERATURE = 1 / 600  # exp(1 / temperature) must stay finite in float64


def knn_predict(
    train: Tensor, train_labels: Tensor, test: Tensor, k: int, temperature: float, classes: int, chunk: int = 256
) -> Tensor:
    """Class votes of the k nearest training embeddings, each weighted by exp(cosine / temperature).

    Of training embeddings with equal cosines the first one in `train` is the nearer one, so the result does not depend
    on the device's sorting. The weights are those of Wu et al. (2018), "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination", section 3.4.

    Args:
        train: (N, D) unit embeddings of the training images.
        train_labels: (N,) integers in [0, classes).
        test: (M, D) unit embeddings of the test images, on the device of `train`.
        k: Number of neighbours, from 1 to N.
        temperature: At least `MIN_TEMPERATURE`; usually 0.07.
        classes: Number of classes C.
        chunk: Test embeddings in one matrix product, which takes chunk x N numbers of memory.

    Returns:
        (M, C) float64 votes on the CPU. The prediction is their argmax.

    Raises:
        UserError: `k` or `temperature` is out of range.

    Example:
        >>> votes = knn_predict(train, train_labels, test, k=20, temperature=0.07, classes=10)
        >>> predictions = first_argmax(votes)
    """
    if not 1 <= k <= len(train):
        raise UserError(f"kNN: k={k} must be from 1 to the number of training rows, {len(train)}; choose another k")
    if not temperature >= MIN_TEMPERATURE:
        raise UserError(f"kNN: temperature {temperature:g} is below {MIN_TEMPERATURE:.4f}; the usual one is 0.07")
    labels = train_labels.cpu().long()
    votes = torch.zeros(len(test), classes, dtype=torch.float64)
    for start in range(0, len(test), chunk):
        cosines, neighbours = _nearest(test[start : start + chunk] @ train.T, k)  # both (chunk, k)
        weights = (cosines.double() / temperature).exp()
        # each neighbour adds its weight to the column of its class
        votes[start : start + chunk].scatter_add_(1, labels[neighbours], weights)
    return votes


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int,
    temperature: float,
    classes: int,
    chunk: int = 256,
) -> float:
    """Top-1 accuracy of `knn_predict`. Of classes with equally many votes the lower class number is predicted.

    Args:
        train, train_labels, test, k, temperature, classes, chunk: See `knn_predict`.
        test_labels: (M,) integers in [0, classes).

    Returns:
        Percent of the test images, in [0, 100].

    Raises:
        UserError: `k` or `temperature` is out of range.
    """
    votes = knn_predict(train, train_labels, test, k, temperature, classes, chunk)
    return 100.0 * (first_argmax(votes) == test_labels.cpu()).double().mean().item()


def first_argmax(scores: Tensor) -> Tensor:
    """The first column that holds each row's maximum. torch.argmax promises no order among equal values.

    Args:
        scores: (M, C) numbers without NaN.

    Returns:
        (M,) int64 columns.
    """
    # columns before the first maximum are those where no maximum was seen yet
    return (scores == scores.amax(dim=1, keepdim=True)).int().cumsum(dim=1).eq(0).sum(dim=1)


def _nearest(cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns, both (M, k) on the CPU, of each row's k largest of (M, N); of equals the first columns."""
    values, columns = cosines.topk(min(k + 1, cosines.shape[1]), dim=1)
    if columns.shape[1] > k:
        # where the k-th and the next value are equal, topk's choice is arbitrary: sort these rows with a stable sort
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        for row in tied.tolist():
            order = cosines[row].argsort(descending=True, stable=True)[:k]
            values[row, :k], columns[row, :k] = cosines[row, order], order
    return values[:, :k].cpu(), columns[:, :k].cpu()
