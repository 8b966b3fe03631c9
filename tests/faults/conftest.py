"""Fixtures of the fault tests, and the records of a run with ADCO_RECORD_FAULTS=1."""

from __future__ import annotations

import os

import pytest

from tests.faults import table, toy

SEEN = pytest.StashKey[dict[str, tuple[table.Seen, float]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name): tries a fault of tests/faults/table.py")


@pytest.fixture
def seen() -> table.Seen:
    """What the test counts for its fault; one try by default."""
    return table.Seen()


@pytest.fixture
def recipe(tmp_path) -> str:
    """The toy's recipe as a file."""
    path = tmp_path / "toy.yaml"
    path.write_text(toy.RECIPE)
    return str(path)


@pytest.fixture
def data(images) -> str:
    """The override that points a recipe at the images."""
    return f"data.root={images}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    mark = item.get_closest_marker("fault")
    if mark and call.when == "call" and not report.skipped:
        results = item.config.stash.setdefault(SEEN, {})
        seen = item.funcargs.get("seen", table.Seen())
        if report.failed:
            seen = table.Seen(seen.tries, 0, seen.lost_steps, seen.figures)
        before = results.get(mark.args[0])
        results[mark.args[0]] = (before[0] + seen, before[1] + call.duration) if before else (seen, call.duration)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("ADCO_RECORD_FAULTS") == "1":
        for name, (seen, seconds) in session.config.stash.get(SEEN, {}).items():
            table.write(name, seen, seconds)
