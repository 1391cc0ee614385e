"""Comparing methods: the same data, weights and batches for each, over several seeds, with a report."""

from equipoise.compare.runner import compare

__all__ = ["compare"]
