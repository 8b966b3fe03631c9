"""The run as a user has it: it learns, stops and resumes bit-identically, and says what is wrong in one line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch

from adco.config.loading import load_recipe
from adco.evaluation.records import load_record
from adco.train import checkpoint
from adco.train.logger import Logger, read_metrics
from adco.train.trainer import Trainer
from adco.utils.errors import Failure, UserError
from adco.weights.backbone import load_backbone
from tests import ROOT
from tests.faults import toy
from tests.waiting import LIMIT_SECONDS, wait_until
from tools import train_adco

TINY = """
method: adco
epochs: 2
batch: 12
data: {workers: 0}
bank: {size: 30, init: encode}
encoder: {arch: resnet18, stem: small, dim: 16, key_momentum: 0.9}
optimizer: {lr: 0.05, schedule_by: step}
views: [{px: 16}, {px: 16}]
"""


@pytest.fixture
def tiny(tmp_path, images):
    """Write the tiny recipe; return its path and the overrides that point it at the images."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path), [f"data.root={images}"]


def trainer(tiny, output, *overrides, resume=False) -> Trainer:
    path, base = tiny
    return Trainer(load_recipe(path, [*base, *overrides]), output, torch.device("cpu"), resume)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(checkpoint.newest_intact(folder))
    return state.method | {"step": torch.tensor(state.step)}


def identical(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "choices",
    [
        [],
        [
            "contrast.symmetric=true",
            "contrast.in_batch_negatives=false",
            "bank.renormalize=true",
            "bank.lr_schedule=cosine",
        ],
        ["bank.init=train_and_fill", "views=[{px: 16}, {px: 12}, {px: 16}]"],
    ],
    ids=["released", "paper", "multi-crop"],
)
def test_a_run_ends_with_everything_a_user_needs(tiny, tmp_path, choices):
    output = tmp_path / "run"
    path = trainer(tiny, output, "probe.every_epochs=1", "probe.px=16", *choices).fit()
    state = checkpoint.load(path)
    assert state.step == 8
    backbone = load_backbone(path)
    assert (backbone.arch, backbone.stem, backbone.source) == ("resnet18", "small", "adco-suite")
    assert "encoder.head.0.weight" in backbone.dropped
    record = load_record(output / "record.json")
    assert record.scores.keys() == {"loss", "accuracy", "knn_top1"}
    assert record.checkpoint.sha256 == backbone.sha256
    assert load_recipe(output / "recipe.yaml") == load_recipe(
        tiny[0], [*tiny[1], "probe.every_epochs=1", "probe.px=16", *choices]
    )
    assert (output / "recipe.yaml").read_text().startswith("# commit: ")
    assert [row["epoch"] for row in read_metrics(output / "metrics.jsonl") if "knn_top1" in row] == [1, 2]
    assert list((output / "tensorboard").iterdir())
    lengths = state.method["bank.rows"].norm(dim=1)
    assert torch.allclose(lengths, torch.ones(30), atol=1e-5) is ("bank.renormalize=true" in choices)


def test_steps_on_one_batch_lower_its_loss_and_move_all_three_players(tiny, tmp_path):
    run = trainer(tiny, tmp_path / "run", "optimizer.schedule_by=epoch")
    run.fill_bank()
    start = {name: value.clone() for name, value in run.method.state_dict().items()}
    batch = next(iter(run.input.batches(0, 1)))
    run.steps_per_epoch = 1000  # all at the first learning rate
    losses = [run.train_step(batch).loss.item() for _ in range(25)]
    assert losses[-1] < losses[0] - 0.5
    end = run.method.state_dict()
    for name in ("encoder.backbone.conv1.weight", "key_encoder.backbone.conv1.weight", "bank.rows"):
        assert not torch.equal(start[name], end[name])


