"""Metrics of a ranker: AUC, normalized entropy, log loss, calibration.

Pure functions of logits and labels, and thin torchmetrics classes around them that gather over batches and
ranks. Common to all: a label is 0, 1, or NaN or −1 where missing; rows without a label or of weight 0 do not count;
everything is summed in float64, whatever the precision of the logits; a value that is not defined (each says
when) is NaN, without a warning; a NaN among the logits that count makes the value NaN. The classes take
torchmetrics' usual keywords.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from equipoise.errors import how_to_install
from equipoise.ranking.labels import targets_and_present
from equipoise.schema import Schema

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"equipoise.ranking.metrics needs torchmetrics: {how_to_install('ranking')}.", name=error.name
    ) from error

__all__ = [
    "AUC",
    "Calibration",
    "LogLoss",
    "NormalizedEntropy",
    "TaskMetrics",
    "auc",
    "calibration",
    "log_loss",
    "normalized_entropy",
]


def log_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the weighted mean binary cross entropy Σ w ℓ / Σ w, in nats, in [0, ∞]; NaN where no row has weight.

    Args:
        logits: floating point, shape [B].
        labels: 0, 1, or NaN or −1 where missing, shape [B].
        weight: non-negative and finite, shape [B]; None: 1 for every row.

    Raises:
        ValueError: shapes differ, a label is something else, or a weight is negative or not finite.

    Example:
        >>> log_loss(torch.zeros(2), torch.tensor([0.0, 1.0]))
        tensor(0.6931, dtype=torch.float64)
    """
    return _log_loss(_sums(*_columns([logits], [labels], weight)))[0]


