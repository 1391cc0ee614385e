"""The evidence page over a suite of comparisons: one page that says whether, where and at what cost balancing pays."""

from equipoise.report.evidence.page import evidence_section, write_evidence, write_evidence_markdown

__all__ = ["evidence_section", "write_evidence", "write_evidence_markdown"]
