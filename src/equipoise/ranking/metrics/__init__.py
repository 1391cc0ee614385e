"""Metrics of a ranker, as pure functions and as torchmetrics classes that gather over batches and ranks.

Common to all: a label is missing where it is NaN, of a binary task also where it is −1; rows without a label or of
weight 0 do not count; everything is summed in float64, whatever the precision of the predictions; a value that is not
defined (each says when) is NaN, without a warning; a NaN among the predictions that count makes the value NaN. The
classes take torchmetrics' usual keywords.
"""

from equipoise.ranking.metrics.binary import (
    AUC,
    Calibration,
    LogLoss,
    NormalizedEntropy,
    auc,
    calibration,
    log_loss,
    normalized_entropy,
)
from equipoise.ranking.metrics.curves import calibration_curve
from equipoise.ranking.metrics.grouped import GroupedAreas, GroupedAUC, grouped_areas, grouped_auc
from equipoise.ranking.metrics.regression import MAE, R2, RMSE, mae, r2, rmse
from equipoise.ranking.metrics.tasks import TaskMetrics, slice_metrics

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
]
