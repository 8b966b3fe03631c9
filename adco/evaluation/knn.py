"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., 2018), as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from adco.utils.errors import UserError

MIN_TEMPERATURE = 1 / 600  # exp(1 / temperature) must stay finite in float64


def knn_predict(
    train: Tensor, train_labels: Tensor, test: Tensor, k: int, temperature: float, classes: int, chunk: int = 256
) -> Tensor:
    """The votes of the k training rows of largest cosine, each weighing exp(cosine / temperature), summed by class.

    train: (N, D) unit rows; train_labels: (N,) integers in [0, classes); test: (M, D) unit rows, on one device.
    chunk: test rows per matrix product; memory is chunk x N numbers.
    Equal cosines: the row that comes first in `train` is the nearer one, so the answer does not depend on the device's
    sorting. Returns (M, classes) float64 votes on the CPU; the prediction is their argmax.
    """
    if not 1 <= k <= len(train):
        raise UserError(f"kNN: k={k} must be from 1 to the number of training rows, {len(train)}; choose another k")
    if not temperature >= MIN_TEMPERATURE:
        raise UserError(f"kNN: temperature {temperature:g} is below {MIN_TEMPERATURE:.4f}; the usual one is 0.07")
    labels = train_labels.cpu().long()
    votes = torch.zeros(len(test), classes, dtype=torch.float64)
    for start in range(0, len(test), chunk):
        cosines, rows = _nearest(test[start : start + chunk] @ train.T, k)
        weights = (cosines.double() / temperature).exp()
        votes[start : start + chunk].scatter_add_(1, labels[rows], weights)
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
    """Percent of the test rows whose class has the most votes (`knn_predict`; equal votes: the lower class number)."""
    votes = knn_predict(train, train_labels, test, k, temperature, classes, chunk)
    return 100.0 * (first_argmax(votes) == test_labels.cpu()).double().mean().item()


def first_argmax(scores: Tensor) -> Tensor:
    """(M, C) -> (M,): the first column that holds each row's maximum (torch.argmax promises no order among equals)."""
    return (scores == scores.amax(dim=1, keepdim=True)).int().cumsum(dim=1).eq(0).sum(dim=1)


def _nearest(cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(M, N) -> values and columns (M, k) of each row's k largest on the CPU, the first columns winning ties."""
    values, columns = cosines.topk(min(k + 1, cosines.shape[1]), dim=1)
    if columns.shape[1] > k:  # where the cut falls between equals, topk's choice is arbitrary: sort those rows in order
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        for row in tied.tolist():
            order = cosines[row].argsort(descending=True, stable=True)[:k]
            values[row, :k], columns[row, :k] = cosines[row, order], order
    return values[:, :k].cpu(), columns[:, :k].cpu()