def test_the_bank_starts_from_key_embeddings(tiny, tmp_path):
    run = trainer(tiny, tmp_path / "run")
    before = run.method.bank.rows.clone()
    encoder = {name: value.clone() for name, value in run.method.encoder.named_parameters()}
    run.fill_bank()
    assert not (run.method.bank.rows == before).all(dim=1).any()
    torch.testing.assert_close(run.method.bank.rows.norm(dim=1), torch.ones(30))
    assert all(
        torch.equal(encoder[name], p) for name, p in run.method.encoder.named_parameters()
    )  # `encode` trains nothing


def test_train_and_fill_trains_the_encoder_and_restarts_the_key_encoder_from_it(tiny, tmp_path):
    run = trainer(tiny, tmp_path / "run", "bank.init=train_and_fill")
    before = run.method.encoder.backbone.conv1.weight.clone()
    run.fill_bank()
    assert not torch.equal(before, run.method.encoder.backbone.conv1.weight)
    for query, key in zip(run.method.encoder.parameters(), run.method.key_encoder.parameters(), strict=True):
        assert torch.equal(query, key)


@pytest.fixture
def small_network():
    """A network of a thousand parameters in place of the ResNet, where only the run matters."""
    with toy.small():
        yield


def test_stopped_at_any_step_and_resumed_is_bit_identical(tiny, tmp_path, small_network):
    options = ["checkpoint.every_steps=1", "checkpoint.keep=100", "probe.every_epochs=1", "probe.px=16"]
    whole = tmp_path / "whole"
    trainer(tiny, whole, *options).fit()
    for step in (1, 3, 4, 7):
        part = tmp_path / f"from{step}"
        part.mkdir()
        for end in ("", ".sha256"):
            shutil.copy(whole / f"checkpoint_{step:08d}.pth{end}", part)
        shutil.copy(whole / "metrics.jsonl", part)
        resumed = trainer(tiny, part, *options, "data.workers=1", resume=True)
        assert resumed.step == step
        resumed.fit()
        assert identical(weights(whole), weights(part))
        names = ("step", "loss", "knn_top1", "lr")
        rows = [
            [{n: row.get(n) for n in names} for row in read_metrics(run / "metrics.jsonl")] for run in (whole, part)
        ]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("before", [True, False])
def test_a_run_resumes_in_another_memory_format(tiny, tmp_path, before):
    """The optimizer's buffers are saved with the strides of their parameters; fused SGD walks over raw memory."""

    def stopped_after(folder, steps, channels_last, resume=False):
        run = trainer(tiny, folder, f"compute.channels_last={channels_last}", "encoder.stem=imagenet", resume=resume)
        assert run.recipe.compute.fused_optimizer
        run.steps = steps
        run.fit()
        return run

    stopped_after(tmp_path / "whole", 4, before)
    stopped_after(tmp_path / "flipped", 3, before)
    run = stopped_after(tmp_path / "flipped", 4, not before, resume=True)
    for parameter in run.method.encoder.parameters():
        assert run.optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    whole, flipped = weights(tmp_path / "whole"), weights(tmp_path / "flipped")
    assert whole["step"] == flipped["step"] == 4
    for name, tensor in whole.items():
        torch.testing.assert_close(flipped[name], tensor, rtol=1e-3, atol=1e-3)  # mixed up: off by 0.1 and more


