"""Table 5 in small and ablations: what methods and sizes of the bank cost side by side, what single changes give."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adco.evaluation.published import Published, load_published
from adco.evaluation.records import Score
from adco.report.accuracy_curves import ASIDE, METHOD_STYLES, flat, name_of
from adco.report.collect import Item, Study
from adco.report.elements import MEASURED, MISSING, NOTHING, Cell, Column, Section, Table, measured
from adco.report.paper_tables import Notes
from adco.report.result_tables import data_in_words, link, score_cell, slug

TIMES = "benchmark/table5-in-small"
PROBES = "pretraining/curve-knn-k20@64px", "pretraining/curve-linear-cached-features@64px"
CONTESTANT = re.compile(r"(?P<method>[a-z]+)(?P<symmetric>_sym)?(?:_k(?P<size>\d+))?")
SIZE = 8192  # of the small recipes' banks and queues, where a contestant's name says none
BANKED, ONE_WAY = ("adco", "caco", "moco", "mochi"), ("adco", "moco", "mochi")
BASE = "base"  # the name of the run that no change was made to

Runs = Mapping[str, Mapping[str, Item]]  # name -> protocol -> the record of a run that was judged at one epoch alone


@dataclass(frozen=True)
class Entry:
    """A row of table 5. negatives: rows of its bank or queue, 0: it has none; symmetric: both views are queries."""

    method: str
    negatives: int
    symmetric: bool

    @classmethod
    def of(cls, method: str, size: int, symmetric: bool) -> Entry:
        return cls(method, size if method in BANKED else 0, symmetric or method not in ONE_WAY)

    def printed(self, n: Published) -> bool:
        """Whether a row of the paper is of the same method and, of AdCo's several, of the same negatives and loss."""
        same = self.method != "adco" or (n.negatives, n.symmetric) == (self.negatives, self.symmetric)
        return n.method == METHOD_STYLES[self.method][0] and same


def section(study: Study, out: Path, papers: bool) -> Section:
    """Table 5 with the runs beside its times, then every other folder of short runs."""
    runs, blocks = short_runs(study), []
    for item in study.items:
        if item.record.protocol == TIMES:
            blocks.append(times_table(item, runs.pop(item.path.parent, {}), out, papers))
    blocks += [changes_table(folder, its_runs, out) for folder, its_runs in runs.items()]
    return Section("small", "Table 5 and ablations, in small", [], blocks)


def short_runs(study: Study) -> dict[Path, Runs]:
    """Folder -> its runs that were judged at one epoch alone."""
    found: dict[Path, dict] = defaultdict(dict)
    for item in study.items:
        curve, folder = item.record.settings.get("curve"), item.path.parent
        if item.record.protocol.startswith("pretraining/curve") and isinstance(curve, list) and len(curve) == 1:
            name = re.sub(r"(-s0)?-(knn|linear)$", "", item.path.stem).removeprefix(f"{folder.name}-")
            found[folder].setdefault(name, {})[item.record.protocol] = item
    return found


def times_table(item: Item, runs: Runs, out: Path, papers: bool) -> Table:
    """Every method and bank that was timed in one process; beside it accuracies where run, and the paper's table 5."""
    seconds = _scores(item, "seconds_per_epoch")
    timed = {_entry(name): name for name in seconds}  # of two names of one thing the later
    judged = {_pretrained(ofs): ofs for ofs in runs.values()}
    entries = sorted({*timed, *judged}, key=lambda e: (METHOD_STYLES[e.method][1], e.symmetric, -e.negatives))
    protocols = sorted({protocol for ofs in runs.values() for protocol in ofs}) or list(PROBES)
    reported = ["seconds", "to MoCo v2", "bank's share", *(["step, MiB"] if _scores(item, "step_mib") else [])]
    rows, notes = [], Notes()
    for entry in entries:
        negatives = Cell(f"{entry.negatives:,}", value=entry.negatives) if entry.negatives else Cell("–")
        cells = [Cell(METHOD_STYLES[entry.method][0]), negatives, Cell("yes" if entry.symmetric else "no")]
        cells += _times(item, timed.get(entry), link(item.path, out))[: len(reported)]
        ofs = judged.get(entry, {})
        cells += [score_cell(ofs[p], "top1", out) if p in ofs else MISSING for p in protocols]
        rows.append((*cells, *(_paper(entry, notes) if papers else ())))
    columns = [Column("method", numeric=False), Column("negatives"), Column("symmetric", numeric=False)]
    columns += [Column(name, "an epoch, timed here") for name in reported]
    columns += [Column(name_of(p), code=p.partition("/")[2]) for p in protocols]
    if papers:
        columns += [Column(name, "an epoch, the paper") for name in ("GPU hours", "to MoCo v2")]
    twice = [name for name in seconds if name not in timed.values()]
    again = [f"{timed[_entry(name)]} was timed twice: {seconds[name]:.1f} s an epoch the other time" for name in twice]
    return Table("table-5-small", "Table 5 in small", columns, rows, _told(item, runs), notes=[*again, *notes.lines()])


def _entry(name: str) -> Entry:
    found = CONTESTANT.fullmatch(name)
    return Entry.of(found["method"], int(found["size"] or SIZE), bool(found["symmetric"]))


def _pretrained(ofs: Mapping[str, Item]) -> Entry:
    recipe = next(iter(ofs.values())).record.settings["pretraining"]
    return Entry.of(recipe["method"], recipe["bank"]["size"], bool(recipe["contrast"]["symmetric"]))


