"""Checks of the placement of forks and of the parameters of task optimizers, on one batch's losses."""

from equipoise.checking.one_batch import check
from equipoise.checking.report import Report

__all__ = ["Report", "check"]
