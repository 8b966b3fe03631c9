"""Section 2: the tests below tests/cuda, which need a GPU, in a pytest of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from adco.launch import supervisor
from adco.utils.errors import Failure
from benchmarks.on_gpu.sections import Context

ROOT = Path(__file__).resolve().parent.parent.parent.parent
# Without the project's options, which need pytest's plugins.
WORDS = ("-m", "pytest", "tests/cuda", "-v", "-rfEs", "--tb=short", "--color=no", "-p", "no:cacheprovider")
OPTIONS = ("-o", "addopts=", "-o", "required_plugins=", "-o", "faulthandler_timeout=60")
OUTCOME = re.compile(r"^(tests/cuda/\S+?::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b")
STARTED = re.compile(r"^(tests/cuda/\S+?::\S+)")
REASON = re.compile(r"^(FAILED|ERROR) (tests/cuda/.+?)(?: - (.*))?$")
SKIPPED = re.compile(r"^SKIPPED \[(\d+)\] \S+ (.*)$")
BAD = ("FAILED", "ERROR")
MINIATURE_SECONDS = 30.0  # all of them are skipped, and to import them is what takes time


def run(context: Context) -> None:
    """Report how many passed, failed and were skipped, and each failure in a line. Raises Failure for failures."""
    limit = context.left() if not context.small else MINIATURE_SECONDS
    lines, code, in_time = printed([sys.executable, *WORDS, *OPTIONS], limit)
    outcomes, messages, skipped = parse(lines)
    counts = Counter(outcomes.values())
    for name in ("passed", "failed", "skipped"):
        context.report(name, sum(counts[word] for word in (BAD if name == "failed" else (name.upper(),))), "tests")
    if skipped:
        context.report("reasons_to_skip", skipped)
    if context.small and counts["SKIPPED"] == len(outcomes):
        context.skip("tests", "all of them need a GPU")
    for test, word in outcomes.items():
        if word in BAD:
            context.report(f"failed {test}", messages.get(test) or word.lower())
    if not in_time or code > 128 or (code and not outcomes):
        how = f"pytest ended with {code}" if in_time else "the time was up"
        raise Failure(f"{how} after {len(outcomes)} tests, in {unfinished(lines, outcomes) or 'none of them'}")
    if code:
        raise Failure(f"{sum(counts[word] for word in BAD)} of {len(outcomes)} tests failed (pytest: {code})")


def printed(command: Sequence[str], limit: float) -> tuple[list[str], int, bool]:
    """Run a command for `limit` seconds at most and print its lines: (the lines, its exit code, 128 + N for signal N,
    whether it ended in time)."""
    process = subprocess.Popen(
        [sys.executable, "-I", supervisor.__file__, *command],  # it and what it starts end with this process
        cwd=ROOT, env={**os.environ, "COLUMNS": "200"},  # pytest cuts its messages to the width of the terminal
        text=True, errors="replace", start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(1.0, limit), stop)
    timer.start()
    lines = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        code = process.wait()
    finally:
        timer.cancel()
    return lines, code, not stopped.is_set()


def parse(lines: Iterable[str]) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """From what `pytest -v -rfEs` prints: (test: outcome, failed test: its message, reason to skip: how often). A test
    that fails and whose fixtures fail as they are taken down counts once."""
    outcomes, messages, skipped = {}, {}, Counter()
    for line in lines:
        if found := OUTCOME.match(line):
            outcomes[found[1]] = found[2]
        elif found := REASON.match(line):
            outcomes[found[2]] = found[1]  # also a file that cannot be collected
            messages[found[2]] = found[3] or ""
        elif found := SKIPPED.match(line):
            skipped[found[2]] += int(found[1])
    return outcomes, messages, dict(skipped)


def unfinished(lines: Iterable[str], outcomes: dict[str, str]) -> str:
    """The last test that began and did not end; empty where there is none."""
    start = [found[1] for line in lines if (found := STARTED.match(line))]
    return start[-1] if start and start[-1] not in outcomes else ""
