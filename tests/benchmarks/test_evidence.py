"""The evidence plan: a split that never meets the test, order, budget, what is left, leads that are what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from adco.config.loading import load_recipe
from adco.evaluation.records import Record, Score, load_record
from adco.launch.jobs import Job, Outcome, run_jobs
from adco.utils.errors import UserError
from benchmarks import evidence
from benchmarks.experiments import accuracy_curve, bank_outliers, best_trial, lead, page
from benchmarks.experiments.holdout import held_out_split, is_held_out
from benchmarks.experiments.plan import chosen_only, measured_rate, runnable
from benchmarks.experiments.stages import EvidenceStage, ExperimentDirs, build
from benchmarks.speed import precision, times

PLAN = yaml.safe_load(evidence.PLAN.read_text())


@pytest.fixture
def data(tmp_path) -> Path:
    """imagenette160 with 40 images of each of 3 classes in train and 4 in val."""
    root = tmp_path / "data" / "imagenette160"
    for split, count in (("train", 40), ("val", 4)):
        for number, name in enumerate(("apple", "boat", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            noise = np.random.default_rng(number).integers(0, 80, (count, 40, 40, 3), dtype=np.uint8)
            for i, pixels in enumerate(noise):
                pixels[..., number] += 150
                Image.fromarray(pixels).save(folder / f"{split}_{i}.png")
    return root.parent


def place(data: Path, output: Path = Path("out"), device: str = "cpu") -> ExperimentDirs:
    return ExperimentDirs(device, data, output, images=6400)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_the_held_out_part_is_disjoint_from_val_and_from_the_rest_and_stays(data, tmp_path):
    root = data / "imagenette160"
    split = held_out_split(root, tmp_path / "split")
    train, val = names(split / "train"), names(split / "val")
    assert not train & val
    assert train | val == names(root / "train")
    assert {path.resolve().parent.parent.name for path in split.rglob("*.png")} == {"train"}  # nothing of val
    assert 0.1 < len(val) / 120 < 0.3
    for i in range(40, 50):  # a folder that grows keeps its split
        Image.new("RGB", (8, 8)).save(root / "train" / "cat" / f"train_{i}.png")
    held_out_split(root, tmp_path / "split")
    assert names(split / "val") >= val
    assert not names(split / "val") & train


def test_the_split_is_the_same_everywhere():
    found = [i for i in range(20) if is_held_out(f"n01440764/n01440764_{i}.JPEG")]
    assert found == [0, 8, 9, 11]


def test_a_class_too_small_to_split_is_an_error(data, tmp_path):
    folder = data / "imagenette160" / "train" / "dog"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    with pytest.raises(UserError, match="too few images"):
        held_out_split(data / "imagenette160", tmp_path / "split")


def test_every_choice_of_the_plan_is_one_that_recipes_have():
    for method in PLAN["methods"].values():
        fixed = [f"data.workers={n}" for n in PLAN["common"]["data.workers"].values()] + method.get("set", [])
        found = [load_recipe(method["recipe"], [*fixed, *trial.split()]) for trial in method["trials"]]
        assert found[0] != found[1]
        assert len(found) == 2  # no method is tuned more than another
    base = load_recipe(PLAN["methods"]["adco"]["recipe"])
    for name, change in PLAN["ablations"]["changes"].items():
        assert (load_recipe("adco_r18_imagenette", change) == base) == (name == "base"), name


def test_the_plan_begins_with_adco_and_moco_and_every_job_follows_what_it_needs(data):
    stages = build(PLAN, place(data))
    jobs = [stage.job.name for stage in stages]
    assert len(set(jobs)) == len(jobs)
    for number, stage in enumerate(stages):
        assert set(stage.job.after) <= set(jobs[:number]), stage.job.name
    first = ["grid-adco-0", "grid-adco-1", "grid-moco-0", "grid-moco-1", "run-adco-s0", "run-moco-s0"]
    assert jobs[:9] == [*first, "curve-adco-s0", "curve-moco-s0", "lead-1-seeds"]
    assert jobs.index("run-adco_sym-s0") < jobs.index("run-adco-s1") < jobs.index("run-swav-s0")
    assert {stage.section for stage in stages} == set(PLAN["order"])


def test_all_methods_see_the_same_images_and_never_the_test_before_they_are_chosen(data):
    words = {stage.job.name: stage.job.command for stage in build(PLAN, place(data))}
    runs = [words[f"run-{name}-s0"] for name in PLAN["methods"]]
    assert all("epochs=10" in run and f"data.root={data}/imagenette160" in run for run in runs)
    grids = [at for name, at in words.items() if name.startswith("grid-")]
    assert len(grids) == 2 * len(PLAN["methods"])
    assert all("data.root=out/holdout" in grid and not any("imagenette160" in w for w in grid[4:]) for grid in grids)


def test_a_change_has_the_last_word_over_the_grid(data, monkeypatch, tmp_path):
    job = next(stage.job for stage in build(PLAN, place(data)) if stage.job.name == "run-ablations-tau_bank_0.2-s0")
    trials = {}
    for number, score in enumerate((40.0, 41.0)):
        path = tmp_path / "grid" / f"adco-{number}" / "record.json"
        trials[f"out/grid/adco-{number}"] = str(path.parent)
        Record("pretrain/adco", {"knn_top1": score}, {}, {"name": "holdout"}).write(path)
    ran = []
    monkeypatch.setattr(best_trial.os, "execvp", lambda program, words: ran.extend(words))
    best_trial.main([trials.get(word, word) for word in job.command[2:]])
    picked = [word for word in ran if word.startswith("contrast.tau_bank=")]
    assert picked == ["contrast.tau_bank=0.1", "contrast.tau_bank=0.2"]  # of the better trial, then the change
    assert ran[1] == "tools/train_adco.py"


def test_of_equal_trials_the_first_is_chosen_and_one_without_a_probe_is_an_error(tmp_path):
    for name in "ab":
        Record("pretrain/adco", {"knn_top1": 40.0}, {}, {"name": "x"}).write(tmp_path / name / "record.json")
    assert best_trial.best([(tmp_path / "a", "x=1 y=2"), (tmp_path / "b", "x=3")]) == ("x=1", "y=2")
    Record("pretrain/adco", {"loss": 4.0}, {}, {"name": "x"}).write(tmp_path / "c" / "record.json")
    with pytest.raises(UserError, match="no knn_top1"):
        best_trial.score_of(tmp_path / "c")


def test_expected_minutes_are_images_over_the_rate(data):
    minutes = {stage.job.name: stage.job.minutes for stage in build(PLAN, place(data), rate=100)}
    assert minutes["run-adco-s0"] == pytest.approx(10 * 6400 / 100 / 60, abs=0.06)
    assert minutes["run-adco_sym-s0"] == pytest.approx(2 * minutes["run-adco-s0"], abs=0.2)
    assert minutes["run-table5-k256-sym-s0"] == pytest.approx(2 * minutes["run-table5-k256-s0"], abs=0.2)
    slower = {stage.job.name: stage.job.minutes for stage in build(PLAN, place(data), rate=50)}
    assert slower["run-caco-s0"] == pytest.approx(2 * minutes["run-caco-s0"], abs=0.2)


def test_the_rate_is_that_of_the_runs_there_are(tmp_path):
    assert measured_rate(PLAN, tmp_path) is None
    for name, seconds in (("adco-s0", 100.0), ("adco_sym-s0", 200.0), ("stranger-s0", 1.0)):
        record = Record("pretrain/adco", {}, {}, {"name": "x", "images": 500}, {"epochs": 10}, seconds)
        record.write(tmp_path / "runs" / name / "record.json")
    assert measured_rate(PLAN, tmp_path) == pytest.approx(50)


def test_what_cannot_run_here_says_why_and_takes_what_follows_with_it(data, tmp_path):
    stages = build(PLAN, place(data))
    said = {stage.job.name: stage.not_run for stage in stages}
    assert said["voc07-random"] == f"not run: no voc07_subset below {data}"
    assert said["detection-random-coco_mini"] == f"not run: no coco_mini below {data}"
    assert said["gpu-step"] == "not run: no GPU"
    assert said["run-adco-s0"] == ""
    nothing = build(PLAN, place(tmp_path / "nowhere"))
    assert [job.name for job in runnable(nothing)] == ["times"]
    assert not [s for s in build(PLAN, place(data, device="cuda")) if "GPU" in s.not_run]


def test_only_brings_what_must_come_before(data):
    stages = build(PLAN, place(data))
    found = [stage.job.name for stage in chosen_only(stages, ["lead-1"])]
    assert found == [stage.job.name for stage in stages[:9]]
    assert {s.section for s in chosen_only(stages, ["times", "gpu"])} == {"times", "gpu"}
    with pytest.raises(UserError, match=r"--only figure9: no such section.*figure2"):
        chosen_only(stages, ["figure9"])


def test_what_the_budget_leaves_is_reported_with_its_minutes_and_resumes_the_next_time(tmp_path):
    def job(name: str, minutes: float, after=()) -> EvidenceStage:
        path = tmp_path / f"{name}.txt"
        words = (sys.executable, "-c", f"open({str(path)!r}, 'w').write('done')")
        return EvidenceStage("x", Job(name, words, after, minutes, (path,)), {f"x/{name}.json": path})

    stages = [job("short", 0.0), job("long", 90.0), job("later", 1.0, ("long",))]
    stages.append(EvidenceStage("gpu", Job("card", ("true",)), not_run="not run: no GPU"))
    outcomes = run_jobs(runnable(stages), tmp_path / "logs", budget_minutes=1)
    reported = evidence.reported(stages, outcomes)
    assert reported[:2] == ["left: long, expected 90 min", "left: later, expected 1 min"]
    assert reported[2] == "card: not run: no GPU"
    assert "about 91 min" in reported[3]
    assert evidence.collect(stages, tmp_path / "results") == 1
    outcomes = run_jobs(runnable(stages), tmp_path / "logs")
    assert [outcomes[name].status for name in ("short", "long", "later")] == ["reused", "ended", "ended"]
    assert evidence.reported(stages[:3], outcomes) == ["everything was run"]
    assert (tmp_path / "results" / "x" / "later.json").is_file() is False
    assert evidence.collect(stages, tmp_path / "results") == 3
    assert evidence.reported(stages[:1], {"short": Outcome("failed", "exit code 1: no")}) == [
        "short: failed: exit code 1: no"
    ]


def curve_folder(folder: Path, hits: dict[int, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for epoch, found in hits.items():
        np.savez(folder / f"epoch_{epoch}.npz", knn=found, linear=found)
    data = {"name": "imagenette160", "val_images": 400}
    Record("pretraining/curve", {}, {}, data, {"method": folder.name[:4], "image_px": 64}).write(folder / "knn.json")
    return folder


def test_a_lead_is_the_difference_of_means_with_an_interval_that_knows_the_pictures_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(400) < 0.5
    better = base.copy()
    better[np.flatnonzero(~base)[:20]] = True  # 20 more of 400: 5 points, whatever else is right
    first, second = curve_folder(tmp_path / "adco", {5: better}), curve_folder(tmp_path / "moco", {5: base})
    row = lead.lead("knn", 5, [first], [second])
    assert row["lead"] == pytest.approx(5.0)
    low, high = row["interval95_images"]
    paired = 1.96 * 100 * np.std(better.astype(float) - base) / 20
    assert low == pytest.approx(5 - paired, abs=0.5)
    assert high == pytest.approx(5 + paired, abs=0.5)
    assert "interval95_seeds" not in row
    same = lead.lead("knn", 5, [second], [second])
    assert (same["lead"], *same["interval95_images"]) == (0, 0, 0)


def test_leads_over_seeds_and_their_record(tmp_path, capsys):
    def side(name: str, shares) -> list[str]:
        return [str(curve_folder(tmp_path / f"{name}{s}", {5: np.arange(400) < 400 * p})) for s, p in enumerate(shares)]

    words = ["--first", *side("adco", (0.50, 0.54)), "--second", *side("moco", (0.44, 0.46)), "--epochs", "5"]
    assert lead.main([*words, "--output", str(tmp_path / "lead.json")]) == 0
    record = load_record(tmp_path / "lead.json")
    assert record.scores["lead/knn@5ep"] == pytest.approx(7.0)
    row = record.settings["rows"][0]
    low, high = row["interval95_seeds"]  # differences 6 and 8: mean 7, t of one degree of freedom
    assert (low, high) == (pytest.approx(7 - 12.706, abs=1e-3), pytest.approx(7 + 12.706, abs=1e-3))
    assert "knn, 5 epochs: 52.00 - 45.00 = +7.00" in capsys.readouterr().out
    assert lead.main([*words[:2], *words[3:], "--output", str(tmp_path / "x.json")]) == 2
    assert "as many of each" in capsys.readouterr().err


def test_a_missing_epoch_is_named(tmp_path):
    folder = curve_folder(tmp_path / "adco", {5: np.ones(4, bool)})
    with pytest.raises(UserError, match=r"epoch_10\.npz: no knn hits"):
        lead.hits(folder, 10, "knn")


def test_pruning_keeps_what_was_evaluated_and_the_last(tmp_path):
    for step in (10, 20, 30, 40):
        (tmp_path / f"checkpoint_{step:08d}.pth").touch()
        (tmp_path / f"checkpoint_{step:08d}.pth.sha256").touch()
    accuracy_curve.prune(tmp_path, [tmp_path / "checkpoint_00000020.pth"])
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "checkpoint_00000020.pth",
        "checkpoint_00000040.pth",
    ]
    assert len(list(tmp_path.glob("*.sha256"))) == 2


def test_every_contestant_of_table_5_is_a_recipe_and_no_two_are_the_same():
    found = [load_recipe(recipe, change) for _, recipe, change in times.contestants()]
    assert len({name for name, *_ in times.contestants()}) == len(found)
    assert {recipe.bank.size for recipe in found} >= set(PLAN["table5"]["sizes"])
    assert {recipe.method for recipe in found} == set(times.METHOD_NAMES)


def test_differences_of_losses_are_relative_and_signless():
    found = precision.compared([2.0] * 10, [2.2, 1.8] * 4 + [2.1, 2.1])
    assert found["loss_difference_percent"] == pytest.approx((8 * 10 + 2 * 5) / 10)
    assert found["last_fifth_difference_percent"] == pytest.approx(5)


def test_the_record_of_outliers_is_in_percent():
    reported = {"runs": [{"name": "adco-s0", "outlier_share": 0.25}], "settings": {"rows": 10}}
    assert bank_outliers.as_record(reported, "imagenette160", 1.0).scores == {"outlier_percent/adco-s0": 25.0}


def test_the_list_names_jobs_and_minutes_and_writes_nothing(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--list", "--data", str(data), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    assert evidence.main([*words, "--only", "figure2"]) == 0
    out = capsys.readouterr().out
    assert "figure2, expected" in out
    assert "lead" not in out
    assert not (tmp_path / "out").exists()
    assert evidence.main([*words, "--only", "nonsense"]) == 2
    path = tmp_path / "out" / "grid" / "moco-1" / "record.json"
    written = Record("pretrain/moco", {"knn_top1": 33.0}, {}, {"name": "x"}).write(path)
    results = tmp_path / "results"
    assert evidence.main([*words[1:], "--collect", "--results", str(results)]) == 0
    assert "records: 1 in" in capsys.readouterr().out
    assert (results / "grid" / "moco-1.json").read_text() == written.read_text()


TINY = {
    "common": {"data.in_memory": True, "data.workers": 0, "probe.every_epochs": 0, "probe.px": 32, "batch": 16,
               "bank.size": 64, "views.0.px": 32, "views.1.px": 32},
    "image_px": 32,
    "grid": {"epochs": 1},
    "figure1": {"epochs": 2, "probe_epochs": [1, 2], "linear_epochs": [2]},
    "lead": {"first": "adco", "second": "moco", "epochs": [2, 99]},
}  # fmt: skip


@pytest.mark.slow
def test_a_small_plan_killed_at_once_runs_to_its_end_and_again_in_a_moment(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(evidence.ROOT)
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(PLAN | TINY))
    words = ["--plan", str(path), "--data", str(data), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--results", str(tmp_path / "results"), "--only", "lead-1-seeds", "figure2"]
    done = tmp_path / "out" / "grid" / "adco-0" / "record.json"
    first = subprocess.Popen([sys.executable, "benchmarks/evidence.py", *words], stdout=subprocess.DEVNULL)
    while not done.is_file():
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    before = done.read_bytes()
    time.sleep(2)  # the supervisors end the jobs that it had started
    assert evidence.main(words) == 0, capsys.readouterr().out
    assert done.read_bytes() == before  # what had ended was not done again
    record = load_record(tmp_path / "results" / "figure1" / "lead-1-seeds.json")
    assert set(record.scores) == {"lead/knn@2ep"} | {"lead/linear@2ep"}
    rows = load_record(tmp_path / "results" / "figure1" / "adco-s0-knn.json").settings["curve"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(low <= row["top1"] <= high for row in rows for low, high in [row["interval95"]])
    assert (tmp_path / "results" / "figure2" / "bank.json").is_file()
    assert "everything was run" in capsys.readouterr().out
    assert evidence.main(words) == 0
    assert "started" not in capsys.readouterr().out


def test_the_page_shows_what_was_run_and_says_not_run_of_the_rest(tmp_path):
    curve_rows = [{"epoch": 5, "top1": 40.0}, {"epoch": 10, "top1": 45.0}]
    settings = {"curve": curve_rows, "pretraining_seconds": 600}
    scores = {"top1@5ep": Score(40.0, 38.5, 41.5, over="images"), "top1@10ep": Score(45.0)}
    results = tmp_path / "results"
    Record("pretraining/curve", scores, {}, {"name": "x"}, settings).write(results / "figure1" / "adco-s0-knn.json")
    record = Record("pretrain/moco", {"knn_top1": 33.0}, {}, {"name": "x"}, duration_seconds=120)
    record.write(results / "grid" / "moco-0.json")
    Record("knn/k20", {"top1": 35.0}, {}, {"name": "x"}).write(tmp_path / "random_r18" / "knn-k20-t0.07@64px.json")
    document = tmp_path / "page.md"
    document.write_text(f"prose\n{page.BEGIN}\nold\n{page.END}\nmore\n")
    words = ["--results", str(results), "--page", str(document)]
    assert page.main(words) == 0
    text = document.read_text()
    assert text.startswith("prose\n")
    assert text.endswith("more\n")
    assert "old" not in text
    assert "| adco-s0 | 40.00 (38.50 to 41.50) | 45.00 | 10 |" in text
    assert "| random weights | 35.00 | 35.00 |  |" in text
    assert "| adco-s1 | not run | not run |  |" in text
    assert "| moco | `contrast.tau=0.2` | 33.00 | 2 |" in text
    assert "| caco | `contrast.tau=0.1 contrast.tau_bank=0.1` | not run |  |" in text
    once = document.read_text()
    assert page.main(words) == 0
    assert document.read_text() == once
    document.write_text("no markers")
    assert page.main(words) == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_script_of_a_job_is_there(data, device):
    for stage in build(PLAN, place(data, device=device)):
        scripts = [word for word in stage.job.command if word.endswith(".py")]
        assert scripts, stage.job.name
        assert all((evidence.ROOT / script).is_file() for script in scripts), scripts
