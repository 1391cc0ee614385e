"""Metrics as torchmetrics classes, which gather over batches and ranks: thin ones around the pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.errors import how_to_install
from equipoise.ranking.metrics import binary, grouped, regression
from equipoise.ranking.metrics.tasks import checked_rows, values_of
from equipoise.schema import Schema

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"The classes of equipoise.ranking.metrics need torchmetrics: {how_to_install('ranking')}.", name=error.name
    ) from error

__all__ = [
    "AUC",
    "MAE",
    "R2",
    "RMSE",
    "Calibration",
    "GroupedAUC",
    "LogLoss",
    "NormalizedEntropy",
    "TaskMetrics",
]


class RowMetric(Metric):
    """A metric that needs all rows at once: keeps ``width`` columns of them in float64."""

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._width = width
        self.add_state("rows", [], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks, as ``torchmetrics.Metric.sync``."""
        # A rank that saw no row must take part in the gather all the same, with the same type and width: the
        # others would wait for it (torchmetrics 1.0) or receive float32 (later).
        self.rows = [self.all_rows()]
        super().sync(*args, **kwargs)

    def all_rows(self) -> Tensor:
        """Return the rows kept so far, float64, shape [N, width]."""
        if len(self.rows) == 0:
            return torch.empty(0, self._width, dtype=torch.float64, device=self.device)
        return dim_zero_cat(self.rows)


class _SumMetric(Metric):
    """A metric that is a function of the sums of :func:`class_sums`."""

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sums", torch.zeros(4, 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch: logits [B], labels [B], weight [B] or None (1 for every row)."""
        # Out of place, so that the sum is float64 even where the state was cast along with a model.
        self.sums = self.sums + binary.class_sums(*binary.columns_of(logits, labels, weight))


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
        return binary.log_loss_of_sums(self.sums)[0]


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
        return binary.entropy_of_sums(self.sums)[0]


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
        return binary.calibration_of_sums(self.sums)[0]


class AUC(RowMetric):
    """:func:`auc` over batches and ranks; being exact it keeps every row, 24 bytes each.

    Example:
        >>> metric = AUC()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        >>> metric.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(3, **kwargs)

    def update(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch: logits [B], labels [B], weight [B] or None (1 for every row)."""
        self.rows.append(torch.cat(binary.columns_of(logits, labels, weight), dim=1))

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return binary.area_under_curve(*self.all_rows().unbind(1))


class GroupedAUC(RowMetric):
    """:func:`grouped_auc` over batches and ranks; a group may be spread over both. Keeps every row, 32 bytes each.

    Example:
        >>> metric = GroupedAUC()
        >>> metric.update(torch.tensor([0.1, 0.9]), torch.tensor([0.0, 1.0]), torch.tensor([7, 7]))
        >>> metric.update(torch.tensor([5.0, 4.0, 3.0]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([8, 8, 8]))
        >>> metric.compute()
        tensor(0.7000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(4, **kwargs)

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch: logits [B], labels [B], groups [B], weight [B] or None (1 for every row)."""
        self.rows.append(grouped.rows_of(logits, labels, groups, weight))

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return grouped.grouped_areas(*self.all_rows().unbind(1)).mean


