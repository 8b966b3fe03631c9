"""Many linear SVMs over one matrix of features at once: batched Newton-CG for the L2-regularised squared hinge loss.

Each problem (a column) is LIBLINEAR's primal, min |u|^2 / 2 + cost * sum_i w_i max(0, 1 - y_i z_i.u)^2. It is smooth
and convex and has a unique minimum, so any solver gives the weights of scikit-learn's `LinearSVC`. Classes, folds and
costs share the matrix Z of features, and a product with it serves all of them. Newton's method works on the samples
inside the margin (Keerthi and DeCoste, JMLR 2005). While most samples are inside (small costs, good conditioning), its
linear systems are solved by conjugate gradients in the eigenbasis of Z'Z, where the Hessian is nearly diagonal. Once
few samples are inside (large costs, bad conditioning), they are solved by Cholesky on these samples' part of the Gram
matrix.

Letters in shapes: N samples, D features, R dimensions of the eigenbasis, P problems.
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
FORCING = 0.1  # conjugate gradients stop at this share of the gradient's norm
NEGLIGIBLE = 1e-12  # eigenvalues of Z'Z below this share of the largest one are rounding errors


@dataclass(frozen=True)
class Basis:
    """Features in the eigenbasis of their Gram matrix; distances and norms are unchanged.

    Attributes:
        features: (N, R) float64, with R at most min(N, D).
        projection: (D, R) float64; x @ projection gives `features` from the original x (N, D).
    """

    features: Tensor
    projection: Tensor


class SharedFeatures:
    """The features that all problems share, and products that are computed of them once.

    Args:
        z: (N, R) float32 or float64.
        gram: (N, N) float32, z z'; computed when None. Float32 and float64 copies of z may share it.
    """

    def __init__(self, z: Tensor, gram: Tensor | None = None):
        self.z, self.squares = z, z.square()
        self.gram = z.float() @ z.float().T if gram is None else gram


@dataclass(frozen=True)
class Solution:
    """The solutions of P problems.

    Attributes:
        u: (R, P) weights.
        decisions: (N, P) of all samples, those outside of a problem too.
        converged: (P,) bool.
    """

    u: Tensor
    decisions: Tensor
    converged: Tensor

    @staticmethod
    def together(parts: Sequence[Solution]) -> Solution:
        """Concatenate the problems of several solutions."""
        return Solution(*(torch.cat([getattr(p, name) for p in parts], dim=-1) for name in vars(parts[0])))


def eigenbasis(x: Tensor) -> Basis:
    """Rotate features (N, D), float64, into the eigenbasis of x'x, computed from xx' where that is smaller."""
    if len(x) >= x.shape[1]:
        _, vectors = torch.linalg.eigh(x.T @ x)
        return Basis(x @ vectors, vectors)
    values, vectors = torch.linalg.eigh(x @ x.T)
    kept = values > NEGLIGIBLE * values[-1]
    # singular values and left singular vectors of x
    scale, vectors = values[kept].sqrt(), vectors[:, kept]
    return Basis(vectors * scale, x.T @ (vectors / scale))


def path(
    shared: SharedFeatures,
    y: Tensor,
    weight: Tensor,
    costs: Sequence[float],
    tolerance: float,
    on_solved: Callable[[], object] = lambda: None,
) -> list[Solution]:
    """Solve all problems for each cost; each cost starts from the solution of the one before it.

    On a CPU each thread solves its share of the problems, which are independent of each other.

    Args:
        shared: the features z (N, R).
        y: (N, P) of 1 and -1, of the dtype of z.
        weight: (N, P) of the dtype of z, 0 for samples that are not in a problem.
        costs: in the order in which they are solved; ascending is fastest.
        tolerance: bound of the weights' relative error, see `minimise`.
        on_solved: called by each thread after each cost.

    Returns:
        One solution per cost, in their order.
    """

    def solve_share(columns: Tensor) -> list[Solution]:
        torch.set_num_threads(1)
        u, solutions = shared.z.new_zeros(shared.z.shape[1], len(columns)), []
        for cost in costs:
            column_costs = u.new_full((len(columns),), cost)
            solutions.append(minimise(shared, y[:, columns], weight[:, columns], column_costs, tolerance, u))
            u = solutions[-1].u
            on_solved()
        return solutions

    threads = torch.get_num_threads()
    parts = torch.arange(y.shape[1], device=y.device).chunk(threads if y.device.type == "cpu" else 1)
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            shares = list(pool.map(solve_share, parts))
    finally:
        torch.set_num_threads(threads)
    return [Solution.together(same_cost) for same_cost in zip(*shares, strict=True)]


def minimise(
    shared: SharedFeatures, y: Tensor, weight: Tensor, cost: Tensor, tolerance: float, start: Tensor
) -> Solution:
    """Minimise every problem by Newton's method. A problem that has converged is not computed any further.

    A problem has converged when its gradient's norm is at most `tolerance` times that of its weights. The objective is
    strongly convex with modulus 1, so the weights are then within `tolerance`, relatively, of the best ones.

    Args:
        shared: the features z (N, R).
        y: (N, P) of 1 and -1, of the dtype of z.
        weight: (N, P) of the dtype of z, 0 for samples that are not in a problem.
        cost: (P,) of the dtype of z.
        tolerance: bound of the weights' relative error.
        start: (R, P) weights to start from.

    Returns:
        The weights, decisions and whether each problem converged within NEWTON_STEPS.
    """
    z, u, decisions = shared.z, start.clone(), shared.z @ start
    # derivative of a sample's loss per unit of slack: (N, P)
    pull = 2 * cost * weight
    live = torch.arange(y.shape[1], device=z.device)  # problems that have not converged
    for _ in range(NEWTON_STEPS):
        slack = pull[:, live] * (1 - y[:, live] * decisions[:, live]).clamp_(min=0)
        gradient = u[:, live] - z.T @ (y[:, live] * slack)
        unfinished = gradient.norm(dim=0) > tolerance * u[:, live].norm(dim=0)
        live = live[unfinished]
        if not len(live):
            break
        # weights of the samples inside the margin: the Hessian is I + z' diag(active) z
        active, gradient = pull[:, live] * (slack[:, unfinished] > 0), gradient[:, unfinished]
        step, change = torch.empty_like(u[:, live]), torch.empty_like(active)
        # Cholesky where few samples are inside the margin, else conjugate gradients
        direct = (active > 0).sum(dim=0) ** 3 < 3 * expected_cg_work(cost[live], *z.shape)
        if direct.any():
            step[:, direct], change[:, direct] = direct_step(shared, active[:, direct], gradient[:, direct])
        if not direct.all():
            step[:, ~direct], change[:, ~direct] = cg_step(shared, active[:, ~direct], gradient[:, ~direct])
        length = line_search(y[:, live], pull[:, live], u[:, live], decisions[:, live], step, change)
        u[:, live] += length * step
        decisions[:, live] += length * change
    converged = torch.ones(y.shape[1], dtype=torch.bool, device=z.device)
    converged[live] = False
    return Solution(u, decisions, converged)


def expected_cg_work(cost: Tensor, samples: int, width: int) -> Tensor:
    """Multiplications (P,) that conjugate gradients need, as measured on features; larger costs take more steps."""
    return (10 + 30 * cost).clamp(max=100) * 4 * samples * width


def direct_step(shared: SharedFeatures, active: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (I + z' diag(active) z) step = -gradient by Cholesky on the Gram matrix of each problem's active samples.

    The factor is float32 for any dtype of z: it only determines a direction, and Newton's method computes its gradient
    in the dtype of z.

    Args:
        shared: the features z (N, R).
        active: (N, P) weights of the samples inside the margin, 0 for all others.
        gradient: (R, P).

    Returns:
        step (R, P) and z @ step (N, P).
    """
    z, dual = shared.z, torch.zeros_like(active)
    projected = z @ gradient
    for column in range(active.shape[1]):
        inside = active[:, column].nonzero()[:, 0]
        # Woodbury: (diag(1 / active) + z z') dual = z gradient, on the active samples
        block = shared.gram[inside[:, None], inside]
        block.diagonal().add_(1 / active[inside, column].float())
        factor, failed = torch.linalg.cholesky_ex(block)
        if not failed:  # else dual stays 0, and the step is the negative gradient
            right = projected[inside, column, None].float()
            dual[inside, column] = torch.cholesky_solve(right, factor)[:, 0].to(z.dtype)
    step = z.T @ dual - gradient
    return step, z @ step


