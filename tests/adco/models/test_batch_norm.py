"""Statistics of parts of a batch, and of all ranks' batches: values, gradients, running statistics, memory formats."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adco.models.batch_norm import (
    SplitBatchNorm,
    SyncedBatchNorm,
    _Synced,
    frozen_statistics,
    part_momenta,
    replace_norms,
)
from adco.utils import distributed
from tests.ranks import run_ranks

SHAPES = [(12, 5), (12, 5, 4, 3)]


class Operations(TorchDispatchMode):
    """The names of the operations that run inside."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


def batch_norm(shape: tuple[int, ...], affine: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    """BatchNorm for inputs of the shape, with parameters and running statistics that are not those it begins with."""
    generator = torch.Generator().manual_seed(1)
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], affine=affine, dtype=dtype)
    with torch.no_grad():
        for values in (*norm.parameters(), norm.running_mean, norm.running_var):
            values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return norm


def batches(shape: tuple[int, ...], channels_last: bool = True, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """An input and the gradient of its output; channels last in any case for which there is such a format."""
    generator = torch.Generator().manual_seed(2)
    memory_format = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
    made = [3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 2 for _ in range(2)]
    return [values.to(dtype).contiguous(memory_format=memory_format) for values in made]


def passed(norm: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """What a forward and a backward pass give: output, gradients, buffers."""
    x = x.detach().requires_grad_()
    output = norm(x)
    output.backward(gradient)
    gradients = {name: p.grad for name, p in norm.named_parameters()}
    return {"output": output.detach(), "x": x.grad, **gradients, **dict(norm.named_buffers())}


def parts_passed(norm: nn.Module, x: Tensor, gradient: Tensor, parts: int) -> dict[str, Tensor]:
    """The same of a plain BatchNorm on each part: gradients summed, the mean of the running statistics."""
    each = [passed(copy.deepcopy(norm), *part) for part in zip(x.chunk(parts), gradient.chunk(parts), strict=True)]
    joined = {name: torch.cat([values[name] for values in each]) for name in ("output", "x")}
    for name in each[0].keys() - joined.keys():
        stacked = torch.stack([values[name] for values in each])
        joined[name] = stacked.mean(dim=0) if name.startswith("running") else stacked.sum(dim=0)
    return joined | {"num_batches_tracked": torch.tensor(1)}


def close(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerances: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerances)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_split_norms_equal_norms_on_each_part(shape, affine, parts):
    split = replace_norms(batch_norm(shape, affine), sync=False, splits=parts)
    assert isinstance(split, SplitBatchNorm)
    close(passed(split, *batches(shape)), parts_passed(batch_norm(shape, affine), *batches(shape), parts))
    x, _ = batches(shape)
    plain = batch_norm(shape, affine)
    plain.load_state_dict(split.state_dict())
    assert torch.equal(split.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("momentum", "parts"), [(0.1, 1), (0.1, 8), (1.0, 4), (0.0, 3)])
def test_the_momenta_of_the_parts_together_move_to_their_mean(momentum, parts):
    statistics = torch.randn(parts, dtype=torch.float64)
    running = torch.tensor(5.0, dtype=torch.float64)
    expected = (1 - momentum) * running + momentum * statistics.mean()
    for statistic, own in zip(statistics, part_momenta(momentum, parts), strict=True):
        running = (1 - own) * running + own * statistic
    torch.testing.assert_close(running, expected)


def test_a_batch_must_divide_into_the_parts():
    with pytest.raises(ValueError, match="12 images does not divide into encoder.norm_splits=5 parts"):
        replace_norms(batch_norm(SHAPES[1]), sync=False, splits=5)(batches(SHAPES[1])[0])


@pytest.mark.parametrize("channels_last", [True, False])
def test_split_norms_keep_the_memory_format_and_permute_nothing(channels_last):
    split = replace_norms(batch_norm(SHAPES[1]), sync=False, splits=3)
    x, gradient = batches(SHAPES[1], channels_last)
    with Operations() as run:
        found = passed(split, x, gradient)
    assert found["output"].stride() == found["x"].stride() == x.stride()
    normalized = {"split", "native_batch_norm", "cat", "add_"}
    assert run.names <= normalized | {"native_batch_norm_backward", "narrow", "slice", "add", "detach", "empty"}


def test_split_norms_on_a_gpu_keep_dtype_and_memory_format():
    """Half precision with parameters in float32, as autocast has it; fake tensors need no GPU."""
    with FakeTensorMode():
        split = replace_norms(nn.BatchNorm2d(5, device="cuda"), sync=False, splits=3)
        x = torch.empty(12, 5, 4, 3, device="cuda", dtype=torch.bfloat16)
        output = split(x := x.contiguous(memory_format=torch.channels_last))
    assert (output.device.type, output.dtype, output.stride()) == ("cuda", torch.bfloat16, x.stride())


def test_split_norms_under_autocast_on_the_cpu():
    split = replace_norms(batch_norm(SHAPES[1], dtype=torch.float32), sync=False, splits=3)
    with torch.autocast("cpu", torch.bfloat16):
        found = passed(split, *batches(SHAPES[1], dtype=torch.bfloat16))
    assert (found["output"].dtype, found["x"].dtype, found["weight"].dtype) == (torch.bfloat16,) * 2 + (torch.float32,)
    exact = parts_passed(batch_norm(SHAPES[1]), *(v.double() for v in batches(SHAPES[1], dtype=torch.bfloat16)), 3)
    close({name: values.to(exact[name].dtype) for name, values in found.items()}, exact, rtol=0.02, atol=0.05)


def test_split_norms_compile_to_one_graph():
    split = replace_norms(batch_norm(SHAPES[1]), sync=False, splits=3)
    compiled = torch.compile(copy.deepcopy(split), backend="aot_eager", fullgraph=True)
    found = passed(compiled, *batches(SHAPES[1]))
    close({name.removeprefix("_orig_mod."): v for name, v in found.items()}, passed(split, *batches(SHAPES[1])))


def synced(shape: tuple[int, ...], affine: bool, channels_last: bool) -> dict[str, Tensor]:
    """What this rank's half of a batch gives."""
    norm = replace_norms(batch_norm(shape, affine), sync=True, splits=1)
    assert isinstance(norm, SyncedBatchNorm)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, gradient = (distributed.local_shard(values) for values in batches(shape, channels_last))
    found = passed(norm, x, gradient)
    assert len(shape) == 2 or found["output"].is_contiguous(memory_format=memory_format)
    assert found["output"].stride() == found["x"].stride() == x.stride()
    return found


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "channels_last"), [(SHAPES[0], False), (SHAPES[1], False), (SHAPES[1], True)])
def test_synced_norms_of_two_ranks_equal_one_norm_of_the_whole_batch(shape, affine, channels_last):
    """The gradient of x is that of both ranks' losses; those of weight and bias are each rank's part of the sum."""
    expected = passed(batch_norm(shape, affine), *batches(shape))
    found = run_ranks(synced, 2, shape, affine, channels_last)
    for name, values in expected.items():
        each = [rank[name] for rank in found]
        if name in ("output", "x"):
            each = [torch.cat(each)]
        elif name in ("weight", "bias"):
            each = [each[0] + each[1]]
        for value in each:
            torch.testing.assert_close(value, values, msg=lambda text, name=name: f"{name}: {text}")


