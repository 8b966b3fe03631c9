"""A report from records and metrics: tables that never mix protocols, figures, in one HTML file, Markdown and CSV."""

from adco.report.terminal import HEADLINES, Row, as_text, curves, page, table_rows

__all__ = ["HEADLINES", "Row", "as_text", "curves", "page", "table_rows"]
