"""The report in a real browser without a network: nothing is requested, nothing overflows, tables are complete."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from adco import report
from tests.adco.report.data import make_results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")

PROBE = """
<script>
addEventListener("load", () => {
  const texts = (row) => [...row.cells].map((cell) => cell.textContent.trim());
  const tables = {};
  for (const table of document.querySelectorAll("table")) {
    const box = table.parentElement;
    tables[table.closest("section").id] = {
      heads: texts(table.tHead.rows[table.tHead.rows.length - 1]),
      rows: [...table.tBodies[0].rows].map(texts),
      scrolls: getComputedStyle(box).overflowX === "auto" && box.tabIndex === 0,
    };
  }
  const reported = {
    inner: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    charts: [...document.querySelectorAll(".chart")].filter((c) => c.getBoundingClientRect().width > 0).length,
    faults,
    links: [...document.querySelectorAll("nav a")].every((a) => document.querySelector(a.getAttribute("href"))),
    requested: performance.getEntriesByType("resource").map((entry) => entry.name),
    tables,
  };
  const knn = document.querySelector("section[id^='knn'] table");
  knn.tHead.rows[1].cells[1].querySelector("button").click();
  reported.down = [...knn.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value));
  reported.sort = knn.tHead.rows[1].cells[1].getAttribute("aria-sort");
  parent.postMessage(JSON.stringify(reported), "*");
});
</script></body>
"""
EARS = """<head><script>
const faults = [];
addEventListener("error", (event) => faults.push(event.message || event.target.src), true);
console.error = (...words) => faults.push(words.join(" "));
</script>"""
FRAME = """<!doctype html><script id="probe" type="application/json"></script>
<script>
addEventListener("message", (event) => {{ document.getElementById("probe").textContent = event.data; }});
</script>
<iframe src="probed.html" style="border: 0; width: {width}px; height: 900px"></iframe>
"""  # a window of its own cannot be narrower than 500 px


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A full report and, beside it, the same page with a script that reports how the browser shows it."""
    root = tmp_path_factory.mktemp("browser")
    study = report.gather([str(make_results(root / "results"))])
    made, *_ = report.write(report.build(study, root / "report"), root / "report")
    probed = made.with_name("probed.html")
    probed.write_text(made.read_text().replace("</body>", PROBE).replace("<head>", EARS))
    return made


def chromium(*words: str) -> subprocess.CompletedProcess[str]:
    """One run of the browser without host names and proxies."""
    assert CHROMIUM
    alone = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")
    cut_off = ("--host-resolver-rules=MAP * ~NOTFOUND", "--no-proxy-server", "--disable-background-networking")
    return subprocess.run([CHROMIUM, *alone, *cut_off, *words], capture_output=True, text=True, timeout=120)


def look(page: Path, folder: Path, width: int, *words: str) -> tuple[dict, str]:
    """The probe's report at a width, and the browser's log."""
    frame, profile = page.with_name(f"frame{width}.html"), f"--user-data-dir={folder}"
    frame.write_text(FRAME.format(width=width))
    options = (
        "--enable-logging=stderr",
        "--v=0",
        "--dump-dom",
        "--window-size=1400,1000",
        "--virtual-time-budget=5000",
    )
    ended = chromium(*options, profile, *words, frame.as_uri())
    probed = re.search(r'<script id="probe"[^>]*>(.*?)</script>', ended.stdout, re.DOTALL)
    assert probed and probed[1], ended.stderr[-2000:]
    return json.loads(html.unescape(probed[1])), ended.stderr


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_requested_nothing_overflows_and_tables_are_complete(page, tmp_path, width):
    reported, errors = look(page, tmp_path / "profile", width)
    assert reported["inner"] == width
    assert reported["overflow"] <= 0
    assert reported["faults"] == []
    assert "CONSOLE" not in errors
    assert reported["requested"] == []
    assert reported["links"]
    assert reported["charts"] >= 3  # one drawing of each figure is visible, the wide or the narrow
    tables = reported["tables"]
    assert all(table["scrolls"] for table in tables.values())
    knn = next(table for key, table in tables.items() if key.startswith("knn"))
    assert knn["heads"] == ["model", "top-1", "top-1"]
    assert len(knn["rows"]) == 15
    assert re.fullmatch(r"5\d\.\d\d, 95% interval \d\d\.\d\d – \d\d\.\d\d", knn["rows"][0][1])
    first = tables["paper-adco-1"]
    assert ["AdCo, multi-crop", "256", "", "", "", "", "", "73.2", "not run"] in first["rows"]
    assert tables["unreadable"]["rows"][0][0].endswith("cut.json")


def test_a_page_that_requests_something_or_is_too_wide_would_be_noticed(page, tmp_path):
    wrong = page.parent / "wrong" / "report.html"
    wrong.parent.mkdir()
    fault = '<img src="http://example.com/x.png" alt="x"><div style="width: 3000px">x</div></body>'
    probed = page.with_name("probed.html").read_text()
    wrong.with_name("probed.html").write_text(probed.replace("</body>", fault))
    reported, _ = look(wrong, tmp_path / "profile", 390)
    assert reported["requested"] == ["http://example.com/x.png"]
    assert reported["faults"] == ["http://example.com/x.png"]
    assert reported["overflow"] > 0


def test_a_column_is_sorted_by_value_where_scripts_run(page, tmp_path):
    reported, _ = look(page, tmp_path / "profile", 1280)
    assert reported["down"] == sorted(reported["down"], reverse=True)
    assert reported["sort"] == "descending"


def test_dark_is_dark_and_light_is_light(page, tmp_path):
    light, _ = look(page, tmp_path / "a", 1280, "--blink-settings=preferredColorScheme=1")
    dark, _ = look(page, tmp_path / "b", 1280, "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(255, 255, 255)"
    assert sum(map(int, re.findall(r"\d+", dark["paper"]))) < 120


@pytest.mark.slow
def test_it_prints(page, tmp_path):
    printed = tmp_path / "report.pdf"
    chromium(f"--print-to-pdf={printed}", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri())
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 5
