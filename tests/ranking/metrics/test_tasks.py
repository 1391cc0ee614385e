"""All metrics of a schema: each task's own, at both rates, by group, by slice, in pieces and over two processes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import spawn

from equipoise.ranking.metrics import (
    AUC,
    MAE,
    R2,
    RMSE,
    Calibration,
    GroupedAUC,
    LogLoss,
    NormalizedEntropy,
    TaskMetrics,
    auc,
    calibration,
    grouped_auc,
    log_loss,
    mae,
    normalized_entropy,
    r2,
    rmse,
    slice_metrics,
    task_metrics,
)
from equipoise.ranking.predictions import predictions, scores
from equipoise.schema import Numeric, Sampled, Schema, Task
from tests.gloo_end import end_rank

NAN = float("nan")
SPEND = Task("spend", kind="regression", mean=3.0, scale=2.0, after="click")
WATCH = Task("watch", kind="regression", loss="log", mean=1.0, scale=0.5)
SCHEMA = Schema([], [Numeric("age")], [Task("click"), SPEND, Task("buy", positive_weight=5.0), WATCH, Task("never")])
BINARY = {"auc": auc, "ne": normalized_entropy, "log_loss": log_loss, "calibration": calibration}
NUMBERS = {"rmse": rmse, "mae": mae, "r2": r2}

Rows = tuple[list[Tensor], Tensor, Tensor, Tensor]


def rows_of(size: int) -> Rows:
    """Outputs, labels, weight and groups; some labels are missing, and never has no positive."""
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(size, 5, generator=generator)
    labels = (torch.rand(size, 5, generator=generator) < outputs.sigmoid()).float()
    numbers = torch.randn(size, 2, generator=generator)
    labels[:, 1] = 3.0 + 2.0 * outputs[:, 1] + numbers[:, 0]
    labels[:, 3] = (1.0 + 0.5 * outputs[:, 3] + 0.2 * numbers[:, 1]).expm1()
    labels[torch.rand(size, 5, generator=generator) < 0.2] = NAN
    labels[:, 4] = 0.0
    groups = torch.randint(0, 12, (size,), generator=generator)
    return list(outputs.unbind(1)), labels, torch.rand(size, generator=generator) * 3, groups


def expected_tasks(
    schema: Schema, outputs: list[Tensor], labels: Tensor, weight: Tensor | None, groups: Tensor | None = None
) -> dict[str, dict[str, float]]:
    found = {}
    for task, score, column in zip(
        schema.tasks, scores([each.double() for each in outputs], schema), labels.double().unbind(1), strict=True
    ):
        functions = BINARY if task.binary else NUMBERS
        values = {name: function(score, column, weight).item() for name, function in functions.items()}
        if not task.binary and task.loss == "log":
            values["ne"] = 1 - r2(score.log1p(), column.log1p(), weight).item()
        elif not task.binary:
            values["ne"] = 1 - values["r2"]
        elif groups is not None:
            values["gauc"] = grouped_auc(score, column, groups, weight).item()
        found[task.name] = values
    return found


def assert_same_tasks(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    assert list(found) == list(expected)
    for task, values in expected.items():
        assert found[task] == pytest.approx(values, rel=1e-9, nan_ok=True)
        assert all(type(value) is float for value in found[task].values())


def test_the_metrics_of_a_task_are_those_of_its_kind() -> None:
    outputs, labels, weight, _ = rows_of(300)
    metrics = TaskMetrics(SCHEMA)
    for start in range(0, 300, 128):
        part = slice(start, start + 128)
        metrics.update([output[part] for output in outputs], labels[part], weight[part])
    assert_same_tasks(metrics.compute(), expected_tasks(SCHEMA, outputs, labels, weight))
    assert math.isnan(metrics.compute()["never"]["auc"])
    unweighted = TaskMetrics(SCHEMA)
    unweighted.update(outputs, labels)
    assert_same_tasks(unweighted.compute(), expected_tasks(SCHEMA, outputs, labels, None))


def test_binary_tasks_have_a_grouped_auc_where_groups_are_given() -> None:
    outputs, labels, weight, groups = rows_of(300)
    metrics = TaskMetrics(SCHEMA, grouped=True)
    for part in (slice(0, 200), slice(200, 300)):
        metrics.update([output[part] for output in outputs], labels[part], weight[part], groups[part])
    assert_same_tasks(metrics.compute(), expected_tasks(SCHEMA, outputs, labels, weight, groups))
    for wrong in (TaskMetrics(SCHEMA), metrics):
        with pytest.raises(ValueError, match=r"Groups go with grouped=True and only with it"):
            wrong.update(outputs, labels, weight, groups if wrong is not metrics else None)


def test_a_regressions_target_of_minus_one_is_a_number_and_a_binary_one_is_missing() -> None:
    schema = replace(SCHEMA, tasks=SCHEMA.tasks[:2])
    metrics = TaskMetrics(schema)
    metrics.update([torch.zeros(3), torch.zeros(3)], torch.tensor([[1.0, -1.0], [-1.0, 3.0], [0.0, NAN]]))
    found = metrics.compute()
    assert found["spend"]["mae"] == 2.0  # 3 predicted for −1 and 3
    assert found["click"]["calibration"] == 1.0


def test_at_the_natural_rate_predictions_are_corrected_and_as_sampled_they_are_not() -> None:
    schema = Schema([], [Numeric("age")], [Task("click"), Task("buy", after="click")], Sampled("click", rate=0.1))
    generator = torch.Generator().manual_seed(1)
    outputs = list(torch.randn(4000, 2, generator=generator).double().unbind(1))
    click = (torch.rand(4000, generator=generator) < outputs[0].sigmoid()).float()
    labels = torch.stack([click, torch.where(click == 1, 0.0, NAN)], dim=1)
    weight = torch.where(click == 1, 1.0, 10.0)
    natural = TaskMetrics(schema, natural=True)
    natural.update(outputs, labels, weight)
    found = natural.compute()["click"]
    assert found["calibration"] == pytest.approx(1, abs=0.05)
    corrected = predictions(outputs, schema)[0].logit()
    assert found["ne"] == pytest.approx(normalized_entropy(corrected, click, weight).item(), rel=1e-9)
    as_sampled = TaskMetrics(schema)
    as_sampled.update(outputs, labels)
    assert as_sampled.compute()["click"]["ne"] == pytest.approx(normalized_entropy(outputs[0], click).item(), rel=1e-9)


def test_a_slice_has_the_metrics_of_its_rows_and_the_rarest_values_share_one() -> None:
    outputs, labels, weight, _ = rows_of(400)
    codes = torch.cat([torch.full((count,), code) for code, count in {7: 150, 0: 120, 3: 60, 9: 40, 1: 30}.items()])
    found = slice_metrics(SCHEMA, outputs, labels, codes, weight, names=["zero", "one", "two", "three"], most=3)
    assert [(part["value"], part["values"], part["rows"]) for part in found] == [
        ("7", 1, 150), ("zero", 1, 120), ("three", 1, 60), ("", 2, 70),
    ]  # fmt: skip
    for part, chosen in zip(found, ([7], [0], [3], [9, 1]), strict=True):
        rows = torch.isin(codes, torch.tensor(chosen))
        expected = expected_tasks(SCHEMA, [output[rows] for output in outputs], labels[rows], weight[rows])
        for at, task in enumerate(SCHEMA.tasks):
            counts = {"rows": int(labels[rows, at].isfinite().sum())}
            if task.binary:
                counts["positives"] = int((labels[rows, at] == 1).sum())
            assert part["tasks"][task.name] == pytest.approx(counts | expected[task.name], rel=1e-9, nan_ok=True)


def test_one_value_more_than_the_most_is_a_slice_and_not_a_rest() -> None:
    outputs, labels, _, _ = rows_of(10)
    codes = torch.arange(10) % 3
    assert [part["value"] for part in slice_metrics(SCHEMA, outputs, labels, codes, most=2)] == ["0", "1", "2"]
    assert [part["values"] for part in slice_metrics(SCHEMA, outputs, labels, codes, most=1)] == [1, 2]


def test_slices_are_measured_as_sampled() -> None:
    outputs, labels, _, _ = rows_of(50)
    sampled = replace(SCHEMA, sampled=Sampled("click", 0.1))
    codes = torch.zeros(50, dtype=torch.int64)
    assert repr(slice_metrics(sampled, outputs, labels, codes)) == repr(slice_metrics(SCHEMA, outputs, labels, codes))


def test_another_number_of_tasks_is_refused() -> None:
    metrics = TaskMetrics(SCHEMA)
    with pytest.raises(ValueError, match=r"Expected 5 output tensors .* click, spend, buy, .*; found 2 and \[4, 5\]"):
        metrics.update((torch.zeros(4), torch.zeros(4)), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"found 5 and \[4, 2\]"):
        metrics.update((torch.zeros(4),) * 5, torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"one shape \[B\]"):
        metrics.update((torch.zeros(5),) * 5, torch.zeros(4, 5))


SINGLES = dict.fromkeys((AUC, Calibration, LogLoss, NormalizedEntropy), 0) | dict.fromkeys((MAE, R2, RMSE), 1)


def on_rank(rank: int, folder: str) -> None:
    """Rank 0 sees rows 0–99, rank 1 rows 100–139 in two batches; in a second round rank 1 sees nothing."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outputs, labels, weight, groups = rows_of(140)
    parts = [slice(0, 100)] if rank == 0 else [slice(100, 130), slice(130, 140)]
    metrics, singles, grouped = TaskMetrics(SCHEMA, grouped=True), {kind: kind() for kind in SINGLES}, GroupedAUC()
    results = []
    for batches in (parts, parts if rank == 0 else []):
        for part in batches:
            metrics.update([output[part] for output in outputs], labels[part], weight[part], groups[part])
            for kind, single in singles.items():
                single.update(outputs[SINGLES[kind]][part], labels[part, SINGLES[kind]], weight[part])
            grouped.update(outputs[0][part], labels[part, 0], groups[part], weight[part])
        values = [single.compute().item() for single in (*singles.values(), grouped)]
        results.append([metrics.compute(), values])
        # What a rank holds itself must be its own again after the sync.
        assert sum(len(part) for part in metrics.predicted) == sum(len(weight[part]) for part in batches)
        for each in (metrics, grouped, *singles.values()):
            each.reset()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    end_rank()


