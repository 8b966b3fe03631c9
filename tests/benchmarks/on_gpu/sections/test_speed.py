"""Sections step, bank, loader, end_to_end and profile of benchmarks/gpu.py in miniature, and what they count with."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.on_gpu.sections import SECTIONS, Context, end_to_end, profile, shared, step
from benchmarks.speed.input import backends_for
from benchmarks.speed.step import contestants, recipe_for

CPU = torch.device("cpu")
NUMBERS = {section.module: section for section in SECTIONS}
MAIN = backends_for(CPU)[0]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for a busy core make small steps many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def context(folder: Path, module: str, seconds: float = 1000.0) -> Context:
    return Context(NUMBERS[module], CPU, True, seconds, None, folder / "work", folder / "figures.jsonl")


def run(folder: Path, module: str, seconds: float = 1000.0) -> dict[str, dict]:
    """The figures of a section that was run in miniature; one that failed is an error here."""
    importlib.import_module(f"benchmarks.on_gpu.sections.{module}").run(context(folder, module, seconds))
    found = shared.figures(context(folder, module), NUMBERS[module].number)
    failed = {name: line for name, line in found.items() if "failed" in line.get("reason", "")}
    assert not failed
    return found


def test_step_races_every_contestant_that_a_cpu_has_against_the_eager_one(tmp_path):
    found = run(tmp_path, "step")
    for name in ("eager", "bare", "released", "contiguous", "unfused"):
        assert found[f"{name}/images_per_second"]["value"] == pytest.approx(8000 / found[f"{name}/step"]["value"])
        assert found[f"{name}/first_step"]["value"] > 0
    assert found["bare/speed_over_eager"]["value"] > 0 and "eager/speed_over_eager" not in found
    assert sum(line["value"] for name, line in found.items() if name.startswith("share/")) == pytest.approx(100)
    assert found["compiled"]["value"] is None and "a minute" in found["compiled"]["reason"]


def test_step_without_time_left_reports_the_eager_step_and_what_was_not_run(tmp_path):
    found = run(tmp_path, "step", seconds=0)
    assert found["eager/step"]["value"] > 0
    assert {found[name]["reason"][:8] for name in ("bare", "released", "shares")} == {"not run:"}


def test_a_contestant_that_fails_leaves_the_others_alone(tmp_path, capsys):
    def broken():
        raise RuntimeError("no kernel image\nis available")

    where = context(tmp_path, "step")
    step.measured_beside(where, "fp16", broken, lambda: None, 8)
    step.measured_beside(where, "tf32", lambda: (_ for _ in ()).throw(MemoryError()), lambda: None, 8)
    found = shared.figures(where, where.section.number)
    assert found["fp16"]["reason"] == "failed: RuntimeError: no kernel image is available"
    assert found["tf32"]["reason"] == "not run: out of memory"
    assert "Traceback" in capsys.readouterr().err


def test_compiled_contestants_take_the_same_path(tmp_path):
    recipe, where = recipe_for(CPU, small=True), context(tmp_path, "step")
    with torch.compiler.set_stance("force_eager"):
        step.measured_beside(where, "compiled", contestants(recipe, CPU, tmp_path)["compiled"], lambda: None, 8)
    assert shared.figures(where, where.section.number)["compiled/step"]["value"] > 0


def test_bank_reports_errors_and_a_time_for_every_contestant_and_size(tmp_path):
    found = run(tmp_path, "bank")
    assert found["gradient_error_queries/ours"]["value"] < 1e-5
    for size in (512, 4096, 16384):
        assert all(found[f"{name}_{size}"]["value"] > 0 for name in ("ours", "released", "moco", "floor"))
        assert found[f"ours_over_released_{size}"]["value"] > 0


def test_loader_and_end_to_end_share_their_photographs(tmp_path):
    rates = run(tmp_path, "loader")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "photographs").rglob("*.jpg")}
    ours = [line for line in rates.values() if line.get("backend")]
    assert len(files) == 16 and ours and any(name.startswith("released/") for name in rates)
    best = max(ours, key=lambda line: line["value"])
    assert end_to_end.best_loader(context(tmp_path, "end_to_end")) == (best["backend"], best["workers"])
    found = run(tmp_path, "end_to_end")
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "photographs").rglob("*.jpg")}
    assert found["ours/images_per_second"]["workers"] == best["workers"]
    assert 0 <= found["ours/loader_wait_share"]["value"] <= 1
    speeds = [found[f"{side}/images_per_second"]["value"] for side in ("ours", "released")]
    assert found["ours_over_released"]["value"] == pytest.approx(speeds[0] / speeds[1])


def test_the_best_loader_is_the_default_where_none_was_timed(tmp_path):
    where = context(tmp_path, "end_to_end")
    assert end_to_end.best_loader(where)[0] == MAIN
    lines = [
        {"section": 6, "name": "native/8", "value": 900.0, "backend": "native", "workers": 8},
        {"section": 6, "name": "nvjpeg/14", "value": None, "reason": "failed"},
        {"section": 6, "name": "released/16", "value": 5000.0, "backend": None, "workers": 16},
        {"section": 6, "name": "device/14", "value": 950.0, "backend": "device", "workers": 14},
        {"section": 6, "name": "device/14", "value": 700.0, "backend": "device", "workers": 14},  # a second call
        {"section": 6, "seconds": 3.0},
    ]
    where.file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert end_to_end.best_loader(where) == ("native", 8)


def test_photographs_are_drawn_once_and_alike_by_processes(tmp_path, monkeypatch):
    where = context(tmp_path / "a", "loader")
    root = shared.photographs(where, 2)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    monkeypatch.setattr(shared, "FEW", 0)
    assert shared.photographs(where, 4) == root
    assert len(list(root.rglob("*.jpg"))) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    monkeypatch.undo()
    other = shared.photographs(context(tmp_path / "b", "loader"), 4)
    for path in root.rglob("*.jpg"):
        assert path.read_bytes() == (other / path.relative_to(root)).read_bytes()
    assert {path.name for path in where.work.iterdir()} == {"photographs"}


def test_profile_sorts_the_whole_step_into_classes(tmp_path):
    found = run(tmp_path, "profile")
    kinds = {name: line for name, line in found.items() if "share" in line}
    assert sum(line["share"] for line in kinds.values()) == pytest.approx(1)
    for kind in ("bank", "optimiser and moving average", "BatchNorm", "convolution", "matrix product"):
        assert kinds[f"eager/{kind}"]["value"] > 0, kind
    assert kinds["eager/convolution"]["share"] > 0.1 and kinds.get("eager/other", {"share": 0})["share"] < 0.5
    longest = [ms for _, ms in found["eager/longest"]["value"]]
    assert longest == sorted(longest, reverse=True) and len(longest) == profile.LONGEST


KERNELS = {  # ops around the launch, the kernel's name -> class
    ("aten::conv2d/aten::cudnn_convolution", "sm90_xmma_fprop_implicit_gemm_bf16bf16_nhwc_tilesize128"): "convolution",
    ("ConvolutionBackward0/aten::convolution_backward", "cutlass__5x_cudnn::Kernel<wgrad_optimized>"): "convolution",
    ("aten::conv2d/aten::cudnn_convolution", "void cutlass_80_tensorop_bf16_s16816gemm_bf16_128x128"): "convolution",
    ("aten::convolution", "void cudnn::ops::nchwToNhwcKernel<float>"): "convolution",
    ("aten::conv2d/aten::to/aten::_to_copy/aten::copy_", "void at::native::elementwise_kernel<128, 4>"): "copies",
    ("aten::to/aten::_to_copy/aten::copy_", "Memcpy HtoD (Pinned -> Device)"): "copies",
    ("", "Memset (Device)"): "copies",
    ("aten::batch_norm/aten::cudnn_batch_norm", "void cudnn::bn_fw_tr_1C11_kernel_NHWC"): "BatchNorm",
    ("CudnnBatchNormBackward0/aten::cudnn_batch_norm_backward", "void cudnn::bn_bw_1C11_kernel_new"): "BatchNorm",
    ("", "triton_red_fused__native_batch_norm_legit_functional_convolution_relu_5"): "BatchNorm",
    ("", "triton_poi_fused__to_copy_convolution_0"): "fused elementwise",
    ("## Call CompiledFxGraph x ##/triton_poi_fused_add_relu_1", "triton_poi_fused_add_relu_1"): "fused elementwise",
    ("aten::addmm", "nvjet_tst_192x192_64x4_2x1_v_bz_coopA_TNT"): "matrix product",
    ("AddmmBackward0/aten::mm", "void cutlass::Kernel2<cutlass_80_tensorop_gemm>"): "matrix product",
    ("adco::bank/aten::mm", "nvjet_sss_128x128"): "bank",
    ("adco::bank/aten::clone/aten::copy_", "Memcpy DtoD (Device -> Device)"): "bank",
    (
        "Optimizer.step#SGD.step/aten::_fused_sgd_",
        "void multi_tensor_apply_kernel<...>",
    ): "optimiser and moving average",
    ("aten::_foreach_lerp_", "void multi_tensor_apply_kernel<...>"): "optimiser and moving average",
    ("aten::relu_/aten::clamp_min_", "void at::native::vectorized_elementwise_kernel<8>"): "elementwise",
    ("MaxPool2DWithIndicesBackward0", "void at::native::max_pool_backward_nhwc"): "elementwise",
    ("", "mystery"): "other",
}


def test_kernels_are_classified_by_the_ops_around_their_launch_and_their_names():
    found = {key: profile.kind_of(key[0].split("/") if key[0] else (), key[1]) for key in KERNELS}
    assert found == KERNELS


class Event(SimpleNamespace):
    """A trace's event: fields are read by calling them."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return value if name.startswith("__") else lambda: value


