"""The bank: K rows that the queries are contrasted with. They ascend with their own SGD, or are a queue of keys."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import BankConfig as Options
from adco.utils import distributed
from adco.utils.errors import UserError


class MemoryBank(nn.Module):
    """rows: (K, D) raw rows W; velocity: (K, D) momentum buffer v of their SGD. A queue leaves it at zero.

    Neither is an nn.Parameter. Sharded: this rank holds K / ranks of them, `first` is the number of its first row; the
    state dict is always that of the whole bank, so that any number of ranks can go on with it.
    """

    def __init__(self, options: Options, dim: int):
        super().__init__()
        self.options, self.size, parts = options, options.size, distributed.world_size()
        self.sharded = options.placement != "replicated" and parts > 1 and options.size % parts == 0
        if options.placement == "sharded" and parts > 1 and not self.sharded:
            raise UserError(
                f"recipe: bank.size={self.size} does not divide over {parts} ranks; use bank.placement=auto"
            )
        rows = F.normalize(torch.randn(self.size, dim), dim=1)
        self.register_buffer("rows", self._own(rows))
        self.register_buffer("velocity", torch.zeros_like(self.rows))

    @property
    def first(self) -> int:
        return distributed.rank() * len(self.rows) if self.sharded else 0

    @torch.no_grad()
    def fill(self, keys: Tensor, start: int) -> int:
        """Write (M, D) keys into rows from `start`, as many as fit; return the row after the last one written."""
        stop = min(start + len(keys), self.size)
        low, high = max(start, self.first), min(stop, self.first + len(self.rows))
        if low < high:
            self.rows[low - self.first : high - self.first] = keys[low - start : high - start]
        return stop

    @torch.no_grad()
    def enqueue(self, keys: Tensor, batches: int) -> None:
        """Write the (M, D) keys of all ranks over the oldest rows (MoCo's queue), after so many batches before."""
        start = batches * len(keys) % self.size
        written = self.fill(keys, start) - start
        self.fill(keys[written:], 0)

    @torch.no_grad()
    def sgd_ascent_step(self, ascent: Iterable[tuple[slice, Tensor]], lr: float) -> None:
        """One SGD step up, chunk by chunk: v <- m v - g + wd W; W <- W - lr v. ascent: rows, the gradient g on them."""
        options = self.options
        for place, gradient in ascent:
            rows, velocity = self.rows[place], self.velocity[place]
            velocity.mul_(options.sgd_momentum).add_(rows, alpha=options.weight_decay).sub_(gradient)
            rows.sub_(velocity, alpha=lr)
            if options.renormalize:
                rows.copy_(F.normalize(rows, dim=1))

    def _own(self, rows: Tensor) -> Tensor:
        return distributed.local_shard(rows).clone() if self.sharded else rows

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.sharded:  # a collective call: every rank takes part in making a checkpoint
            for name in ("rows", "velocity"):
                destination[prefix + name] = distributed.all_gather(getattr(self, name))

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        for name in ("rows", "velocity"):
            whole = state.get(prefix + name)
            if whole is not None and len(whole) == self.size:
                state[prefix + name] = self._own(whole)
        super()._load_from_state_dict(state, prefix, *rest)