def test_synced_norms_on_one_process_and_in_evaluation_are_plain():
    x, gradient = batches(SHAPES[1])
    norm, plain = replace_norms(batch_norm(SHAPES[1]), sync=True, splits=1), batch_norm(SHAPES[1])
    close(passed(norm, x, gradient), passed(plain, x, gradient), rtol=0, atol=0)
    assert torch.equal(norm.eval()(x), plain.eval()(x))


@pytest.fixture
def two_equal_ranks(monkeypatch):
    """Two ranks with equal batches, in one process."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather", lambda values: torch.cat((values, values)))
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda values: 2 * values)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 2), (3, 2, 2, 2)])
def test_the_gradients_of_synced_norms_are_the_derivatives(shape, affine, two_equal_ranks):
    norm, (x, _) = replace_norms(batch_norm(shape, affine), sync=True, splits=1), batches(shape)
    weights = [p.detach() for p in norm.parameters()] or [None, None]

    def output(x: Tensor, *weights: Tensor) -> Tensor:
        weights = weights or (None, None)
        return _Synced.apply(x, *weights, norm.running_mean, norm.running_var, norm.momentum, norm.eps)

    inputs = [values.requires_grad_() for values in (x, *weights) if values is not None]
    assert torch.autograd.gradcheck(output, inputs)


def test_synced_norms_in_half_precision_have_statistics_and_parameters_in_float32(two_equal_ranks):
    given = batches(SHAPES[1], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = passed(replace_norms(batch_norm(SHAPES[1], dtype=torch.float32), sync=True, splits=1), *given)
    half = {name for name, values in found.items() if values.dtype == torch.bfloat16}
    assert half == {"output", "x"}
    whole = passed(batch_norm(SHAPES[1]), *(torch.cat((values, values)).double() for values in given))
    whole |= {name: whole[name].chunk(2)[0] for name in half} | {n: whole[n] / 2 for n in ("weight", "bias")}
    close({name: values.to(whole[name].dtype) for name, values in found.items()}, whole, rtol=0.02, atol=0.05)


def test_synced_norms_do_not_make_the_host_wait(two_equal_ranks):
    """No mask, no number that the host must know: for each the host would wait for all of the GPU's work."""
    norm = replace_norms(batch_norm(SHAPES[1]), sync=True, splits=1)
    passed(norm, *batches(SHAPES[1]))  # makes the constants
    with Operations() as run:
        passed(norm, *batches(SHAPES[1]))
    assert not run.names & {"index", "nonzero", "masked_select", "_local_scalar_dense", "item", "is_nonzero"}


@pytest.mark.parametrize("splits", [1, 3])
def test_frozen_statistics_are_what_they_were_and_normalize_as_in_training(splits):
    x, _ = batches(SHAPES[1])
    module = replace_norms(nn.Sequential(batch_norm(SHAPES[1]), batch_norm(SHAPES[1])), sync=False, splits=splits)
    expected = copy.deepcopy(module)(x)
    before = copy.deepcopy(dict(module.named_buffers()))
    with frozen_statistics(module), torch.no_grad():
        assert all(norm.momentum == 0.1 for norm in module)
        assert torch.equal(module(x), expected)
        assert not torch.equal(module[0].running_mean, before["0.running_mean"])
    assert all(torch.equal(values, before[name]) for name, values in module.named_buffers())
    with pytest.raises(KeyError), frozen_statistics(module), torch.no_grad():
        module(x)
        raise KeyError
    assert all(torch.equal(values, before[name]) for name, values in module.named_buffers())


def test_frozen_statistics_of_a_module_without_norms():
    with frozen_statistics(nn.Linear(2, 2)):
        pass