def test_a_killed_run_resumes_from_its_newest_intact_checkpoint(tiny, tmp_path):
    path, overrides = tiny
    options = [*overrides, "epochs=3", "checkpoint.every_steps=1"]
    trainer(tiny, tmp_path / "whole", "epochs=3").fit()
    part = tmp_path / "part"
    command = [
        sys.executable,
        str(ROOT / "tools" / "train_adco.py"),
        "--config-file",
        path,
        "--output-dir",
        str(part),
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(part.glob("*.sha256")), "a checkpoint", lambda: process.poll() is None)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert identical(weights(tmp_path / "whole"), weights(part))


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "SIGTERM came"), (signal.SIGUSR1, 75, "SIGUSR1 came")],
)
def test_asked_to_stop_it_writes_a_checkpoint_and_says_how_it_ended(tiny, tmp_path, sent, code, said):
    path, overrides = tiny
    part = tmp_path / "part"
    command = [sys.executable, str(ROOT / "tools" / "train_adco.py"), "--config-file", path, "--output-dir", str(part)]
    command += [*overrides, "epochs=500", "data.workers=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(part.glob("*.sha256")), "a checkpoint", lambda: process.poll() is None)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == code
    assert said in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    assert checkpoint.load(checkpoint.newest_intact(part)).step > 0


def test_unreadable_images_are_counted_and_named(tiny, tmp_path, images):
    root = tmp_path / "damaged"
    shutil.copytree(images / "train", root)
    file = sorted(root.rglob("*.png"))[5]
    file.write_bytes(b"")
    trainer(tiny, tmp_path / "run", f"data.root={root}", "data.max_bad_share=0.1", "epochs=1").fit()
    assert (tmp_path / "run" / "bad_images.txt").read_text().startswith(file.relative_to(root).as_posix() + "\t")
    assert load_record(tmp_path / "run" / "record.json").data.counts["unreadable"] == 1
    with pytest.raises(UserError, match=file.name):
        trainer(tiny, tmp_path / "strict", f"data.root={root}", "data.max_bad_share=0", "epochs=1").fit()


def test_metrics_after_the_resumed_step_and_half_lines_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    log = Logger(tmp_path, step=1)
    log.write(2, {"loss": 0.5})
    log.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 0.5},
    ]


def run_tool(arguments, capsys) -> tuple[int, str]:
    code = train_adco.main(arguments)
    return code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (["data.root=nowhere"], ["nowhere", "no such image folder"]),
        (["data.root="], ["data.root is not set"]),
        (["optimiser.lr=3"], ["unknown key optimiser.lr", "optimizer.lr"]),
        (["batch=4000"], ["batch=4000", "larger than the 48 images"]),
        (["--device", "cuda"], ["cuda", "no GPU"]),
        (["--device", "tpu"], ["tpu"]),
        (["--seed", "-1"], ["seed=-1"]),
        (["probe.every_epochs=1", "probe.root=nowhere"], ["nowhere", "no such image folder"]),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tiny, tmp_path, capsys, extra, parts):
    if "cuda" in extra and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    path, overrides = tiny
    output = tmp_path / "run"
    code, errors = run_tool(["--config-file", path, "--output-dir", str(output), *overrides, *extra], capsys)
    assert code == 2
    assert errors.startswith("error: ")
    assert "\n" not in errors
    for part in parts:
        assert part in errors
    assert not output.exists()


