"""The demo's stages: finished ones are not run again, a failed one is named. Links of the pages, help of the tools."""

from __future__ import annotations

import subprocess
import sys

import pytest

from adco.utils.errors import UserError
from tests import ROOT
from tools import convert_to_d2, demo, make_sample, report, train_adco


def test_every_file_the_zoo_and_the_readme_link_to_exists():
    for page in (ROOT / "MODEL_ZOO.md", ROOT / "README.md"):
        links = [part.split(")")[0] for part in page.read_text().split("](")[1:]]
        local = [link for link in links if not link.startswith("https://")]
        assert local
        for link in local:
            assert (ROOT / link.partition("#")[0]).exists(), f"{page.name} links to {link}"


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
    reported = capsys.readouterr()
    assert "usage:" in reported.out
    assert len(reported.out.splitlines()) > 5
    assert "error:" in reported.err


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
