"""Many linear SVMs over one matrix at once: batched Newton-CG for the L2-regularised squared hinge.

Each problem (a column) is LIBLINEAR's primal, min |u|^2 / 2 + cost * sum_i w_i max(0, 1 - y_i z_i.u)^2: smooth, convex,
and with a unique minimum, so any solver gives scikit-learn's `LinearSVC`. Classes, folds and costs share the matrix Z;
a product with it serves all of them. Newton's method on the rows inside the margin (Keerthi and DeCoste, JMLR 2005);
its systems are solved, while most rows are inside (small costs, mild conditioning), by conjugate gradients in the
eigenbasis of Z'Z, where the Hessian is nearly diagonal, and once few are left (large costs, hard conditioning) by
Cholesky on their part of the Gram matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

NEWTON_STEPS = 100
CG_STEPS = 40
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


class Rows:
    """z: (N, R) rows that problems share, float32 or float64, and what is computed of them once.

    squares: (N, R) z * z. gram: (N, N) float32 z z', which float32 and float64 rows may share.
    """

    def __init__(self, z: Tensor, gram: Tensor | None = None):
        self.z, self.squares = z, z.square()
        self.gram = z.float() @ z.float().T if gram is None else gram


@dataclass(frozen=True)
class Solution:
    """u: (R, P) weights; decisions: (N, P) of all rows, held-out ones too; converged: (P,) bool."""

    u: Tensor
    decisions: Tensor
    converged: Tensor

    @staticmethod
    def together(parts: Sequence[Solution]) -> Solution:
        """The problems of several solutions, one after another."""
        return Solution(*(torch.cat([getattr(p, name) for p in parts], dim=-1) for name in vars(parts[0])))


def eigenbasis(x: Tensor) -> Basis:
    """x: (N, D) float64 rows -> the same rows turned into the eigenbasis of x'x (of xx' where that is smaller)."""
    if len(x) >= x.shape[1]:
        _, back = torch.linalg.eigh(x.T @ x)
        return Basis(x @ back, back)
    values, vectors = torch.linalg.eigh(x @ x.T)
    kept = values > NEGLIGIBLE * values[-1]
    scale, vectors = values[kept].sqrt(), vectors[:, kept]
    return Basis(vectors * scale, x.T @ (vectors / scale))


def path(
    rows: Rows,
    y: Tensor,
    weight: Tensor,
    costs: Sequence[float],
    tolerance: float,
    solved: Callable[[], object] = lambda: None,
) -> list[Solution]:
    """One solution per cost, in the order given: ascending is fastest, each starts from the one before it.

    y: (N, P) of 1 and -1; weight: (N, P), 0 for rows that a problem does not train on; all of the rows' type. On a CPU
    each thread takes its share of the problems, which need not wait for each other. solved: called after each cost of
    each thread.
    """

    def share(columns: Tensor) -> list[Solution]:
        torch.set_num_threads(1)
        u, found = rows.z.new_zeros(rows.z.shape[1], len(columns)), []
        for cost in costs:
            own = u.new_full((len(columns),), cost)
            found.append(minimise(rows, y[:, columns], weight[:, columns], own, tolerance, u))
            u = found[-1].u
            solved()
        return found

    threads = torch.get_num_threads()
    parts = torch.arange(y.shape[1], device=y.device).chunk(threads if y.device.type == "cpu" else 1)
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            shares = list(pool.map(share, parts))
    finally:
        torch.set_num_threads(threads)
    return [Solution.together(same_cost) for same_cost in zip(*shares, strict=True)]


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
        few = (active > 0).sum(dim=0) ** 3 < 3 * expected_cg_work(cost[live], *z.shape)
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


def expected_cg_work(cost: Tensor, rows: int, width: int) -> Tensor:
    """Multiplications (P,) that conjugate gradients would need; more steps for larger costs, as seen on features."""
    return (10 + 30 * cost).clamp(max=100) * 4 * rows * width


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
