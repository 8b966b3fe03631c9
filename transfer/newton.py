"""Many linear SVMs over one matrix at once: batched Newton-CG for the L2-regularised squared hinge.

Each problem (a column) is LIBLINEAR's primal, min |u|^2 / 2 + cost * sum_i w_i max(0, 1 - y_i z_i.u)^2: smooth, convex,
and with a unique minimum, so any solver gives scikit-learn's `LinearSVC`. Classes, folds and costs share the matrix Z;
a product with it serves all of them. Newton's method on the rows inside the margin (Keerthi and DeCoste, JMLR 2005);
its systems are solved, while most rows are inside (small costs, mild conditioning), by conjugate gradients in the
eigenbasis of Z'Z, where the Hessian is nearly diagonal, and once few are left (large costs, hard conditioning) by
Cholesky on their part of the Gram matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NEWTON_STEPS = 100
CG_STEPS = 40
TYPICAL_CG_STEPS = 20
LINE_STEPS = 8
FORCING = 0.1  # conjugate gradients stop at this share of the gradient
NEGLIGIBLE = 1e-12  # eigenvalues of Z'Z below this share of the largest are rounding


@dataclass(frozen=True)
class Basis:
    """rows: (N, R) float64, the training rows in the eigenbasis of their Gram matrix; back: (D, R), x @ back = rows.

    R is min(N, D) at most. Distances and norms are those of the rows given.
    """

    rows: Tensor
    back: Tensor


@dataclass(frozen=True)
class Rows:
    """z: (N, R) rows that problems share, float32 or float64, and what is computed of them once, when first wanted."""

    z: Tensor

    @cached_property
    def squares(self) -> Tensor:
        """(N, R) z * z."""
        return self.z.square()

    @cached_property
    def gram(self) -> Tensor:
        """(N, N) float32, z z'."""
        z = self.z.float()
        return z @ z.T


@dataclass(frozen=True)
class Solution:
    """u: (R, P) weights; decisions: (N, P) of all rows, held-out ones too; converged: (P,) bool."""

    u: Tensor
    decisions: Tensor
    converged: Tensor


def eigenbasis(x: Tensor) -> Basis:
    """x: (N, D) float64 rows -> the same rows turned into the eigenbasis of x'x (of xx' where that is smaller)."""
    if len(x) >= x.shape[1]:
        _, back = torch.linalg.eigh(x.T @ x)
        return Basis(x @ back, back)
    values, vectors = torch.linalg.eigh(x @ x.T)
    kept = values > NEGLIGIBLE * values[-1]
    scale, vectors = values[kept].sqrt(), vectors[:, kept]
    return Basis(vectors * scale, x.T @ (vectors / scale))


def path(z: Tensor, y: Tensor, weight: Tensor, costs: Sequence[float], tolerance: float) -> Iterator[Solution]:
    """One solution per cost, in the order given: ascending is fastest, each starts from the one before it.

    z: (N, R); y: (N, P) of 1 and -1; weight: (N, P), 0 for rows that a problem does not train on; all one type.
    """
    rows, u = Rows(z), z.new_zeros(z.shape[1], y.shape[1])
    for cost in costs:
        found = minimise(rows, y, weight, z.new_full((y.shape[1],), cost), tolerance, u)
        u = found.u
        yield found


