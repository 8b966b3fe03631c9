"""Checks as figures: True or False, with facts that tell what differed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from adco.utils.errors import Failure, one_line
from benchmarks.on_gpu.sections import Context


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        passed: None when the check was not run; `facts` then has the reason.
        facts: What was compared, e.g. differences and tolerances.
    """

    passed: bool | None
    facts: dict[str, object] = field(default_factory=dict)


Check = tuple[str, Callable[[], Finding]]


def perform(context: Context, wanted: Iterable[Check]) -> None:
    """Run checks and report each as a figure.

    An exception counts as a failed check. The first check always runs; when the time is up the others are reported as
    not run.

    Args:
        context: The section's.
        wanted: The checks.

    Raises:
        Failure: Names the checks that failed.
    """
    failed = []
    for number, (name, check) in enumerate(wanted):
        if number and context.left() <= 0:
            context.skip(name, "the time was up")
            continue
        try:
            finding = check()
        except Exception as error:
            traceback.print_exc()
            finding = Finding(False, {"error": f"{type(error).__name__}: {one_line(error)[:300]}"})
        if finding.passed is None:
            context.skip(name, str(finding.facts["reason"]))
            continue
        context.report(name, finding.passed, **finding.facts)
        failed += [] if finding.passed else [name]
    if failed:
        raise Failure(f"{len(failed)} checks failed: {', '.join(failed)}")
