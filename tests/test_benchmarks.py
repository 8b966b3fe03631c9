"""The referee: interleaved rounds, medians of the rounds' own ratios, a warning when a ratio has fallen."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from adco.records import load_record
from benchmarks import run
from benchmarks.race import Options, Outcome, Ratio, Timing, race, ratio, regressions


def test_contestants_take_turns_and_the_first_round_does_not_count():
    calls = []

    def contestant(name, seconds):
        def work():
            calls.append(name)
            return next(seconds)

        return work

    slow, fast = iter([99.0, 2.0, 4.0, 6.0]), iter([99.0, 1.0, 1.0, 1.0])
    timings = race({"slow": contestant("slow", slow), "fast": contestant("fast", fast)}, rounds=3, items=10)
    assert sorted(calls[:2]) == sorted(calls[2:4]) == sorted(calls[4:6]) == ["fast", "slow"]
    assert calls[2:4] != calls[4:6]  # neither always runs first
    assert timings["slow"].seconds == (2.0, 4.0, 6.0)
    assert timings["slow"].rate == 2.5
    assert ratio("speed", timings["slow"], timings["fast"], 3) == Ratio("speed", 4.0, 3)


def test_a_ratio_is_the_median_of_its_rounds_not_the_ratio_of_medians():
    reference = Timing("a", (1.0, 10.0, 1.0, 10.0, 4.0))  # the machine was busy in the second and fourth round
    candidate = Timing("b", (0.5, 5.0, 0.5, 5.0, 0.5))
    assert ratio("speed", reference, candidate, 1).value == 2.0


def outcome(value: float) -> Outcome:
    return Outcome("image", [Timing("ours", (1.0, 2.0, 3.0), 8)], [Ratio("speed", value, 2)], settings={"px": 224})


def test_a_fall_of_more_than_a_fifth_is_a_warning(tmp_path):
    path = outcome(4.0).record("input", 1.0).write(tmp_path / "input.json")
    assert regressions(outcome(3.3), path) == []
    assert "3.10 is below the recorded 4.00" in regressions(outcome(3.1), path)[0]
    assert regressions(outcome(0.1), tmp_path / "absent.json") == []


def test_run_prints_the_ratio_last_and_writes_the_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.input", SimpleNamespace(run=lambda options: outcome(4.0)))
    monkeypatch.setattr(run, "COMMITTED", tmp_path)
    monkeypatch.setattr(run, "HERE", tmp_path)
    (tmp_path / "input.py").touch()
    assert run.main(["input", "--quick", "--output-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "RATIO speed 4.00 2"
    record = load_record(tmp_path / "input-quick.json")
    assert record.scores == {"ratio/speed": 4.0, "image_per_s/ours": 4.0}
    assert record.settings["goals"] == {"speed": 2}
    run.run_one("input", Options(quick=True), tmp_path)
    assert "warning" not in capsys.readouterr().out


def test_a_benchmark_that_is_not_there_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path)
    assert run.main(["svm", "--output-dir", str(tmp_path)]) == 2
    assert "benchmarks/svm.py is not there" in capsys.readouterr().err
    assert run.main(["all", "--output-dir", str(tmp_path)]) == 0
    assert run.main(["input", "--data", str(tmp_path / "no")]) == 2
    with pytest.raises(SystemExit):
        run.main(["surprise"])
