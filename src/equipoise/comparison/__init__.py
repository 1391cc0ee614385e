"""Comparing methods: the same data, weights and batches for each, over several seeds, with a report."""

from equipoise.comparison.from_python import compare
from equipoise.comparison.results import Results
from equipoise.comparison.runner import run_comparison

__all__ = ["Results", "compare", "run_comparison"]