def test_two_ranks_with_unequal_rows_or_none_agree_with_one_process(tmp_path: Path) -> None:
    spawn(on_rank, args=(str(tmp_path),), nprocs=2)
    outputs, labels, weight, groups = rows_of(140)
    functions = [calibration, log_loss, normalized_entropy, mae, r2, rmse]
    for rank in (0, 1):
        results = json.loads(Path(tmp_path, f"rank{rank}.json").read_text(encoding="utf-8"))
        for (tasks, singles), rows in zip(results, (140, 100), strict=True):
            some = [output[:rows] for output in outputs]
            assert_same_tasks(tasks, expected_tasks(SCHEMA, some, labels[:rows], weight[:rows], groups[:rows]))
            expected = [
                function(some[place], labels[:rows, place], weight[:rows]).item()
                for function, place in zip((auc, *functions), SINGLES.values(), strict=True)
            ]
            expected.append(grouped_auc(some[0], labels[:rows, 0], groups[:rows], weight[:rows]).item())
            assert singles == pytest.approx(expected, rel=1e-12)


def test_rows_take_8_bytes_per_task_and_8_more_where_float32_is_exact() -> None:
    schema = Schema([], [Numeric("x")], [Task("click"), Task("buy")])
    outputs, labels = [torch.zeros(10), torch.ones(10)], torch.zeros(10, 2, dtype=torch.int64)
    metrics = TaskMetrics(schema)
    metrics.update(outputs, labels)
    assert sum(part.nbytes for name in ("predicted", "labels", "weight") for part in getattr(metrics, name)) == 240


