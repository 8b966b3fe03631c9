"""A report from records and metrics: tables with one protocol a column, and figures, as HTML, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adco.report import ablations, accuracy_curves, appendix, cost, figures, paper_tables, result_tables, significance
from adco.report.collect import Study, gather
from adco.report.elements import Figure, Report, Section
from adco.report.render import write
from adco.report.significance import compared
from adco.report.text_table import as_text, table_rows

__all__ = ["Figure", "Report", "Study", "as_text", "build", "compared", "gather", "table_rows", "write"]

LEAD = (
    "Checkpoints evaluated under named protocols. A column is one protocol on one data set. Published numbers, numbers "
    "measured by this code and what was not run are marked differently."
)


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

    Args:
        study: The results, see `gather`.
        out: Folder that the report will be written to; links to records are relative to it.
        title: Title of the page.
        lead: Text under the title.
        with_papers: Also show the published tables and the cost of the published recipes.
        detections: Test image -> (whose boxes, PNG), several of one image side by side.
        reported: Caption of these images.
    """
    sections: list[Section | None] = [
        result_tables.section(study, out),
        significance.section(study, with_papers),
        accuracy_curves.section(study, out, with_papers),
        ablations.section(study, out, with_papers),
        figures.bank_section(study, with_papers),
        paper_tables.section(study, out) if with_papers else None,
        cost.section(study, out, paper_tables.gpu_hours()) if with_papers else None,
        figures.detection_section(study, detections or {}, reported),
        appendix.speed_section(study, out),
        appendix.records_section(study, out),
    ]
    return Report(title, lead or LEAD, _facts(study), [section for section in sections if section and section.blocks])


def _facts(study: Study) -> list[tuple[str, str]]:
    """Name and value of the facts under the title."""
    records = [item.record for item in study.items]
    hardware = sorted({record.hardware for record in [*records, *(run.record for run in study.runs if run.record)]})
    dates = sorted({record.created[:10] for record in records})
    facts = [
        ("Models", str(len(study.models))),
        ("Records", str(len(records))),
        ("Protocols", str(len({record.protocol for record in records}))),
        ("Pretraining runs", str(len(study.runs))),
        ("Hardware", "; ".join(hardware) or "–"),
        ("Measured", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "–"),
    ]
    return [*facts, ("Unreadable files", str(len(study.broken)))] if study.broken else facts
