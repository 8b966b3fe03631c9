"""The memory bank: K rows that queries are compared with. They are trained by their own SGD, or are a queue of keys."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import BankConfig
from adco.losses.bank_gradient import Workspace
from adco.utils import distributed
from adco.utils.errors import UserError


class MemoryBank(nn.Module):
    """Rows of a bank or queue, whole on every rank or split over the ranks.

    The state dict is always that of the whole bank, so that a run can go on with any number of ranks.

    Args:
        options: Size, placement, and what its SGD is.
        dim: D, the dimension of the embedding.

    Attributes:
        rows: (K, D) raw rows W, a buffer. Sharded: this rank's K = size / ranks of them.
        velocity: (K, D) momentum buffer v of their SGD; it stays zero for a queue.
        sharded: Whether the rows are split over the ranks.
        workspace: Memory for the losses' evaluations on this bank.

    Raises:
        UserError: `placement: sharded` and a size that does not divide over the ranks.
    """

    rows: Tensor
    velocity: Tensor

    def __init__(self, options: BankConfig, dim: int):
        super().__init__()
        self.options, self.size, ranks = options, options.size, distributed.world_size()
        self.sharded = options.placement != "replicated" and ranks > 1 and options.size % ranks == 0
        if options.placement == "sharded" and ranks > 1 and not self.sharded:
            raise UserError(
                f"recipe: bank.size={self.size} does not divide over {ranks} ranks; use bank.placement=auto"
            )
        rows = F.normalize(torch.randn(self.size, dim), dim=1)
        self.register_buffer("rows", self._local(rows))
        self.register_buffer("velocity", torch.zeros_like(self.rows))
        self.workspace = Workspace()

    @property
    def first(self) -> int:
        """The number, in the whole bank, of this rank's first row."""
        return distributed.rank() * len(self.rows) if self.sharded else 0

    @torch.no_grad()
    def fill(self, keys: Tensor, start: int) -> int:
        """Write keys into the rows from `start` on, as many as fit.

        Args:
            keys: (M, D) keys of all ranks.
            start: Number of the first row, in the whole bank.

        Returns:
            The number of the row after the last one written.
        """
        stop = min(start + len(keys), self.size)
        low, high = max(start, self.first), min(stop, self.first + len(self.rows))
        if low < high:
            self.rows[low - self.first : high - self.first] = keys[low - start : high - start]
        return stop

    @torch.no_grad()
    def enqueue(self, keys: Tensor, batches: int) -> None:
        """Write keys over the oldest rows (MoCo's queue).

        Args:
            keys: (M, D) keys of all ranks.
            batches: How many batches of M keys were written before.
        """
        start = batches * len(keys) % self.size
        written = self.fill(keys, start) - start
        self.fill(keys[written:], 0)

    @torch.no_grad()
    def sgd_ascent_step(self, gradient: Iterable[tuple[slice, Tensor]], lr: float) -> None:
        """One step of SGD up the gradient g, as torch.optim.SGD on -g: v <- m v + (wd W - g); W <- W - lr v.

        Args:
            gradient: Slices of this rank's rows, and the (chunk, D) gradient on them, e.g. a BankGradient.
            lr: Learning rate.
        """
        options = self.options
        for place, chunk in gradient:
            rows, velocity = self.rows[place], self.velocity[place]
            velocity.mul_(options.sgd_momentum).add_(rows, alpha=options.weight_decay).sub_(chunk)
            rows.sub_(velocity, alpha=lr)
            if options.renormalize:
                rows.copy_(F.normalize(rows, dim=1))

    def _local(self, rows: Tensor) -> Tensor:
        return distributed.local_shard(rows).clone() if self.sharded else rows

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.sharded:  # a collective call: every rank takes part in making a checkpoint
            for name in ("rows", "velocity"):
                destination[prefix + name] = distributed.all_gather(getattr(self, name))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
        for name in ("rows", "velocity"):
            whole = state_dict.get(prefix + name)
            if whole is not None and len(whole) == self.size:
                state_dict[prefix + name] = self._local(whole)
        super()._load_from_state_dict(state_dict, prefix, *rest)
