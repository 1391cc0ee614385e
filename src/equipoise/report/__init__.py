"""The report of a comparison: analysis, statistics, tables, words, charts, and the page that holds them."""

from equipoise.report.page import result_rows, write_markdown, write_report

__all__ = ["result_rows", "write_markdown", "write_report"]
