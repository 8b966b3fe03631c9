"""The demo's stages and the zoo's rows: what is done is not done twice, what fails is named, what is stale is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adco.errors import UserError
from adco.records import Record
from tools import convert_to_d2, demo, make_sample, report, train_adco

ROOT = Path(__file__).resolve().parent.parent


def test_the_zoos_measured_rows_are_those_of_the_records():
    assert report.with_measured_rows(ROOT / "MODEL_ZOO.md", ROOT / "results") == (ROOT / "MODEL_ZOO.md").read_text()


def test_every_file_the_zoo_and_the_readme_link_to_exists():
    for page in (ROOT / "MODEL_ZOO.md", ROOT / "README.md"):
        links = [part.split(")")[0] for part in page.read_text().split("](")[1:]]
        local = [link for link in links if not link.startswith("https://")]
        assert local
        for link in local:
            assert (ROOT / link).exists(), f"{page.name} links to {link}"


def test_rows_are_rewritten_between_the_markers_and_nothing_else(tmp_path):
    zoo, results = tmp_path / "ZOO.md", tmp_path / "results"
    Record(
        "knn/k20",
        {"top1": 12.345},
        {"name": "x"},
        {"name": "tiny", "train_images": 5, "val_images": 2, "official": False},
        hardware="a laptop",
    ).write(results / "m" / "a.json")
    zoo.write_text(f"before\n{report.BEGIN}old\n{report.END}after\n")
    assert report.main(["--zoo", str(zoo), "--results", str(results)]) == 0
    text = zoo.read_text()
    assert text.startswith(f"before\n{report.BEGIN}")
    assert text.endswith(f"{report.END}after\n")
    assert "old" not in text
    assert (
        "| m | knn/k20 | top1 12.35 | tiny (5 train, 2 test; not the official set) | a laptop | [json](results/m"
        in text
    )


@pytest.mark.parametrize("broken", ["no markers", "no records", "bad record"])
def test_a_broken_zoo_is_one_line_and_stays_as_it_was(tmp_path, capsys, broken):
    zoo, results = tmp_path / "ZOO.md", tmp_path / "results"
    zoo.write_text("text\n" if broken == "no markers" else f"{report.BEGIN}{report.END}")
    before = zoo.read_text()
    if broken != "no records":
        Record("knn/k20", {}, {"name": "x"}, {"name": "y"}).write(results / "m" / "a.json")
    if broken == "bad record":
        (results / "m" / "b.json").write_text("{}")
    assert report.main(["--zoo", str(zoo), "--results", str(results)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert zoo.read_text() == before


def test_a_finished_stage_is_not_run_again(tmp_path, capsys):
    (tmp_path / "done").write_text("")
    demo.Stages(tmp_path, {}).run("draw", "tools/absent.py", done=tmp_path / "done")
    assert f"[1/{demo.STAGES}] draw: already done" in capsys.readouterr().out


def test_a_failed_stage_is_named(tmp_path):
    with pytest.raises(UserError, match=r"stopped at 'draw' \(exit code 2"):
        demo.Stages(tmp_path, {}).run(
            "draw", "tools/make_sample.py", tmp_path, "--images", "-3", done=tmp_path / "done"
        )


@pytest.mark.parametrize("tool", [demo, train_adco, make_sample, convert_to_d2, report], ids=lambda tool: tool.__name__)
def test_every_tool_explains_itself_and_refuses_unknown_words(tool, capsys):
    for words, code in (("--help", 0), ("--surprise", 2)):
        with pytest.raises(SystemExit) as stopped:
            tool.main([words])
        assert stopped.value.code == code
    told = capsys.readouterr()
    assert "usage:" in told.out
    assert len(told.out.splitlines()) > 5
    assert "error:" in told.err


@pytest.mark.slow
def test_the_demo_runs_from_end_to_end_and_again_without_work(tmp_path):
    line = [
        sys.executable,
        str(ROOT / "tools" / "demo.py"),
        "--output-dir",
        str(tmp_path / "out"),
        "--images",
        "100",
        "epochs=1",
    ]
    first = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "not run" not in first
    for protocol in ("knn/k20-t0.07@64px", "voc07-svm/pcl@64px", "detection/smoke_voc_R_18_C4"):
        assert protocol in first
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 * 3  # of four test images the truth and what two detectors found
    again = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert again.count("already done") == demo.STAGES
