"""What makes the CPU wait for a GPU, noted without a GPU: tensors `on cuda` have shapes and no values (FakeTensorMode),
those of the CPU are real, so that code which looks at CPU values takes the branches that it takes in a run."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from adco.utils.device import constant
from tests import ROOT

ROOMS = tuple(str(ROOT / room) for room in ("adco", "tests/adco/methods/test_"))  # code whose lines are named
ATEN = torch.ops.aten
READS = (ATEN._local_scalar_dense, ATEN.equal, ATEN.is_nonzero)  # a value
COUNTS = (ATEN.nonzero, ATEN.masked_select, ATEN.unique_dim, ATEN._unique2, ATEN.unique_consecutive)  # a shape
MASKS = (torch.bool, torch.uint8)


class Waits(TorchDispatchMode):
    """Notes in `found`, as `file:line: what`, each operation inside for which the CPU waits until the GPU has done all
    it was asked for: values and shapes that depend on values, and copies that are not from pinned memory and
    `non_blocking`. A value that is read is 1, and what is copied to the CPU is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pinned: dict[int, Tensor] = {}  # by address, and kept, so that no other tensor gets it

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        device = torch.device(kwargs.get("device") or "cpu")
        if not fake and device.type == "cpu":
            return self._on_the_cpu(operation, args, kwargs)
        if reason := self._reason(operation.overloadpacket, args, kwargs, device):
            self._note(reason)
        if operation.overloadpacket is ATEN._local_scalar_dense:
            return 1.0 if args[0].is_floating_point() else 1
        if operation.overloadpacket is ATEN._to_copy and fake and "device" in kwargs and device.type == "cpu":
            with _disable_current_modes():
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return operation(*args, **kwargs)

    def _on_the_cpu(self, operation, args, kwargs):
        """Computed as it is without this mode; a machine without a GPU has no pinned memory, so it is only noted."""
        packet = operation.overloadpacket
        if packet is ATEN.is_pinned:
            return self._is_pinned(args[0])
        pin = packet is ATEN._pin_memory or kwargs.pop("pin_memory", False)
        with _disable_current_modes():
            if packet is ATEN.lift_fresh:
                return args[0]
            result = args[0].clone() if packet is ATEN._pin_memory else operation(*args, **kwargs)
        if pin:
            self.pinned[result.untyped_storage().data_ptr()] = result
        return result

    def _reason(self, packet, args, kwargs, device: torch.device) -> str:
        if packet in READS:
            return "reads a value"
        if packet in COUNTS or (packet is ATEN.repeat_interleave and kwargs.get("output_size") is None):
            return "has a shape that depends on values"
        if packet is ATEN._to_copy and "device" in kwargs:
            return self._copy(args[0], device, kwargs.get("non_blocking", False))
        if packet is ATEN.copy_:
            return self._copy(args[1], args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if packet in (ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_):
            return self._indexed(args)
        return ""

    def _copy(self, source: Tensor, device: torch.device, non_blocking: bool) -> str:
        if source.device.type == device.type:
            return ""
        if source.device.type == "cpu" and non_blocking and not self._is_pinned(source):
            return "copies to the GPU from memory that is not pinned"
        return "" if non_blocking else f"copies to the {'GPU' if device.type == 'cuda' else 'CPU'}"

    def _indexed(self, args) -> str:
        indices = [index for index in args[1] if index is not None]
        if any(index.device.type == "cpu" and index.dim() for index in indices):
            return "copies an index to the GPU"
        filled = len(args) > 2 and args[2].numel() == 1  # masked_fill
        masked = any(index.dtype in MASKS for index in indices) and not filled
        return "has a shape that depends on values (a mask)" if masked else ""

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def _note(self, reason: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(ROOMS)]
        place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}: " if frames else ""
        self.found.append(f"{place}{reason}" + (f": {frames[-1].line}" if frames else ""))


@contextmanager
def waits() -> Iterator[Waits]:
    """Inside, `cuda` is a device whose tensors have no values, and what would wait for it is noted."""
    constant.cache_clear()  # constants of the mode are none outside, and the other way round
    before, noted = torch._C._only_lift_cpu_tensors(), Waits()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), noted:
            torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") copies where a mode sees it
            yield noted
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
        constant.cache_clear()