def _scores(item: Item, kind: str) -> dict[str, Score]:
    """Contestant -> its score of a kind, of those that this page has a name for."""
    found = {n.partition("/")[2]: score for n, score in item.record.scores.items() if n.startswith(f"{kind}/")}
    return {n: score for n, score in found.items() if (m := CONTESTANT.fullmatch(n)) and m["method"] in METHOD_STYLES}


def _times(item: Item, name: str | None, href: str) -> tuple[Cell, ...]:
    """Seconds an epoch, their ratio to MoCo v2's, the bank's share of a step, a step's memory."""
    if name is None:
        return (MISSING,) * 4
    seconds = _scores(item, "seconds_per_epoch")
    share, memory = (_scores(item, kind).get(name) for kind in ("bank_percent", "step_mib"))
    spread = item.record.settings.get("spread_of_rounds", {}).get(name)
    note = "" if spread is None else f"its rounds differ by {100 * spread:.0f} % of their median"
    return (
        measured(seconds[name], 1, href=href, note=note),
        measured(seconds[name] / seconds["moco"]) if "moco" in seconds else MISSING,
        NOTHING if share is None else Cell(f"{share:.1f} %", MEASURED, float(share)),
        MISSING if memory is None else measured(memory, 0),
    )


def _paper(entry: Entry, notes: Notes) -> tuple[Cell, ...]:
    """GPU hours an epoch that the paper prints for the same thing, and their ratio to MoCo v2's."""
    rows = [n for n in load_published() if n.table == "adco-5" and n.metric == "gpu_hours_per_epoch"]
    base = next(n.value for n in rows if n.method == METHOD_STYLES["moco"][0])
    found = next((n for n in rows if entry.printed(n)), None)
    return (notes.cell(found), Cell(f"{found.value / base:.2f}", value=found.value / base)) if found else (NOTHING,) * 2


def _told(item: Item, runs: Runs) -> str:
    made, record = item.record.settings, item.record
    spreads = made.get("spread_of_rounds") or {}
    widest = max((spread for name, spread in spreads.items() if not name.startswith("bank/")), default=0)
    words = [
        f"{made.get('arch')}, {made.get('px')} px, batch {made.get('batch')}, {made.get('precision')}, on "
        f"{record.hardware}: steps of all methods in turn in one process, {made.get('rounds')} rounds, which differ by "
        f"up to {100 * widest:.0f} %; an epoch is {made.get('images', 0):,} images."
    ]
    if not _scores(item, "step_mib"):
        words.append(f"Memory: {made.get('memory', 'not run')}.")
    if runs:
        judged = next(iter(next(iter(runs.values())).values())).record
        words.append(f"Accuracy: {data_in_words(judged.data)}, after {judged.settings['curve'][0]['epoch']} epochs.")
    words.append("The paper's: ResNet-50, 224 px, ImageNet; not on this scale, the columns “to MoCo v2” are its place.")
    return " ".join(words)


def changes_table(folder: Path, runs: Runs, out: Path) -> Table:
    """A row a run, a column a protocol; where one run is the `base`, what each changes, and its difference from it."""
    protocols, base = sorted({protocol for ofs in runs.values() for protocol in ofs}), runs.get(BASE)
    columns = [Column("run", numeric=False), *([Column("what it changes", numeric=False)] if base else [])]
    for protocol in protocols:
        code = protocol.partition("/")[2]
        columns += [Column("top-1", code=code), *([Column("minus base", code=code)] if base else [])]
    rows = []
    for name, ofs in sorted(runs.items(), key=lambda run: run[0] != BASE):
        cells = [Cell(name), *([Cell(_change(ofs, base))] if base else [])]
        for protocol in protocols:
            cells.append(score_cell(ofs[protocol], "top1", out) if protocol in ofs else MISSING)
            cells += [_difference(ofs.get(protocol), base.get(protocol))] if base else []
        rows.append(tuple(cells))
    one = next(iter(next(iter(runs.values())).values())).record
    caption = (
        f"{data_in_words(one.data)}. {one.settings['curve'][0]['epoch']} epochs, one seed. 95% intervals: bootstrap of "
        "the test images."
    )
    if base:
        caption += (
            " A difference's is made from both scores' as if their images were not the same, so it is too wide rather "
            "than too narrow; none holds the spread between seeds."
        )
    title = folder.name.replace("_", " ").capitalize()
    return Table(f"short-{slug(folder.name)}", title, columns, rows, caption)


def _change(ofs: Mapping[str, Item], base: Mapping[str, Item]) -> str:
    """`bank.lr 0.0`: the recipe's keys that are not as in the base."""
    ours, theirs = (
        {key: value for key, value in flat(next(iter(one.values())).record.settings["pretraining"]).items()
         if key.split(".")[0] not in ASIDE}
        for one in (ofs, base)
    )  # fmt: skip
    return ", ".join(f"{key} {ours.get(key, '–')}" for key in ours if ours[key] != theirs.get(key)) or "nothing"


def _difference(item: Item | None, base: Item | None) -> Cell:
    """Points, with the interval that two independent intervals give (Zou and Donner's MOVER, 2008)."""
    if item is None or base is None:
        return MISSING
    if item is base:
        return NOTHING
    a, b = base.record.scores["top1"], item.record.scores["top1"]
    points = float(b) - float(a)
    if None in (a.low, b.low):
        return measured(points)
    low, high = math.hypot(b - b.low, a.high - a), math.hypot(b.high - b, a - a.low)
    return measured(points, low=points - low, high=points + high)
