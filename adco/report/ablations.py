"""Table 5 in small and ablations: times and accuracies of methods and bank sizes, and of single changes of a recipe."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adco.config.validation import BANKED
from adco.evaluation.published import Published, load_published
from adco.evaluation.score import Score
from adco.report.accuracy_curves import IGNORED, METHOD_STYLES, flat, name_of
from adco.report.collect import Item, Study
from adco.report.elements import MISSING, NOTHING, Cell, Column, Notes, Section, Table, columns, measured, number
from adco.report.paper_tables import published_cell
from adco.report.result_tables import describe_data, link, score_cell, slug

TIMES = "benchmark/table5-in-small"
PROBES = "pretraining/curve-knn-k20@64px", "pretraining/curve-linear-cached-features@64px"
CONTESTANT = re.compile(r"(?P<method>[a-z]+)(?P<symmetric>_sym)?(?:_k(?P<size>\d+))?")
SIZE = 8192  # of the small recipes' banks and queues, unless a contestant's name has another
ONE_WAY = ("adco", "moco", "mochi")  # methods whose loss is not symmetric by default
BASE = "base"  # name of the run without a change

Runs = Mapping[str, Mapping[str, Item]]  # name -> protocol -> record of a run that was evaluated at one epoch only


@dataclass(frozen=True)
class Entry:
    """A row of table 5. negatives: rows of its bank or queue, 0 without one; symmetric: both views are queries."""

    method: str
    negatives: int
    symmetric: bool

    @classmethod
    def of(cls, method: str, size: int, symmetric: bool) -> Entry:
        """The row of a method, whose bank has `size` rows if it has a bank."""
        return cls(method, size if method in BANKED else 0, symmetric or method not in ONE_WAY)

    def matches(self, n: Published) -> bool:
        """Whether a published number is of the same method and, for AdCo, of the same negatives and loss."""
        same = self.method != "adco" or (n.negatives, n.symmetric) == (self.negatives, self.symmetric)
        return n.method == METHOD_STYLES[self.method][0] and same


def section(study: Study, out: Path, papers: bool) -> Section:
    """Table 5 with the short runs of its folder, then a table for every other folder of short runs."""
    runs, blocks = short_runs(study), []
    for item in study.items:
        if item.record.protocol == TIMES:
            blocks.append(times_table(item, runs.pop(item.path.parent, {}), out, papers))
    blocks += [changes_table(folder, its_runs, out) for folder, its_runs in runs.items()]
    return Section("small", "Table 5 and ablations, in small", [], blocks)


def short_runs(study: Study) -> dict[Path, Runs]:
    """Folder -> its runs that were evaluated at one epoch only."""
    runs: dict[Path, dict[str, dict[str, Item]]] = defaultdict(lambda: defaultdict(dict))
    for item in study.items:
        curve, folder = item.record.settings.get("curve"), item.path.parent
        if item.record.protocol.startswith("pretraining/curve") and isinstance(curve, list) and len(curve) == 1:
            name = re.sub(r"(-s0)?-(knn|linear)$", "", item.path.stem).removeprefix(f"{folder.name}-")
            runs[folder][name][item.record.protocol] = item
    return dict(runs)


def times_table(item: Item, runs: Runs, out: Path, papers: bool) -> Table:
    """Every method and bank timed in one process, with accuracies of the short runs and the paper's table 5."""
    seconds = _scores(item, "seconds_per_epoch")
    timed = {_entry(name): name for name in seconds}  # of two names of one entry the later
    evaluated = {_pretrained(records): records for records in runs.values()}
    protocols = _protocols(runs) or PROBES
    times = ["seconds", "to MoCo v2", "bank's share", *["step, MiB"] * bool(_scores(item, "step_mib"))]
    rows, notes = [], Notes()
    for entry in sorted({*timed, *evaluated}, key=lambda e: (METHOD_STYLES[e.method][1], e.symmetric, -e.negatives)):
        cells = [Cell(METHOD_STYLES[entry.method][0]), number(entry.negatives or None, ",")]
        cells += [Cell("yes" if entry.symmetric else "no"), *_times(item, timed.get(entry), out)[: len(times)]]
        cells += [score_cell(evaluated.get(entry, {}).get(protocol), "top1", out) for protocol in protocols]
        rows.append(cells + (_paper(entry, notes) if papers else []))
    heads = [Column("method", numeric=False), Column("negatives"), Column("symmetric", numeric=False)]
    heads += columns(*times, group="an epoch, timed here")
    heads += [Column(name_of(p), code=p.partition("/")[2]) for p in protocols]
    heads += columns("GPU hours", "to MoCo v2", group="an epoch, the paper") if papers else []
    twice = [name for name in seconds if name not in timed.values()]
    again = [f"{timed[_entry(name)]} was timed twice: {seconds[name]:.1f} s an epoch the other time" for name in twice]
    return Table("table-5-small", "Table 5 in small", heads, rows, _caption(item, runs), [*again, *notes.lettered()])


def _protocols(runs: Runs) -> list[str]:
    return sorted({protocol for records in runs.values() for protocol in records})


def _entry(name: str) -> Entry:
    match = CONTESTANT.fullmatch(name)
    if not match:
        raise ValueError(f"{name} is no contestant of {TIMES}")
    return Entry.of(match["method"], int(match["size"] or SIZE), bool(match["symmetric"]))


def _pretrained(records: Mapping[str, Item]) -> Entry:
    recipe = next(iter(records.values())).record.settings["pretraining"]
    return Entry.of(recipe["method"], recipe["bank"]["size"], bool(recipe["contrast"]["symmetric"]))