def test_an_empty_data_folder_is_named(tiny, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, errors = run_tool(["--config-file", tiny[0], f"data.root={tmp_path / 'empty'}"], capsys)
    assert (code, "no images in it" in errors) == (2, True)


def test_an_unwritable_output_is_named(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, errors = run_tool(
        ["--config-file", tiny[0], "--output-dir", str(tmp_path / "file" / "run"), *tiny[1]], capsys
    )
    assert code == 2
    assert f"{tmp_path / 'file' / 'run'}: the output folder cannot be written" in errors


def test_a_run_is_not_overwritten_nor_resumed_with_another_recipe(tiny, tmp_path, small_network, capsys):
    output = tmp_path / "run"
    trainer(tiny, output, "epochs=1").fit()
    before = {path.name: path.read_bytes() for path in output.glob("*.*") if path.is_file()}
    command = ["--config-file", tiny[0], "--output-dir", str(output), *tiny[1], "epochs=1"]
    code, errors = run_tool(command, capsys)
    assert (code, "add --resume" in errors) == (2, True)
    code, errors = run_tool([*command, "--resume", "contrast.tau=0.3", "views.1.px=20"], capsys)
    assert code == 2
    assert "views.1.px: 16 -> 20" in errors
    assert "contrast.tau: 0.12 -> 0.3" in errors
    assert before == {path.name: path.read_bytes() for path in output.glob("*.*") if path.is_file()}


def test_a_changed_recipe_goes_on_when_forced_and_says_what_changed(tiny, tmp_path, small_network, capsys):
    command = ["--config-file", tiny[0], "--output-dir", str(tmp_path / "run"), *tiny[1]]
    assert run_tool([*command, "epochs=1"], capsys)[0] == 0
    longer = [*command, "--resume", "epochs=2", "bank.lr=1.0", "data.workers=1"]
    code, errors = run_tool(longer, capsys)
    assert (code, "epochs: 1 -> 2; bank.lr: 3.0 -> 1.0)" in errors, "--force-recipe-change" in errors) == (
        2,
        True,
        True,
    )
    code, errors = run_tool([*longer, "--force-recipe-change"], capsys)
    assert code == 0
    assert "going on although changed: bank.lr: 3.0 -> 1.0" in errors
    assert checkpoint.newest_intact(tmp_path / "run").name == "checkpoint_00000008.pth"


def test_images_that_changed_since_the_checkpoint_are_noticed(tiny, tmp_path, small_network, images, capsys):
    shutil.copytree(images / "train", tmp_path / "mine")
    command = ["--config-file", tiny[0], "--output-dir", str(tmp_path / "run"), f"data.root={tmp_path / 'mine'}"]
    assert run_tool([*command, "epochs=1"], capsys)[0] == 0
    (tmp_path / "moved").mkdir()
    (tmp_path / "mine").rename(tmp_path / "moved" / "mine")  # the same images at another place are the same
    moved = [*command[:-1], f"data.root={tmp_path / 'moved' / 'mine'}", "--resume", "epochs=1"]
    assert run_tool(moved, capsys)[0] == 0
    first = sorted((tmp_path / "moved" / "mine").rglob("*.png"))[0]
    shutil.copy(first, first.with_name("one_more.png"))
    code, errors = run_tool(moved, capsys)
    assert (code, "the images themselves" in errors) == (2, True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes_exactly(tiny, tmp_path, small_network, precision, capsys):
    options = f"compute.precision={precision}", "checkpoint.every_steps=1", "checkpoint.keep=100", "bank.init=random"
    options += "views.0.px=8", "views.1.px=8"  # convolutions in fp16 take seconds on some CPUs
    with mock.patch("adco.train.trainer.has_half_precision", lambda device: False):
        trainer(tiny, tmp_path / "whole", *options).fit()
    assert f"compute.precision={precision}, but this CPU" in capsys.readouterr().err
    part = tmp_path / "part"
    part.mkdir()
    for end in ("", ".sha256"):
        shutil.copy(tmp_path / "whole" / f"checkpoint_00000005.pth{end}", part)
    assert checkpoint.load(part / "checkpoint_00000005.pth").method["bank.rows"].dtype == torch.float32
    trainer(tiny, part, *options, resume=True).fit()
    assert identical(weights(tmp_path / "whole"), weights(part))


def test_an_error_in_a_step_ends_the_threads_that_read_ahead(tiny, tmp_path):
    run = trainer(tiny, tmp_path / "out", "data.workers=2")
    with (
        mock.patch.object(run, "train_step", side_effect=ZeroDivisionError("planted")),
        pytest.raises(ZeroDivisionError) as kept,  # and with it the frames that hold the batches
    ):
        run.fit()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("views")]
    assert "planted" in str(kept.value)


def test_resume_with_nothing_there_starts_from_the_beginning(tiny, tmp_path, capsys):
    trainer(tiny, tmp_path / "run", "epochs=1", resume=True).fit()
    assert "starting from the beginning" in capsys.readouterr().err
    assert checkpoint.newest_intact(tmp_path / "run")


def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoint(tiny, tmp_path, small_network):
    run = trainer(tiny, tmp_path / "run")
    run.fit()
    run.method.encoder.head[0].weight.data.fill_(float("nan"))
    run.step, run.steps = 8, 12
    with pytest.raises(Failure, match="the loss is nan at step 8; its images are named in diverged_00000008.json"):
        run.fit()
    assert checkpoint.newest_intact(tmp_path / "run").name == "checkpoint_00000008.pth"


def test_help_is_for_people(capsys):
    with pytest.raises(SystemExit) as stopped:
        train_adco.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for part in ("examples:", "--resume", "key.sub=value", "adco_r50_200ep"):
        assert part in text