def minimise(rows: Rows, y: Tensor, weight: Tensor, cost: Tensor, tolerance: float, start: Tensor) -> Solution:
    """Newton's method on every problem until its gradient's norm is below `tolerance` times that of its weights.

    The objective is strongly convex with modulus 1, so the weights are then within `tolerance`, relatively, of the best
    ones. cost: (P,); start: (R, P); the rest as in `path`. A problem leaves the batch once it has converged.
    """
    z, u, decisions = rows.z, start.clone(), rows.z @ start
    pull = 2 * cost * weight  # (N, P): how strongly each row is pulled to its side
    live = torch.arange(y.shape[1], device=z.device)
    for _ in range(NEWTON_STEPS):
        slack = pull[:, live] * (1 - y[:, live] * decisions[:, live]).clamp_(min=0)
        gradient = u[:, live] - z.T @ (y[:, live] * slack)
        unfinished = gradient.norm(dim=0) > tolerance * u[:, live].norm(dim=0)
        live = live[unfinished]
        if not len(live):
            break
        active = pull[:, live] * (slack[:, unfinished] > 0)
        few = (active > 0).sum(dim=0) < few_rows(*z.shape)
        step, change = torch.empty_like(u[:, live]), torch.empty_like(active)
        steep = gradient[:, unfinished]
        if few.any():
            step[:, few], change[:, few] = direct_step(rows, active[:, few], steep[:, few])
        if not few.all():
            step[:, ~few], change[:, ~few] = cg_step(rows, active[:, ~few], steep[:, ~few])
        length = line_search(y[:, live], pull[:, live], u[:, live], decisions[:, live], step, change)
        u[:, live] += length * step
        decisions[:, live] += length * change
    converged = torch.ones(y.shape[1], dtype=torch.bool, device=z.device)
    converged[live] = False
    return Solution(u, decisions, converged)


def few_rows(rows: int, width: int) -> int:
    """Below how many rows inside the margin a Cholesky factor takes less work than conjugate gradients."""
    return round((3 * TYPICAL_CG_STEPS * 4 * rows * width) ** (1 / 3))


def direct_step(rows: Rows, active: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (I + z' diag(active) z) step = -gradient for each column through the Gram matrix of its active rows.

    The factor is float32 whatever z is: it only gives a direction, and Newton's method measures its gradient in full.
    active: (N, P) weights of the rows inside the margin; gradient: (R, P). Returns step (R, P) and z @ step (N, P).
    """
    z, dual = rows.z, torch.zeros_like(active)
    seen = z @ gradient
    for column in range(active.shape[1]):
        inside = active[:, column].nonzero()[:, 0]
        block = rows.gram[inside[:, None], inside]
        block.diagonal().add_(1 / active[inside, column].float())
        factor, failed = torch.linalg.cholesky_ex(block)
        if not failed:  # else the plain gradient is the direction
            dual[inside, column] = torch.cholesky_solve(seen[inside, column, None].float(), factor)[:, 0].to(z.dtype)
    step = z.T @ dual - gradient
    return step, z @ step


def cg_step(rows: Rows, active: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (I + z' diag(active) z) step = -gradient for each column by Jacobi-preconditioned conjugate gradients.

    Stops at FORCING times the gradient's norm. active: (N, P) weights of the rows inside the margin; gradient: (R, P).
    Returns step (R, P) and z @ step (N, P).
    """
    z, inverse = rows.z, 1 / (1 + rows.squares.T @ active)
    step, change = torch.zeros_like(gradient), torch.zeros_like(active)
    residual = -gradient
    target = FORCING * gradient.norm(dim=0)
    ahead = inverse * residual
    direction, product = ahead, (residual * ahead).sum(dim=0)
    live = torch.arange(gradient.shape[1], device=z.device)
    for _ in range(CG_STEPS):
        seen = z @ direction
        curved = direction + z.T @ (active[:, live] * seen)
        length = product / (direction * curved).sum(dim=0)
        step[:, live] += length * direction
        change[:, live] += length * seen
        residual = residual - length * curved
        unfinished = residual.norm(dim=0) > target[live]
        if not unfinished.any():
            break
        live, residual = live[unfinished], residual[:, unfinished]
        ahead = inverse[:, live] * residual
        before, product = product[unfinished], (residual * ahead).sum(dim=0)
        direction = ahead + (product / before) * direction[:, unfinished]
    return step, change


def line_search(y: Tensor, pull: Tensor, u: Tensor, decisions: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The length (P,) that minimises each problem along its step: Newton on a convex, piecewise quadratic function."""
    slope, curvature = (u * step).sum(dim=0), step.square().sum(dim=0)
    length = torch.ones_like(slope)
    for _ in range(LINE_STEPS):
        slack = (1 - y * (decisions + length * change)).clamp_(min=0)
        first = slope + length * curvature - (pull * slack * y * change).sum(dim=0)
        second = curvature + (pull * (slack > 0) * change.square()).sum(dim=0)
        length = length - first / second
        if (first / second).abs().max() < 1e-3:
            break
    return length