def normalized_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the log loss over the entropy of the base rate: 1 is predicting the base rate, lower is better.

    With p = Σ w y / Σ w, NE = log loss / −(p log p + (1 − p) log(1 − p)): He et al., "Practical Lessons from
    Predicting Clicks on Ads at Facebook", ADKDD 2014, equation 1. In [0, ∞]; NaN where the rows with weight
    do not hold both classes.

    Args and errors as for :func:`log_loss`.

    Example:
        >>> normalized_entropy(torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
        tensor(1.2326, dtype=torch.float64)
    """
    return _normalized_entropy(_sums(*_columns([logits], [labels], weight)))[0]


def calibration(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the mean prediction over the mean label: 1 is calibrated, above over-predicts; NaN without a positive.

    Args and errors as for :func:`log_loss`.

    Example:
        >>> calibration(torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
        tensor(2., dtype=torch.float64)
    """
    return _calibration(_sums(*_columns([logits], [labels], weight)))[0]


def auc(logits: Tensor, labels: Tensor, weight: Tensor | None = None, /) -> Tensor:
    """Return the exact area under the ROC curve, in [0, 1]: the chance that a positive ranks above a negative.

    A tie counts one half, and a pair of rows counts with the product of their weights, as in scikit-learn's
    ``roc_auc_score``. NaN where the rows with weight do not hold both classes. Takes O(B log B) time.

    Args and errors as for :func:`log_loss`.

    Example:
        >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        tensor(0.8750, dtype=torch.float64)
    """
    return _auc(*(column.squeeze(1) for column in _columns([logits], [labels], weight)))


class _SumMetric(Metric):
    """A metric that is a function of the sums of :func:`_sums`."""

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(4, 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch: logits [B], labels [B], weight [B] or None (1 for every row)."""
        # Out of place, so that the sum is float64 even where the state was cast along with a model.
        self.sums = self.sums + _sums(*_columns([logits], [labels], weight))


class LogLoss(_SumMetric):
    """:func:`log_loss` over batches and ranks; the state is four numbers.

    Example:
        >>> metric = LogLoss()
        >>> metric.update(torch.zeros(2), torch.tensor([0.0, 1.0]))
        >>> metric.compute()
        tensor(0.6931, dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return _log_loss(self.sums)[0]


class NormalizedEntropy(_SumMetric):
    """:func:`normalized_entropy` over batches and ranks, against the base rate of all; four numbers of state.

    Example:
        >>> metric = NormalizedEntropy()
        >>> metric.update(torch.zeros(1), torch.tensor([0.0]))
        >>> metric.update(torch.zeros(1), torch.tensor([1.0]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return _normalized_entropy(self.sums)[0]


class Calibration(_SumMetric):
    """:func:`calibration` over batches and ranks; the state is four numbers.

    Example:
        >>> metric = Calibration()
        >>> metric.update(torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, 1.0]))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return _calibration(self.sums)[0]


class _RowMetric(Metric):
    """A metric of M tasks that needs all rows at once: keeps M logits, M labels and a weight per row."""

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tasks = tasks
        self.add_state("rows", [], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks, as ``torchmetrics.Metric.sync``."""
        # A rank that saw no row must take part in the gather all the same, with the same type and width: the
        # others would wait for it (torchmetrics 1.0) or receive float32 (later).
        self.rows = [self._all_rows()]
        super().sync(*args, **kwargs)

    def _keep(self, logits: Tensor, labels: Tensor, weight: Tensor) -> None:
        self.rows.append(torch.cat((logits, labels, weight), dim=1))

    def _all_rows(self) -> Tensor:
        if len(self.rows) == 0:
            return torch.empty(0, 2 * self._tasks + 1, dtype=torch.float64, device=self.device)
        return dim_zero_cat(self.rows)

    def _kept(self) -> tuple[Tensor, Tensor, Tensor]:
        logits, labels, weight = torch.split(self._all_rows(), [self._tasks, self._tasks, 1], dim=1)
        return logits, labels, weight


class AUC(_RowMetric):
    """:func:`auc` over batches and ranks; being exact it keeps every row, 24 bytes each.

    Example:
        >>> metric = AUC()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        >>> metric.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(1, **kwargs)

    def update(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch: logits [B], labels [B], weight [B] or None (1 for every row)."""
        self._keep(*_columns([logits], [labels], weight))

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return _auc(*(column.squeeze(1) for column in self._kept()))


class TaskMetrics(_RowMetric):
    """All metrics of all tasks of a schema, over batches and ranks.

    Keeps every row, 8 * (2M + 1) bytes each for M tasks (150,000 rows of 5 tasks: 13 MB).

    Example:
        >>> from equipoise.schema import Numeric, Schema, Task
        >>> metrics = TaskMetrics(Schema([], [Numeric("age")], [Task("click"), Task("buy")]))
        >>> labels = torch.tensor([[0.0, 1.0], [1.0, float("nan")]])
        >>> metrics.update((torch.tensor([-1.0, 1.0]), torch.zeros(2)), labels)
        >>> results = metrics.compute()
        >>> results["click"]["auc"], results["buy"]["calibration"], results["buy"]["auc"]
        (1.0, 0.5, nan)
    """

    def __init__(self, schema: Schema, **kwargs: Any) -> None:
        super().__init__(len(schema.tasks), **kwargs)
        self._names = schema.task_names

    def update(self, logits: Sequence[Tensor], labels: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: one tensor of shape [B] per task, in the schema's order.
            labels: 0, 1, or NaN or −1 where missing, shape [B, number of tasks].
            weight: non-negative and finite, shape [B], the same for all tasks; None: 1 for every row.

        Raises:
            ValueError: shapes differ, a label is something else, or a weight is negative or not finite.
        """
        if len(logits) != self._tasks or labels.ndim != 2 or labels.shape[1] != self._tasks:
            raise ValueError(
                f"Expected {self._tasks} logit tensors and labels of shape [B, {self._tasks}], for the tasks "
                f"{', '.join(self._names)}; found {len(logits)} and {list(labels.shape)}."
            )
        self._keep(*_columns(logits, labels.unbind(1), weight))

    def compute(self) -> dict[str, dict[str, float]]:
        """Return, per task, ``auc``, ``ne`` (normalized entropy), ``log_loss`` and ``calibration``."""
        logits, labels, weight = self._kept()
        sums = _sums(logits, labels, weight)
        values = {
            "auc": [
                _auc(*task, weight.squeeze(1)).item() for task in zip(logits.unbind(1), labels.unbind(1), strict=True)
            ],
            "ne": _normalized_entropy(sums).tolist(),
            "log_loss": _log_loss(sums).tolist(),
            "calibration": _calibration(sums).tolist(),
        }
        return {name: {key: value[task] for key, value in values.items()} for task, name in enumerate(self._names)}


def _columns(
    logits: Sequence[Tensor], labels: Sequence[Tensor], weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check logits [B] and labels [B] of M tasks and the weight [B]; return float64 [B, M], [B, M] and [B, 1]."""
    if weight is None:
        weight = torch.ones_like(labels[0], dtype=torch.float64)
    shapes = {tuple(tensor.shape) for tensor in (*logits, *labels, weight)}
    if len(shapes) > 1 or logits[0].ndim != 1:
        found = ", ".join(
            f"{name} {[list(tensor.shape) for tensor in tensors]}"
            for name, tensors in (("logits", logits), ("labels", labels), ("weight", [weight]))
        )
        raise ValueError(f"Logits, labels and weight must have one shape [B], found {found}.")
    scores = torch.stack([column.detach().double() for column in logits], dim=1)
    stated = torch.stack([column.double() for column in labels], dim=1)
    targets, present = targets_and_present(stated)
    truth = targets.where(present, torch.nan)
    weight = weight.double().unsqueeze(1)
    wrong_labels = targets.isnan()
    wrong_weights = ~(weight.isfinite() & (weight >= 0))
    if bool(wrong_labels.any() | wrong_weights.any()):  # one host sync for both
        if wrong_labels.any():
            raise ValueError(
                f"Labels must be 0, 1, or NaN or −1 where missing, found {stated[wrong_labels][0].item()}."
            )
        raise ValueError(f"Weights must be finite and not negative, found {weight[wrong_weights][0].item()}.")
    return scores, truth, weight


def _sums(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Sum w y, w (1 − y), w ℓ and w p over the rows, for each task; shape [4, M].

    The two classes are summed apart because "one class only" is then an exact zero.
    """
    counts = ~labels.isnan() & (weight > 0)
    weight = weight.where(counts, 0.0)
    logits = logits.where(counts, 0.0)
    positive = labels.where(counts, 0.0)
    # −log p for a positive, −log(1 − p) for a negative; the usual formula makes ∞ − ∞ of an infinite logit.
    loss = -functional.logsigmoid((2 * positive - 1) * logits)
    terms = (weight * positive, weight * (1 - positive), weight * loss, weight * logits.sigmoid())
    return torch.stack([term.sum(0) for term in terms])


def _log_loss(sums: Tensor) -> Tensor:
    positives, negatives, loss, _ = sums.unbind(0)
    return loss / (positives + negatives)


def _normalized_entropy(sums: Tensor) -> Tensor:
    positives, negatives, loss, _ = sums.unbind(0)
    total = positives + negatives
    # Σ w times the entropy of the base rate; zero, or 0/0, where a class is missing.
    entropy = -(torch.xlogy(positives, positives / total) + torch.xlogy(negatives, negatives / total))
    return torch.where((positives > 0) & (negatives > 0), loss / entropy, torch.nan)


def _calibration(sums: Tensor) -> Tensor:
    positives, _, _, predicted = sums.unbind(0)
    return torch.where(positives > 0, predicted / positives, torch.nan)


def _auc(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Return the area, a scalar, from three columns of shape [B]."""
    counts = ~labels.isnan() & (weight > 0)
    scores, order = logits[counts].sort()
    truth, weight = labels[counts][order], weight[counts][order]
    # Positives and negatives up to each distinct score, so that tied rows are one step of the curve.
    last = torch.ones_like(scores, dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    zero = scores.new_zeros(1)
    positives = torch.cat((zero, (weight * truth).cumsum(0)[last]))
    negatives = torch.cat((zero, (weight * (1 - truth)).cumsum(0)[last]))
    # Without a row of either class this is 0/0. Rounding may pass 1 by a little.
    area = (torch.trapezoid(negatives, positives) / (positives[-1] * negatives[-1])).clamp(0, 1)
    return area.masked_fill(scores.isnan().any(), torch.nan)
