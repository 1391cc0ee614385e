"""Checks, on one batch's losses, that forks and task optimizers stand where the tasks meet."""

from equipoise.checking.one_batch import check
from equipoise.checking.report import Report

__all__ = ["Report", "check"]