def _scores(item: Item, kind: str) -> dict[str, Score]:
    """Contestant -> its score of a kind, for known methods."""
    scores = {n.partition("/")[2]: score for n, score in item.record.scores.items() if n.startswith(f"{kind}/")}
    return {n: score for n, score in scores.items() if (m := CONTESTANT.fullmatch(n)) and m["method"] in METHOD_STYLES}


def _times(item: Item, name: str | None, out: Path) -> list[Cell]:
    """Seconds of an epoch, their ratio to MoCo v2's, the bank's share of a step, memory of a step."""
    if name is None:
        return [MISSING] * 4
    seconds = _scores(item, "seconds_per_epoch")
    share, memory = (_scores(item, kind).get(name) for kind in ("bank_percent", "step_mib"))
    spread = item.record.settings.get("spread_of_rounds", {}).get(name)
    note = "" if spread is None else f"its rounds differ by {100 * spread:.0f} % of their median"
    return [
        measured(seconds[name].value, ".1f", href=link(item.path, out), note=note),
        measured(seconds[name] / seconds["moco"]) if "moco" in seconds else MISSING,
        NOTHING if share is None else measured(share.value, ".1f", " %"),
        MISSING if memory is None else measured(memory.value, ".0f"),
    ]


def _paper(entry: Entry, notes: Notes) -> list[Cell]:
    """The paper's GPU hours of an epoch for the same entry, and their ratio to MoCo v2's."""
    rows = [n for n in load_published() if n.table == "adco-5" and n.metric == "gpu_hours_per_epoch"]
    base = next(n.value for n in rows if n.method == METHOD_STYLES["moco"][0])
    same = next((n for n in rows if entry.matches(n)), None)
    return [published_cell(same, notes), number(same.value / base)] if same else [NOTHING] * 2


def _caption(item: Item, runs: Runs) -> str:
    made = item.record.settings
    spreads = made.get("spread_of_rounds") or {}
    widest = max((spread for name, spread in spreads.items() if not name.startswith("bank/")), default=0)
    parts = [
        f"{made.get('arch')}, {made.get('px')} px, batch {made.get('batch')}, {made.get('precision')}, on "
        f"{item.record.hardware}: steps of all methods in turn in one process, {made.get('rounds')} rounds, which "
        f"differ by up to {100 * widest:.0f} %; an epoch is {made.get('images', 0):,} images."
    ]
    if not _scores(item, "step_mib"):
        parts.append(f"Memory: {made.get('memory', 'not run')}.")
    if runs:
        one = next(iter(next(iter(runs.values())).values())).record
        parts.append(f"Accuracy: {describe_data(one.data)}, after {one.settings['curve'][0]['epoch']} epochs.")
    parts.append("The paper: ResNet-50, 224 px, ImageNet; only its columns “to MoCo v2” are comparable with ours.")
    return " ".join(parts)


def changes_table(folder: Path, runs: Runs, out: Path) -> Table:
    """A row for each run, a column for each protocol; with a run `base`, the change of each and the difference."""
    protocols, base = _protocols(runs), runs.get(BASE)
    heads = columns("run", *["what it changes"] * bool(base), numeric=False)
    for protocol in protocols:
        code = protocol.partition("/")[2]
        heads += [Column(label, code=code) for label in ("top-1", *["minus base"] * bool(base))]
    rows = []
    for name, records in sorted(runs.items(), key=lambda run: run[0] != BASE):
        cells = [Cell(name), *([Cell(_change(records, base))] if base else [])]
        for protocol in protocols:
            cells.append(score_cell(records.get(protocol), "top1", out))
            cells += [_difference(records.get(protocol), base.get(protocol))] if base else []
        rows.append(cells)
    one = next(iter(next(iter(runs.values())).values())).record
    caption = (
        f"{describe_data(one.data)}. {one.settings['curve'][0]['epoch']} epochs, one seed. 95% intervals: bootstrap of "
        "the test images."
    )
    if base:
        caption += (
            " The interval of a difference is computed as if the two scores were independent, so it is too wide rather "
            "than too narrow. No interval includes the spread between seeds."
        )
    title = folder.name.replace("_", " ").capitalize()
    return Table(f"short-{slug(folder.name)}", title, heads, rows, caption)


def _change(records: Mapping[str, Item], base: Mapping[str, Item]) -> str:
    """`bank.lr 0.0`: the recipe's keys that differ from the base."""
    ours, theirs = (
        {key: value for key, value in flat(next(iter(one.values())).record.settings["pretraining"]).items()
         if key.split(".")[0] not in IGNORED}
        for one in (records, base)
    )  # fmt: skip
    return ", ".join(f"{key} {value}" for key, value in ours.items() if value != theirs.get(key)) or "nothing"


def _difference(item: Item | None, base: Item | None) -> Cell:
    """Difference in points, with the interval of two independent scores (Zou and Donner's MOVER, 2008)."""
    if item is None or base is None:
        return MISSING
    if item is base:
        return NOTHING
    a, b = base.record.scores["top1"], item.record.scores["top1"]
    points = float(b) - float(a)
    if not (a.interval and b.interval):
        return measured(points)
    (a_low, a_high), (b_low, b_high) = a.interval, b.interval
    low, high = math.hypot(b - b_low, a_high - a), math.hypot(b_high - b, a - a_low)
    return measured(points, interval=(points - low, points + high))