class _MomentMetric(Metric):
    """A metric that is a function of :func:`moments`; the state is five numbers."""

    is_differentiable = False
    full_state_update = False
    moments: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("moments", torch.zeros(5, 1, dtype=torch.float64), dist_reduce_fx=regression.merged)

    def update(self, predictions: Tensor, targets: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch: predictions [B], targets [B], weight [B] or None (1 for every row)."""
        # float64 even where the state was cast along with a model
        found = regression.moments(*regression.columns_of(predictions, targets, weight))
        self.moments = regression.merged(torch.stack([self.moments.double(), found]))


class RMSE(_MomentMetric):
    """:func:`rmse` over batches and ranks.

    Example:
        >>> metric = RMSE()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]))
        >>> metric.compute()
        tensor(3.5355, dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return regression.rmse_of_moments(self.moments)[0]


class MAE(_MomentMetric):
    """:func:`mae` over batches and ranks.

    Example:
        >>> metric = MAE()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]))
        >>> metric.compute()
        tensor(3.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return regression.mae_of_moments(self.moments)[0]


class R2(_MomentMetric):
    """:func:`r2` over batches and ranks, against the mean of all targets.

    Example:
        >>> metric = R2()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        >>> metric.update(torch.tensor([3.0]), torch.tensor([4.0]))
        >>> metric.compute()
        tensor(0.7857, dtype=torch.float64)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the value over everything seen, float64, scalar."""
        return regression.r2_of_moments(self.moments)[0]


class TaskMetrics(Metric):
    """All metrics of all tasks of a schema, from the outputs of a model, over batches and ranks.

    Keeps every row, 8 (M + 1) bytes each for M binary tasks (10 million rows of 4 tasks: 400 MB), and 8 more with
    groups. Where predictions are corrected or belong to a regression, or anything is float64, it is 8 (2M + 1).

    Args:
        natural: correct the predictions to the natural rate (:func:`equipoise.ranking.predictions.predictions`). The
            rows should then be weighted by the number of natural rows that each stands for.
        grouped: :meth:`update` gets the group of each row, and binary tasks have ``gauc``.

    Example:
        >>> from equipoise.schema import Numeric, Schema, Task
        >>> metrics = TaskMetrics(Schema([], [Numeric("age")], [Task("click"), Task("buy")]))
        >>> labels = torch.tensor([[0.0, 1.0], [1.0, float("nan")]])
        >>> metrics.update((torch.tensor([-1.0, 1.0]), torch.zeros(2)), labels)
        >>> results = metrics.compute()
        >>> results["click"]["auc"], results["buy"]["calibration"], results["buy"]["auc"]
        (1.0, 0.5, nan)
    """

    is_differentiable = False
    full_state_update = False
    predicted: list[Tensor]
    labels: list[Tensor]
    weight: list[Tensor]
    groups: list[Tensor]

    def __init__(self, schema: Schema, *, natural: bool = False, grouped: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._schema = schema if natural else replace(schema, sampled=None)
        self._grouped = grouped
        self._widths = {"predicted": len(schema.tasks), "labels": len(schema.tasks), "weight": 1, "groups": 1}
        for name in self._widths:
            self.add_state(name, [], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks, as ``torchmetrics.Metric.sync``."""
        if dist.is_available() and dist.is_initialized():
            # All ranks must send one type and width, also one that has seen no row.
            for name in self._widths:
                setattr(self, name, [torch.cat([self._no_rows(name), *self._parts(name)])])
        super().sync(*args, **kwargs)

    def _parts(self, name: str) -> list[Tensor]:
        """Return a state's rows, some at a time: at least one part, each of shape [N, the state's width]."""
        parts: list[Tensor] | Tensor = getattr(self, name)
        if isinstance(parts, Tensor):  # after a gather
            return [parts]
        return parts or [self._no_rows(name)]

    def _no_rows(self, name: str) -> Tensor:
        return torch.empty(0, self._widths[name], dtype=torch.float64, device=self.device)

    def update(
        self, outputs: Sequence[Tensor], labels: Tensor, weight: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            outputs: as for :func:`task_metrics`, as are labels and weight.
            groups: whole numbers, shape [B]; for grouped metrics and only for them.

        Raises:
            ValueError: shapes differ, a label is something else, a weight is negative or not finite, or groups are
                given or missing where they should not be.
        """
        if (groups is not None) != self._grouped:
            raise ValueError(f"Groups go with grouped=True and only with it, found grouped={self._grouped}.")
        for name, column in zip(self._widths, checked_rows(self._schema, outputs, labels, weight, groups), strict=True):
            if column is not None:
                getattr(self, name).append(column)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return the values of each task, see :func:`task_metrics`."""
        predicted, labels, weight, groups = (self._parts(name) for name in self._widths)
        grouping = groups if self._grouped else [None] * len(weight)
        return values_of(self._schema, list(zip(predicted, labels, weight, grouping, strict=True)))
