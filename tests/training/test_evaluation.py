"""The record of a run: metrics of every kind of task, at both rates, by group and slice, and calibration curves."""

import math
from dataclasses import replace

import pytest
import torch

from equipoise.data import Dataset, Split
from equipoise.ranking.metrics import auc, calibration, grouped_auc, log_loss, rmse
from equipoise.schema import Categorical, Numeric, Sampled, Schema, Task
from equipoise.training import METHODS, Run, train
from equipoise.training.evaluation import measure

SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 1e-2, "evaluations": 2}
RATE = 0.2


def _split(rows: int, seed: int) -> Split:
    """Sampled rows: click with what it leads to, and a number of three times the scale."""
    generator = torch.Generator().manual_seed(seed)
    categorical = torch.randint(0, 30, (rows, 1), generator=generator, dtype=torch.int32)
    numeric = torch.randn(rows, 2, generator=generator)
    click = torch.bernoulli((2 * numeric[:, 0]).sigmoid(), generator=generator)
    like = torch.bernoulli((numeric[:, 1] - 1).sigmoid(), generator=generator).masked_fill(click == 0, torch.nan)
    spend = 10 + 3 * numeric[:, 1] + torch.randn(rows, generator=generator)
    labels = torch.stack([click, like, spend.masked_fill(click == 0, torch.nan)], dim=1)
    weight = torch.where(click == 1, 1.0, 1 / RATE)
    keys = {"user": torch.randint(0, 60, (rows,), generator=generator), "day": torch.arange(rows) % 3}
    return Split(categorical, numeric, labels, weight, torch.rand(rows, generator=generator) + 0.5, keys)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    schema = Schema(
        [Categorical("item", 30)],
        [Numeric("price"), Numeric("age")],
        [
            Task("click"), Task("like", after="click"),
            Task("spend", kind="regression", mean=10.0, scale=3.0, after="click"),
        ],
        sampled=Sampled("click", RATE),
    )  # fmt: skip
    return Dataset(
        "made", schema, _split(900, 0), _split(300, 1), _split(500, 2),
        group="user", slices=("day", "item"), values={"day": ["Monday", "Tuesday", "Wednesday"]},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(dataset: Dataset) -> Run:
    return train(dataset, METHODS["equal"], **SETTINGS)


def test_a_task_has_the_metrics_of_its_kind(run: Run) -> None:
    binary, number = {"auc", "ne", "log_loss", "calibration", "gauc"}, {"rmse", "mae", "r2", "ne"}
    for found in (run.test, run.test_natural, run.validation):
        assert {task: set(values) for task, values in found.items()} == {
            "click": binary, "like": binary, "spend": number,
        }  # fmt: skip
    assert set(run.curve[0]["validation"]["like"]) == {"auc", "gauc", "ne"}
    assert set(run.curve[0]["validation"]["spend"]) == {"rmse", "ne"}
    assert run.test["spend"]["r2"] > 0.5
    assert run.test["spend"]["ne"] == pytest.approx(1 - run.test["spend"]["r2"])


def test_importance_weighs_metrics_and_the_natural_rate_corrects_predictions(dataset: Dataset) -> None:
    test, schema = dataset.test, dataset.schema
    assert test.importance is not None
    outputs = list(torch.randn(500, 3, generator=torch.Generator().manual_seed(3)).unbind(1))
    click, labels = outputs[0].double(), test.labels[:, 0]
    sampled = measure(schema, test, outputs, group="user")
    assert sampled["click"]["auc"] == pytest.approx(auc(click, labels, test.importance).item())
    expected = grouped_auc(click, labels, test.keys["user"], test.importance)
    assert sampled["click"]["gauc"] == pytest.approx(expected.item())
    unit = 10.0 + 3.0 * outputs[2].double()
    assert sampled["spend"]["rmse"] == pytest.approx(rmse(unit, test.labels[:, 2], test.importance).item())
    natural = measure(schema, test, outputs, natural=True)
    weight = test.weight * test.importance
    corrected = click + torch.tensor(RATE).log()
    assert natural["click"]["log_loss"] == pytest.approx(log_loss(corrected, labels, weight).item(), rel=1e-6)
    assert natural["click"]["calibration"] == pytest.approx(calibration(corrected, labels, weight).item(), rel=1e-6)


def test_a_trained_model_is_calibrated_at_both_rates(run: Run) -> None:
    assert run.test["click"]["calibration"] == pytest.approx(1, abs=0.15)
    assert run.test_natural["click"]["calibration"] == pytest.approx(1, abs=0.15)


def test_slices_are_those_of_keys_and_features_by_name(run: Run, dataset: Dataset) -> None:
    assert [part["value"] for part in run.slices["day"]] == ["Monday", "Tuesday", "Wednesday"]
    items = run.slices["item"]
    assert [part["values"] for part in items] == [1] * 20 + [10]
    for parts in run.slices.values():
        assert sum(part["rows"] for part in parts) == 500
        assert sum(part["tasks"]["click"]["positives"] for part in parts) == dataset.test.labels[:, 0].sum()
    codes = dataset.test.categorical[:, 0]
    assert items[0]["rows"] == (codes == int(items[0]["value"])).sum()


def test_groups_of_users_sum_to_the_metrics_of_the_whole_split(run: Run, dataset: Dataset) -> None:
    assert run.random_groups.keys() == {task.name for task in dataset.schema.tasks if task.binary}
    for task, sums in run.random_groups.items():
        loss, weight, positives = (math.fsum(sums[name]) for name in ("loss", "weight", "positives"))
        rate = positives / weight
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        assert loss / weight == pytest.approx(run.test[task]["log_loss"], rel=1e-5)
        assert loss / weight / entropy == pytest.approx(run.test[task]["ne"], rel=1e-5)
        assert len(sums["loss"]) == 32
        assert len(set(sums["weight"])) > 5


def test_calibration_curves_hold_every_labelled_row_at_both_rates(run: Run, dataset: Dataset) -> None:
    for curves in (run.calibration, run.calibration_natural):
        for at, task in enumerate(dataset.schema.task_names):
            assert sum(part["rows"] for part in curves[task]) == dataset.test.labels[:, at].isfinite().sum()
    sampled, natural = run.calibration["click"], run.calibration_natural["click"]
    assert natural[-1]["prediction"] < sampled[-1]["prediction"]
    assert 3 < run.calibration["spend"][0]["prediction"] < run.calibration["spend"][-1]["prediction"] < 17


def test_the_record_is_small_and_reads_back_the_same(run: Run) -> None:
    line = run.to_json()
    assert Run.from_json(line).to_json() == line
    assert len(line) < 60_000


def test_a_record_from_before_slices_and_curves_is_read(run: Run) -> None:
    old = replace(run, slices={}, calibration={}, calibration_natural={}).to_json()
    for name in ("slices", "calibration", "calibration_natural"):
        old = old.replace(f'"{name}": {{}}, ', "")
    assert '"slices"' not in old
    assert Run.from_json(old).slices == {}


def test_without_weights_groups_and_slices_nothing_of_them_is_recorded(dataset: Dataset) -> None:
    plain = replace(dataset, group="", slices=(), test=replace(dataset.test, weight=torch.ones(500)))
    run = train(plain, METHODS["equal"], **SETTINGS | {"epochs": 1})
    assert run.test_natural == run.calibration_natural == run.slices == {}
    assert "gauc" not in run.test["click"]
