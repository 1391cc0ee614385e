"""Early stopping: the best evaluation is found, its weights measured and given, and the training ends in time."""

import math

import pytest
import torch
from torch import Tensor, nn

from equipoise.data import Dataset
from equipoise.schema import Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import SettingError, train
from equipoise.training import record as record_module
from equipoise.training.early_stopping import EarlyStopping
from equipoise.training.learner import Learner

SETTINGS = {"epochs": 10, "batch_size": 64, "lr": 0.05, "schedule": "constant", "evaluations": 20}
STEPS = 100
SCHEMA = Schema([], [Numeric("age")], [Task("click"), Task("buy"), Task("seconds", kind="regression")])


def mean_of_curve(point: dict, metric: str) -> float:
    return sum(found[metric] for found in point["validation"].values()) / len(point["validation"])


def weights_seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[dict[str, Tensor]]]:
    """Return the weights at every evaluation of the trainings after this, by step."""
    seen: dict[int, list[dict[str, Tensor]]] = {}
    note = record_module.TrainingRecord.note_evaluation

    def spy(record: record_module.TrainingRecord, metrics: dict, learner: Learner) -> None:
        seen[record.steps] = learner.weights()
        note(record, metrics, learner)

    monkeypatch.setattr(record_module.TrainingRecord, "note_evaluation", spy)
    return seen


@pytest.mark.parametrize("name", ["equal", "single-task", "multibalance", "pub"])
@pytest.mark.parametrize("metric", ["ne", "like:auc"])
def test_a_training_ends_after_its_best_point_and_gives_the_weights_of_that_point(
    tiny: Dataset, name: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So high a rate overfits 700 rows soon."""
    models: list[nn.Module] = []
    seen = weights_seen(monkeypatch)
    run = train(tiny, name, **SETTINGS, stop_on=metric, patience=2, on_trained=models.append)
    values = {
        point["step"]: -point["validation"]["like"]["auc"] if metric == "like:auc" else mean_of_curve(point, "ne")
        for point in run.curve
    }
    best = min(values, key=lambda step: values[step])  # the first of equal ones
    steps = list(values)
    assert run.best_step == best
    assert steps.index(best) == len(steps) - 3  # two more, which were no better
    assert run.steps == steps[-1] < STEPS
    state = models[0].state_dict()
    for place, weights in enumerate(seen[best]):
        for key, value in weights.items():
            assert torch.equal(state[f"models.{place}.{key}"], value)
    assert run.validation["like"]["ne"] == pytest.approx(
        next(point for point in run.curve if point["step"] == best)["validation"]["like"]["ne"], rel=1e-9
    )  # the 300 validation rows are all of the learning curve


def test_with_enough_patience_the_whole_training_is_made_and_the_best_point_kept(tiny: Dataset) -> None:
    plain = train(tiny, "equal", **SETTINGS)
    run = train(tiny, "equal", **SETTINGS, stop_on="ne", patience=100)
    assert run.steps == plain.steps == STEPS
    assert plain.best_step == 0 < run.best_step < STEPS
    assert run.mean_validation_ne < plain.mean_validation_ne
    assert [point["train_loss"] for point in run.curve] == [point["train_loss"] for point in plain.curve]


def test_averaged_weights_are_what_is_compared_and_kept(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = weights_seen(monkeypatch)
    models: list[nn.Module] = []
    run = train(tiny, "equal", **SETTINGS, stop_on="ne", ema=0.9, on_trained=models.append)
    state = models[0].state_dict()
    assert all(torch.equal(state[f"models.0.{key}"], value) for key, value in seen[run.best_step][0].items())
    assert run.mean_validation_ne == pytest.approx(
        mean_of_curve(next(point for point in run.curve if point["step"] == run.best_step), "ne"), rel=1e-9
    )


def test_resuming_a_training_that_has_ended_early_gives_its_result_without_a_step(tiny: Dataset, tmp_path) -> None:
    settings = SETTINGS | {"stop_on": "ne", "patience": 2, "checkpoint": tmp_path / "checkpoint"}
    finished = train(tiny, "equal", **settings)
    steps: list[int] = []
    again = train(tiny, "equal", **settings, resume=True, on_step=lambda done, _: steps.append(done))
    assert steps == []
    assert again == finished


def test_higher_is_better_for_areas_and_r2_and_lower_for_errors() -> None:
    for metric, values, best in (("auc", [0.5, 0.7, 0.6], 2), ("rmse", [3.0, 2.0, 2.5], 2), ("r2", [0.1, 0.3, 0.2], 2)):
        stopping = EarlyStopping.of(TrainingSettings.of(stop_on=metric), SCHEMA)
        for step, value in enumerate(values, start=1):
            stopping.is_better(step, {task: {metric: value} for task in stopping.tasks})
        assert (stopping.best_step, stopping.since) == (best, 1)


def test_the_mean_is_over_the_tasks_that_have_the_metric_where_it_is_defined() -> None:
    stopping = EarlyStopping.of(TrainingSettings.of(stop_on="auc"), SCHEMA)
    stopping.is_better(1, {"click": {"auc": 0.5}, "buy": {"auc": math.nan}, "seconds": {"rmse": 1.0}})
    assert stopping.best == 0.5
    with pytest.raises(SettingError, match=r"auc of click, buy is not defined on the validation rows.*evaluation_rows"):
        stopping.is_better(2, {"click": {"auc": math.nan}, "buy": {"auc": math.nan}})


@pytest.mark.parametrize(
    ("stop_on", "message"),
    [
        ("accuracy", r"expected a metric \(ne, auc, gauc, log_loss, rmse, mae, r2\) .*; found 'accuracy'"),
        ("share:auc", "a task out of click, buy, seconds; found 'share:auc'"),
        ("seconds:auc", "seconds does not have the metric auc, which is one of binary tasks"),
        ("gauc", "gauc needs a data set that names its group"),
    ],
)
def test_a_metric_that_cannot_be_followed_is_refused_before_the_training(stop_on: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        EarlyStopping.of(TrainingSettings.of(stop_on=stop_on), SCHEMA)


def test_a_metric_of_regressions_needs_one(tiny: Dataset) -> None:
    with pytest.raises(SettingError, match="no task has the metric rmse, which is one of regressions"):
        train(tiny, "equal", **SETTINGS, stop_on="rmse")