def event(name, start, end, number=0, linked=0, device=DeviceType.CPU, thread=1, annotation=False):
    return Event(
        name=name, start_ns=start, end_ns=end, duration_ns=end - start, correlation_id=number, device_type=device,
        linked_correlation_id=linked, start_thread_id=thread, is_user_annotation=annotation,
    )  # fmt: skip


def test_kernels_of_a_trace_are_found_by_the_op_that_launched_them():
    gpu = DeviceType.CUDA
    trace = [
        event("adco::bank", 0, 100, 1),
        event("aten::mm", 10, 60, 2),
        event(
            "cudaLaunchKernel", 20, 25, 3, linked=2
        ),  # the runtime counts for itself: its numbers are not those of ops
        event("aten::conv2d", 100, 150, 3),
        event("aten::mm", 5, 50, 4, thread=2),  # at the same time in another thread, and so not within the bank
        event("gemm", 200, 300, linked=2, device=gpu),
        event("fprop", 250, 400, linked=3, device=gpu),
        event("gemm", 500, 550, linked=4, device=gpu),
        event("adco::bank", 200, 300, linked=1, device=gpu, annotation=True),
    ]
    found = {op.number: op for op in profile.ops(trace)}
    assert found[2].names == ("adco::bank", "aten::mm") and found[4].names == ("aten::mm",)
    assert (found[1].ns, found[2].ns, found[3].ns) == (50, 50, 50)
    kernels = [e for e in trace if profile.is_kernel(e)]
    works = profile.on_gpu(kernels, list(found.values()))
    assert [work.kind for work in works] == ["bank", "convolution", "matrix product"]
    assert profile.summed(works, lambda work: work.name) == {"gemm": 150, "fprop": 150}
    assert profile.busy_ns([(e.start_ns(), e.end_ns()) for e in kernels]) == 250


def test_on_a_gpu_a_contestant_is_timed_by_events_and_its_memory_is_what_it_adds(tmp_path, monkeypatch):
    gib, calls = 2**30, []
    figures = {"memory_allocated": 3, "memory_reserved": 4, "max_memory_allocated": 28, "max_memory_reserved": 40}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value * gib)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    gaps = SimpleNamespace(record=lambda: None, elapsed_time=lambda other: 250.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: gaps)
    where = Context(NUMBERS["step"], torch.device("cuda"), False, 90, None, tmp_path, tmp_path / "figures.jsonl")
    step.measured(where, "fp16", lambda: lambda: calls.append("step"), {"eager": lambda: None}, 256)
    found = {name: line["value"] for name, line in shared.figures(where, where.section.number).items()}
    assert found.pop("fp16/first_step") < 1
    assert found == {
        "fp16/images_per_second": 2048.0, "fp16/step": 125.0, "fp16/speed_over_eager": 1.0, "fp16/peak_memory": 25.0,
    }  # fmt: skip
    assert calls[-4:] == ["empty_cache", "reset_peak_memory_stats", "step", "synchronize"]
    assert json.loads(where.file.read_text().splitlines()[-1])["reserved_gib"] == 36.0
