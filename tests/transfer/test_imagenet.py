"""transfer/imagenet.py: training and semi-supervised protocols from the command line to the record, on ranks too."""

import json
import subprocess
import sys

import pytest

import transfer.imagenet
from adco.evaluation.records import load_record
from tests import ROOT
from tests.transfer.data import arguments
from transfer.classifier.label_subsets import list_sha256


def test_imagenet_command(folder, tmp_path, capsys):
    wanted = ["--protocol", "moco", "--protocol", "semi1", "--epochs", "2", "--train-batch", "8"]
    assert transfer.imagenet.main(arguments(folder, tmp_path / "out", *wanted)) == 0
    record = load_record(tmp_path / "out" / "imagenet-linear-moco-2ep-batch8@32px.json")
    assert record.protocol == "imagenet-linear/moco-2ep-batch8@32px"
    top1 = record.scores["top1"]
    assert top1.low <= top1 <= top1.high and len(record.settings["backbone_unmoved_sha256"]) == 64
    few = load_record(tmp_path / "out" / "imagenet-semi-swav-1pct-2ep-batch8@32px.json")
    assert few.data.counts["train_images"] == few.settings["labelled_images"] == 3
    lines = (tmp_path / "out" / "labels-1pct.txt").read_text().splitlines()
    assert list_sha256(tuple(lines)) == few.settings["labels_sha256"]
    assert few.settings["backbone_unmoved_sha256"] == ""


def test_bf16_is_close_and_named(folder, tmp_path):
    assert transfer.imagenet.main(arguments(folder, tmp_path, "--epochs", "1", "--train-batch", "8", "--bf16")) == 0
    assert load_record(tmp_path / "imagenet-linear-adco-1ep-batch8-bf16@32px.json").scores["top1"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["moco", "semi10"])
def test_two_ranks_are_one_process(folder, tmp_path, protocol):
    """A frozen backbone: the same scores and losses as alone. A tuned one: the ranks agree and it trains."""
    more = ["--protocol", protocol, "--epochs", "2", "--train-batch", "8"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    for where, start in (("one", [sys.executable]), ("two", torchrun)):
        command = [*start, str(ROOT / "transfer" / "imagenet.py"), *arguments(folder, tmp_path / where, *more)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=300)
    one, two = (json.loads(next((tmp_path / w).glob("*.json")).read_text()) for w in ("one", "two"))
    assert two["settings"]["ranks"] == 2 and one["settings"]["ranks"] == 1
    if protocol == "moco":
        assert one["scores"] == two["scores"]
        losses = [[row["loss"] for row in record["settings"]["history"]] for record in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