def cg_step(shared: SharedFeatures, active: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (I + z' diag(active) z) step = -gradient by conjugate gradients with a Jacobi preconditioner.

    A problem stops once its residual's norm is at most FORCING times the gradient's, or after CG_STEPS.

    Args:
        shared: the features z (N, R).
        active: (N, P) weights of the samples inside the margin, 0 for all others.
        gradient: (R, P).

    Returns:
        step (R, P) and z @ step (N, P).
    """
    # inverse diagonal of the Hessian: (R, P)
    z, inverse = shared.z, 1 / (1 + shared.squares.T @ active)
    step, change = torch.zeros_like(gradient), torch.zeros_like(active)
    residual = -gradient
    target = FORCING * gradient.norm(dim=0)
    preconditioned = inverse * residual
    direction, product = preconditioned, (residual * preconditioned).sum(dim=0)
    live = torch.arange(gradient.shape[1], device=z.device)  # problems that have not reached their target
    for _ in range(CG_STEPS):
        # Hessian times direction: (R, P)
        projected = z @ direction
        curved = direction + z.T @ (active[:, live] * projected)
        length = product / (direction * curved).sum(dim=0)
        step[:, live] += length * direction
        change[:, live] += length * projected
        residual = residual - length * curved
        unfinished = residual.norm(dim=0) > target[live]
        if not unfinished.any():
            break
        live, residual = live[unfinished], residual[:, unfinished]
        # the next direction is conjugate to all earlier ones
        preconditioned = inverse[:, live] * residual
        before, product = product[unfinished], (residual * preconditioned).sum(dim=0)
        direction = preconditioned + (product / before) * direction[:, unfinished]
    return step, change


def line_search(y: Tensor, pull: Tensor, u: Tensor, decisions: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """Find the length that minimises each problem along its step, by Newton's method in one dimension.

    The objective along a step is convex and piecewise quadratic.

    Args:
        y: (N, P) of 1 and -1.
        pull: (N, P), 2 * cost * weight.
        u: (R, P) weights.
        decisions: (N, P), z @ u.
        step: (R, P) direction.
        change: (N, P), z @ step.

    Returns:
        (P,) lengths.
    """
    # derivatives of |u + length * step|^2 / 2 at length 0
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
