"""Comparing methods: the same data, weights and batches for each, over several seeds, with a report."""

from equipoise.compare.from_python import compare
from equipoise.compare.results import Results
from equipoise.compare.runner import run_comparison

__all__ = ["Results", "compare", "run_comparison"]
