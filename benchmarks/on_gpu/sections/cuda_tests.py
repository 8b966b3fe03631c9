"""Section 2: run the tests in tests/cuda, which need a GPU, with pytest in a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from adco.utils.errors import Failure
from benchmarks.on_gpu.figures import Result
from benchmarks.on_gpu.process import run_process
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
MINIATURE_SECONDS = 30.0  # all of them are skipped; importing them takes the time


def run(context: Context) -> None:
    """Report how many tests passed, failed and were skipped, and each failure. Raises Failure when one failed."""
    limit = context.left() if not context.small else MINIATURE_SECONDS
    lines, result = run_and_print([sys.executable, *WORDS, *OPTIONS], limit)
    code, in_time = result.code or 0, result.result != "killed"
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


def run_and_print(command: Sequence[str], limit: float) -> tuple[list[str], Result]:
    """Run a command for `limit` seconds at most and print its output; returns the lines and how it ended."""
    output = bytearray()

    def write(block: bytes) -> None:
        output.extend(block)
        print(block.decode(errors="replace"), end="", flush=True)

    columns = {"COLUMNS": "200"}  # pytest cuts its messages to the width of the terminal
    result = run_process(command, ROOT, {**os.environ, **columns}, max(1.0, limit), write)
    if result.result == "interrupted":
        raise KeyboardInterrupt
    return output.decode(errors="replace").splitlines(), result


def parse(lines: Iterable[str]) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """Read the output of `pytest -v -rfEs`.

    Args:
        lines: The lines that pytest has printed.

    Returns:
        The outcome of each test, the message of each failed test, and how often each reason to skip occurs. A test
        that fails and whose teardown fails, too, counts once.
    """
    outcomes, messages, skipped = {}, {}, Counter()
    for line in lines:
        if match := OUTCOME.match(line):
            outcomes[match[1]] = match[2]
        elif match := REASON.match(line):
            outcomes[match[2]] = match[1]  # also a file that cannot be collected
            messages[match[2]] = match[3] or ""
        elif match := SKIPPED.match(line):
            skipped[match[2]] += int(match[1])
    return outcomes, messages, dict(skipped)


def unfinished(lines: Iterable[str], outcomes: dict[str, str]) -> str:
    """The last test that has started and not ended; empty where there is none."""
    started = [match[1] for line in lines if (match := STARTED.match(line))]
    return started[-1] if started and started[-1] not in outcomes else ""
