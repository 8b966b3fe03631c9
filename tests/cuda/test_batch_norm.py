"""BatchNorm on GPUs: torch's kernels mean what their stand-ins on the CPU do, ranks agree with torch, nothing waits."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from adco.models.batch_norm import ON_CPU, frozen_statistics, replace_norms
from adco.utils import distributed
from tests.adco.models.test_batch_norm import SHAPES, batch_norm, batches, close, parts_passed, passed

CASES = [(SHAPES[0], False), (SHAPES[1], False), (SHAPES[1], True)]
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 5e-4}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def moved(values: object, device: torch.device) -> object:
    """A copy with the same strides."""
    if not isinstance(values, Tensor):
        return values
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=device).copy_(values)


def equal(name: str, gpu: torch.device, *arguments: object) -> list[Tensor]:
    """What the operation gives on the CPU, having checked that a GPU gives the same and changes its arguments as well.

    Sums over a channel are float32 in any case; bf16 results differ by a rounding.
    """
    here, there = list(arguments), [moved(value, gpu) for value in arguments]
    expected, found = getattr(ON_CPU, name)(*here), getattr(torch, name)(*there)
    expected, found = ([values] if isinstance(values, Tensor) else list(values) for values in (expected, found))
    assert len(found) == len(expected)
    changed = [(a, b) for a, b in zip(there, here, strict=True) if isinstance(b, Tensor)]
    for a, b in [*zip(found, expected, strict=True), *changed]:
        if a is None or not a.numel():  # the gradients of a weight and a bias that there are not
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.dim() < 2 or a.stride() == b.stride()
        torch.testing.assert_close(a.cpu(), b, **TOLERANCE.get(b.dtype, {}))
    return expected


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "channels_last"), CASES)
def test_the_kernels_mean_what_their_stand_ins_on_the_cpu_do(shape, channels_last, dtype, affine, gpu):
    x, gradient = batches(shape, channels_last, dtype)
    norm = batch_norm(shape, affine, torch.float32).requires_grad_(False)
    own = torch.stack(equal("batch_norm_stats", gpu, x, norm.eps))
    means, invstds = torch.stack((own, 1.5 * own)).unbind(dim=1)  # two ranks'
    counts = torch.full((2,), x.numel() // x.shape[1])
    merged = x, means, invstds, norm.running_mean, norm.running_var, norm.momentum, norm.eps, counts.float()
    mean, invstd = equal("batch_norm_gather_stats_with_counts", gpu, *merged)
    equal("batch_norm_elemt", gpu, x, norm.weight, norm.bias, mean, invstd, norm.eps)
    given = gradient, x, mean, invstd, norm.weight
    sums = equal("batch_norm_backward_reduce", gpu, *given, True, affine, affine)[:2]
    equal("batch_norm_backward_elemt", gpu, *given, *(2 * values for values in sums), counts.int())


def synced(rank: int, meeting: str, unsupported: str) -> None:
    """One of two ranks on one GPU: our module and torch's on this rank's half of a batch."""
    gpu = torch.device("cuda", 0)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        distributed.all_reduce_sum(distributed.all_gather(torch.ones(2, device=gpu)))
    except (RuntimeError, ValueError) as error:
        with open(unsupported, "w") as file:
            file.write(str(error))
        return
    for shape, channels_last in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            for affine in (True, False):
                plain = batch_norm(shape, affine, torch.float32).to(gpu)
                ours = replace_norms(copy.deepcopy(plain), sync=True, splits=1)
                own = [distributed.local_shard(values).to(gpu) for values in batches(shape, channels_last, dtype)]
                found = passed(ours, *own)
                close(found, passed(nn.SyncBatchNorm.convert_sync_batchnorm(plain), *own), rtol=1e-4, atol=1e-4)
                assert found["output"].stride() == found["x"].stride() == own[0].stride()
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_equal_torch_s_own_synced_norms(tmp_path, gpu):
    unsupported = tmp_path / "unsupported"
    mp.spawn(synced, (str(tmp_path / "meeting"), str(unsupported)), nprocs=2)
    if unsupported.exists():
        pytest.skip(f"gloo does not exchange tensors of a GPU here: {unsupported.read_text()}")


@pytest.mark.parametrize("sync", [True, False])
def test_a_step_waits_for_nothing(sync, gpu, monkeypatch):
    """Forward and backward of two ranks with equal batches, or of split norms, and frozen statistics."""
    if sync:
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "all_gather", lambda values: torch.cat((values, values)))
        monkeypatch.setattr(distributed, "all_reduce_sum", lambda values: 2 * values)
    layers = nn.Sequential(nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    layers = replace_norms(layers, sync=sync, splits=3).to(gpu, memory_format=torch.channels_last)
    x = batches(SHAPES[1], dtype=torch.float32)[0].to(gpu)

    @torch.autocast("cuda", torch.bfloat16)
    def forward() -> Tensor:
        return layers(x)

    def step() -> None:
        with frozen_statistics(layers), torch.no_grad():
            forward()
        forward().float().square().mean().backward()

    step()  # makes the constants
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in layers.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "channels_last"), CASES)
def test_split_norms_equal_norms_on_each_part(shape, channels_last, dtype, gpu):
    given = [values.to(gpu) for values in batches(shape, channels_last, dtype)]
    norm = batch_norm(shape, dtype=torch.float32).to(gpu)
    found = passed(replace_norms(copy.deepcopy(norm), sync=False, splits=3), *given)
    assert found["output"].stride() == found["x"].stride() == given[0].stride()
    expected = parts_passed(norm, *given, 3)
    close({name: v.cpu() for name, v in found.items()}, {n: v.cpu() for n, v in expected.items()}, **TOLERANCE[dtype])
