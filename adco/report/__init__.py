"""A report from records and metrics: tables that never mix protocols, figures, in one HTML file, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adco.report import ablations, appendix, costs, figures, leads, paper_tables, result_tables, significance
from adco.report.collect import Study, gather
from adco.report.elements import Figure, Report, Section
from adco.report.render import write
from adco.report.significance import compared
from adco.report.text_table import as_text, table_rows

__all__ = ["Figure", "Report", "Study", "as_text", "build", "compared", "gather", "table_rows", "write"]


def build(
    study: Study,
    out: Path,
    title: str = "Results",
    lead: str = "",
    with_papers: bool = True,
    detections: Mapping[str, Sequence[tuple[str, bytes]]] | None = None,
    reported: str = "",
) -> Report:
    """The report of a study.

    out: the folder it will be written to, which links to records start from
    with_papers: with the published tables and the cost of the published recipes; without, only what was measured
    detections: test image -> (whose boxes, PNG) images of it; told: what they show
    """
    found: list[Section | None] = [
        result_tables.section(study, out),
        significance.section(study, with_papers),
        leads.section(study, out, with_papers),
        ablations.section(study, out, with_papers),
        figures.bank_section(study, with_papers),
        paper_tables.section(study, out) if with_papers else None,
        costs.section(study, out, paper_tables.gpu_hours()) if with_papers else None,
        _detection_section(study, detections or {}, reported),
        appendix.speed_section(study, out),
        appendix.records_section(study, out),
    ]
    lead = lead or (
        "Checkpoints judged under named protocols. A column is one protocol on one data set; what a paper prints, what "
        "this code measured and what nobody ran are told apart."
    )
    return Report(title, lead, _facts(study), [section for section in found if section and section.blocks])


def _detection_section(study: Study, detections: Mapping, reported: str) -> Section:
    drawn = [figures.detection_figure(detections, reported)] if detections else []
    blocks = [*drawn, *figures.class_figures(study)]
    return Section("classes", "Detections and classes", [], blocks)


def _facts(study: Study) -> list[tuple[str, str]]:
    """What stands under the title."""
    records = [item.record for item in study.items]
    hardware = sorted({record.hardware for record in [*records, *(run.record for run in study.runs if run.record)]})
    dates = sorted(record.created[:10] for record in records)
    facts = [
        ("Models", str(len(study.models))),
        ("Records", str(len(records))),
        ("Protocols", str(len({item.record.protocol for item in study.items}))),
        ("Pretraining runs", str(len(study.runs))),
        ("Hardware", "; ".join(hardware) or "–"),
        (
            "Measured",
            dates[0] if dates and dates[0] == dates[-1] else " to ".join((dates[0], dates[-1])) if dates else "–",
        ),
    ]
    return [*facts, ("Unreadable files", str(len(study.broken)))] if study.broken else facts
