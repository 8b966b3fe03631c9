"""The gradient on a memory bank's raw rows, made a chunk of rows at a time so that it is never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adco.utils import distributed


class Workspace:
    """Memory for the cosines of one evaluation, which its owner's next evaluation uses again.

    On a CPU fresh pages cost as much as the matrix product that fills them. A GPU's allocator keeps memory by itself.

    Attributes:
        evaluations: How often memory was taken. A BankGradient of an earlier evaluation is stale.
    """

    def __init__(self) -> None:
        self.evaluations = 0
        self._held: dict[torch.dtype, Tensor] = {}

    def take(self, count: int, like: Tensor) -> Tensor:
        """Uninitialised (count,) numbers of the dtype and device of `like`; what was taken before becomes invalid."""
        self.evaluations += 1
        if like.is_cuda:
            return like.new_empty(count)
        held = self._held.get(like.dtype)
        if held is None or len(held) < count:
            held = self._held[like.dtype] = like.new_empty(count)
        return held[:count]


@dataclass(frozen=True)
class BankGradient:
    """The gradient that the raw rows W ascend, (K, D). Iterating gives chunks of rows and the gradient on them.

    It must be used before the next evaluation with the same workspace, whose cosines take the place of `blocks`.

    Attributes:
        queries: (M, D) queries, each times its weight.
        blocks: (M, chunk) softmax numerators of each chunk of rows.
        bank: (K, D) raw rows.
        extra: (M,) numbers of rows and (M, D) further gradients on them.
        sharded: Whether the rows are this rank's part of the bank; else the ranks' gradients are summed.
        workspace: Owner of the memory of `blocks`.
        evaluation: The evaluation of the workspace that made them.
    """

    queries: Tensor
    blocks: list[Tensor]
    bank: Tensor
    extra: list[tuple[Tensor, Tensor]]
    sharded: bool
    workspace: Workspace
    evaluation: int

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield a slice of rows and the (chunk, D) gradient on them; rows may be changed once they were yielded.

        Raises:
            RuntimeError: The workspace has been used by another evaluation since.
        """
        start = 0
        for block in self.blocks:
            if self.workspace.evaluations != self.evaluation:
                raise RuntimeError(
                    "the bank's gradient is stale: its memory was used by a later evaluation; "
                    "use it before the next loss of the same bank"
                )
            place = slice(start, start + block.shape[1])
            gradient = through_normalization(block.T @ self.queries, self.bank[place])
            for label, more in self.extra:
                here = (label >= place.start) & (label < place.stop)
                gradient.index_add_(0, (label - start).clamp(0, len(gradient) - 1), more * here.unsqueeze(1))
            yield place, gradient if self.sharded else distributed.all_reduce_sum(gradient)
            start = place.stop

    def whole(self) -> Tensor:
        """The whole gradient, (K, D).

        Raises:
            RuntimeError: It is stale.
        """
        return torch.cat([gradient for _, gradient in self])


def through_normalization(gradient: Tensor, rows: Tensor) -> Tensor:
    """The gradient on raw rows W of a gradient g on n = W / |W|: (g - (g.n) n) / |W| (AdCo, footnote 1).

    Args:
        gradient: (K, D) gradient on the unit rows; it is overwritten.
        rows: (K, D) raw rows.

    Returns:
        (K, D), orthogonal to the rows, in the memory of `gradient`.
    """
    lengths = rows.norm(dim=1, keepdim=True)
    along = torch.linalg.vecdot(gradient, rows).unsqueeze(1).div_(lengths.square())
    return gradient.addcmul_(along, rows, value=-1).div_(lengths)