def test_predictions_that_float32_would_tie_stay_apart() -> None:
    schema = Schema([], [Numeric("x")], [Task("click")])
    outputs = torch.tensor([1.0 + 1e-12, 1.0], dtype=torch.float64)
    for order, expected in ((outputs, 1.0), (outputs.flip(0), 0.0)):
        metrics = TaskMetrics(schema)
        metrics.update([torch.tensor([1.0])], torch.tensor([[0.0]]), torch.zeros(1))  # one batch in float32 before
        metrics.update([order], torch.tensor([[1.0], [0.0]]))
        assert metrics.compute()["click"]["auc"] == expected
    sampled = replace(schema, sampled=Sampled("click", 0.1))
    corrected = TaskMetrics(sampled, natural=True)
    corrected.update([torch.zeros(3)], torch.zeros(3, 1))
    assert corrected.predicted[0].dtype == torch.float64


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_no_rows_have_no_metrics() -> None:
    assert all(math.isnan(value) for value in TaskMetrics(SCHEMA, grouped=True).compute()["click"].values())


def test_all_rows_at_once_are_checked_and_measured_as_batches_are() -> None:
    outputs, labels, weight, groups = rows_of(300)
    metrics = TaskMetrics(SCHEMA, grouped=True)
    metrics.update(outputs, labels, weight, groups)
    assert repr(task_metrics(SCHEMA, outputs, labels, weight, groups)) == repr(metrics.compute())
    assert math.isnan(task_metrics(SCHEMA, [output[:0] for output in outputs], labels[:0])["click"]["auc"])


@pytest.mark.parametrize("short", ["outputs", "labels", "weight", "groups"])
def test_columns_that_differ_behind_the_first_part_are_refused(short: str) -> None:
    rows = (1 << 18) + 10
    columns = {"outputs": torch.zeros(rows), "labels": torch.zeros(rows, 1), "weight": torch.ones(rows),
               "groups": torch.zeros(rows, dtype=torch.int64)}  # fmt: skip
    columns[short] = columns[short][:-5]
    schema = Schema([], [Numeric("x")], [Task("click")])
    with pytest.raises(ValueError, match=r"shape"):
        task_metrics(schema, [columns["outputs"]], columns["labels"], columns["weight"], columns["groups"])


def test_more_rows_than_one_part_are_measured_together() -> None:
    rows = (1 << 18) + 1000
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, generator=generator)
    labels = (torch.rand(rows, generator=generator) < 0.1).float()
    found = task_metrics(Schema([], [Numeric("x")], [Task("click")]), [logits], labels.unsqueeze(1))["click"]
    assert found["auc"] == auc(logits, labels).item()
    assert found["ne"] == pytest.approx(normalized_entropy(logits, labels).item(), rel=1e-12)
