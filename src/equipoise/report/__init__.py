"""The report of a comparison: analysis, statistics, tables, words, charts, and the page that holds them."""

from equipoise.report.page import headline, result_rows, write_markdown, write_report

__all__ = ["headline", "result_rows", "write_markdown", "write_report"]
