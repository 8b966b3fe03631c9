"""The counts add up, and the page is the one that the records give."""

from __future__ import annotations

import pytest

from tests.faults import report, table


def test_the_page_is_made_from_the_records():
    assert report.PAGE.read_text() == report.text(), "run: python tests/faults/report.py"


def test_every_record_is_of_a_fault_that_a_test_tries():
    report.text()
    assert {path.stem for path in table.RECORDS.glob("*.json")} <= table.FAULTS.keys()


def test_tries_of_one_fault_add_up_and_failures_show():
    both = table.Seen(3, None, 0, {"MiB": 5.0}) + table.Seen(2, 0, None, {"MiB": 9.0})
    assert (both.tries, both.lived, both.lost_steps, both.figures) == (5, 3, 0, {"MiB": 9.0})


def test_records_become_rows_and_what_was_not_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RECORDS", tmp_path)
    monkeypatch.setattr(table, "FAULTS", {})
    table.fault("a", "Load", "a million of them", "starts")
    table.fault("b", "Load", "none", "ends")
    table.write("a", table.Seen(1000, 999, 0, {"seconds": 1.25}), 3.0)
    page = table.markdown(list(table.FAULTS.values()))
    assert "| a million of them | starts | 1,000 | 999 | 0 | seconds 1.25 [json](../results/faults/a.json) |" in page
    assert "| none | ends | not run |" in page
    with pytest.raises(ValueError, match="taken"):
        table.fault("a", "Load", "something else", "starts")
