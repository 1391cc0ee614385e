"""Metrics of a ranker, as pure functions and as torchmetrics classes that gather over batches and ranks.

Common to all: a label is missing where it is NaN, of a binary task also where it is −1; rows without a label or of
weight 0 do not count; everything is summed in float64, whatever the precision of the predictions; a value that is not
defined (each says when) is NaN, without a warning; a NaN among the predictions that count makes the value NaN. The
classes take torchmetrics' usual keywords.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from equipoise.ranking.metrics.binary import auc, calibration, log_loss, normalized_entropy
from equipoise.ranking.metrics.curves import calibration_curve
from equipoise.ranking.metrics.grouped import GroupedAreas, grouped_areas, grouped_auc
from equipoise.ranking.metrics.regression import mae, r2, rmse
from equipoise.ranking.metrics.tasks import slice_metrics, task_metrics

if TYPE_CHECKING:
    from equipoise.ranking.metrics.gathered import (
        AUC,
        MAE,
        R2,
        RMSE,
        Calibration,
        GroupedAUC,
        LogLoss,
        NormalizedEntropy,
        TaskMetrics,
    )

__all__ = [
    "AUC",
    "MAE",
    "R2",
    "RMSE",
    "Calibration",
    "GroupedAUC",
    "GroupedAreas",
    "LogLoss",
    "NormalizedEntropy",
    "TaskMetrics",
    "auc",
    "calibration",
    "calibration_curve",
    "grouped_areas",
    "grouped_auc",
    "log_loss",
    "mae",
    "normalized_entropy",
    "r2",
    "rmse",
    "slice_metrics",
    "task_metrics",
]


def __getattr__(name: str) -> Any:
    """Import the classes when one is first used: torchmetrics takes half a second, which a training need not wait."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.gathered"), name)
