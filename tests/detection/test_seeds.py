"""Several seeds, one record: finished trials are kept, started ones resumed, another run's are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import detection  # noqa: F401  (patches before detectron2)
from adco.evaluation.records import load_record
from adco.utils.errors import UserError
from detection import seeds
from detection.batch_scaling import plan
from detection.config import load_config
from detection.record import make_record, official, protocol_of
from detection.trainer import DetectionRun
from tests import ROOT

CONFIG = ROOT / "detection" / "configs" / "smoke_voc_R_18_C4_random.yaml"
ARGV = ["--config-file", str(CONFIG), "--trials", "3", "--num-gpus", "0", "MODEL.DEVICE", "cpu"]
DATA = ({"name": "voc_2007_test", "fingerprint": "f", "images": 5},)


def settings(out, *overrides):
    cfg, recipe = (load_config(str(CONFIG), given) for given in (("OUTPUT_DIR", str(out), *overrides), ()))
    how = plan(cfg, recipe, 1)
    return cfg, DetectionRun("smoke_voc_R_18_C4_random", (), 0, how, DATA, "pycocotools", 0.0)


class Runs:
    """Takes the place of `seeds.start`: writes the record that a trial would, with AP 10 * seed."""

    def __init__(self, fail_at=None):
        self.fail_at, self.seen = fail_at, []

    def __call__(self, command):
        seed, out = int(command[command.index("SEED") + 1]), Path(command[-1])
        self.seen.append((seed, "--resume" in command))
        if seed == self.fail_at:
            out.mkdir(parents=True, exist_ok=True)
            (out / "last_checkpoint").write_text("model_0000009.pth")
            return 2
        cfg, job = settings(out, "SEED", str(seed))
        facts = job.settings() | {"eval_only": False, "speed": {"iterations_per_second": seed}, "resumed": False}
        results = {"bbox": {"AP": 10.0 * seed, "AP50": 50.0}}
        make_record(cfg, job.config_name, results, "", DATA, facts, 7).write(out / "record.json")
        return 0


def test_mean_and_deviation_in_one_record(tmp_path, monkeypatch, capsys):
    runs = Runs()
    monkeypatch.setattr(seeds, "start", runs)
    assert seeds.run_trials(3, ARGV, *settings(tmp_path)) == 0
    assert runs.seen == [(1, False), (2, False), (3, False)]
    record = load_record(tmp_path / "record.json")
    assert record.scores == {"AP": 20.0, "AP50": 50.0}
    assert (record.scores["AP"].std, record.scores["AP"].trials, record.scores["AP50"].std) == (10.0, 3, 0.0)
    assert record.protocol == "detection/smoke_voc_R_18_C4"
    assert (record.settings["trials"], record.duration_seconds) == (3, 21)
    assert [trial["seed"] for trial in record.settings["each_trial"]] == [1, 2, 3]
    assert record.settings["each_trial"][2]["scores"]["AP"] == 30.0
    assert "AP 20.00 +- 10.00" in capsys.readouterr().out


def test_finished_trials_are_kept_and_started_ones_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "start", Runs(fail_at=2))
    assert seeds.run_trials(3, ARGV, *settings(tmp_path)) == 2
    assert not (tmp_path / "record.json").exists()
    again = Runs()
    monkeypatch.setattr(seeds, "start", again)
    assert seeds.run_trials(3, ARGV, *settings(tmp_path)) == 0
    assert again.seen == [(2, True), (3, False)]


@pytest.mark.parametrize(("overrides", "says"), [(("SOLVER.BASE_LR", "0.5"), "lr"), (("SEED", "7"), "seed 1, now 7")])
def test_a_finished_trial_of_another_run_is_refused(tmp_path, monkeypatch, overrides, says):
    monkeypatch.setattr(seeds, "start", Runs())
    seeds.run_trials(2, ARGV, *settings(tmp_path))
    with pytest.raises(UserError, match=f"trial_1: .*{says}.*another OUTPUT_DIR"):
        seeds.run_trials(2, ARGV, *settings(tmp_path, *overrides))


def test_a_finished_trial_on_other_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "start", Runs())
    cfg, job = settings(tmp_path)
    seeds.run_trials(2, ARGV, cfg, job)
    with pytest.raises(UserError, match="another data"):
        seeds.run_trials(2, ARGV, cfg, replace(job, data=({**DATA[0], "fingerprint": "g"},)))


def test_a_trials_command(tmp_path):
    found = seeds.trial_arguments(ARGV, tmp_path, 4)
    expected = [*ARGV[:2], "--num-gpus", "0", "MODEL.DEVICE", "cpu", "SEED", "4", "OUTPUT_DIR", str(tmp_path)]
    assert found == expected
    assert seeds.trial_arguments(["--trials=3", "--resume", "A", "b"], tmp_path, 4)[:2] == ["A", "b"]
    (tmp_path / "last_checkpoint").touch()
    assert seeds.trial_arguments(ARGV, tmp_path, 4) == ["--resume", *expected]


@pytest.mark.parametrize(
    ("name", "images", "expected"),
    [("voc_2007_test", 4952, True), ("voc_2012_trainval", 11540, True), ("coco_2017_val", 5000, True),
     ("voc_2007_test", 200, False), ("coco_2014_minival", 5000, False)],
)  # fmt: skip
def test_a_record_says_whether_its_data_is_the_official_set(name, images, expected):
    assert official({"name": name, "images": images}) is expected


@pytest.mark.parametrize("ending", ["", "_adco", "_supervised", "_random"])
def test_twins_share_a_protocol(ending):
    assert protocol_of(f"coco_R_50_C4_1x{ending}") == "detection/coco_R_50_C4_1x"
