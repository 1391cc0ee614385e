"""Predictions at the natural rate and in the target's unit, against exact enumeration of small joint distributions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from equipoise.ranking.predictions import biased_tasks, predictions, scores
from equipoise.schema import Numeric, Sampled, Schema, Task

RATE = 0.03
ROWS = 200
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])

World = list[tuple[Mapping[str, bool], Tensor]]
"""Combinations of labels, and the natural probability of each for every row's features, shape [ROWS]."""


def schema_of(*tasks: Task, sampled: str = "purchase", rate: float = RATE) -> Schema:
    return Schema([], [Numeric("age")], tasks, sampled=Sampled(sampled, rate))


def world_of(schema: Schema, seed: int = 0) -> World:
    """Draw a natural distribution of the binary labels that keeps to their nesting."""
    tasks = [task for task in schema.tasks if task.binary]
    possible = [
        labels
        for values in itertools.product((False, True), repeat=len(tasks))
        if all(
            labels[task.after] or not labels[task.name]
            for labels in [dict(zip((task.name for task in tasks), values, strict=True))]
            for task in tasks
            if task.after
        )
        for labels in [dict(zip((task.name for task in tasks), values, strict=True))]
    ]
    drawn = torch.randn(ROWS, len(possible), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return list(zip(possible, (2.0 * drawn).softmax(1).unbind(1), strict=True))


def sampled_world(world: World, schema: Schema) -> World:
    """Return the distribution of the rows that negative sampling keeps."""
    assert schema.sampled is not None
    task, rate = schema.sampled.task, schema.sampled.rate
    kept = [(labels, chance * (1.0 if labels[task] else rate)) for labels, chance in world]
    total = torch.stack([chance for _, chance in kept]).sum(0)
    return [(labels, chance / total) for labels, chance in kept]


def probability(world: World, task: Task) -> Tensor:
    """Return the chance of a positive: of all rows, or of those whose parent is positive."""
    conditional = task.after if task.over == "parent" else ""
    whole = sum((chance for labels, chance in world if not conditional or labels[conditional]), torch.zeros(ROWS))
    positive = sum((chance for labels, chance in world if labels[task.name]), torch.zeros(ROWS))
    return positive / whole


def logits_of(world: World, schema: Schema, dtype: torch.dtype) -> list[Tensor]:
    """Return what a perfect model gives: the logit among these rows, moved by the weight of positives."""
    return [
        (probability(world, task).logit() + torch.tensor(task.positive_weight, dtype=torch.float64).log()).to(dtype)
        for task in schema.tasks
    ]


FUNNELS = {
    "one task": schema_of(Task("purchase")),
    "a weight of positives": schema_of(Task("purchase", positive_weight=7.0)),
    "nested over all rows": schema_of(Task("purchase"), Task("coupon", after="purchase", over="all")),
    "nested over parent rows": schema_of(Task("purchase"), Task("coupon", after="purchase")),
    "an ancestor": schema_of(Task("click"), Task("purchase", after="click", over="all")),
    "an ancestor of a conditional": schema_of(Task("click"), Task("purchase", after="click")),
    "a chain over all rows": schema_of(
        Task("visit"),
        Task("click", after="visit", over="all"),
        Task("purchase", after="click", over="all"),
        Task("several", after="purchase", over="all"),
        Task("coupon", after="several", over="all"),
    ),
    "a chain over parent rows": schema_of(
        Task("visit"),
        Task("click", after="visit"),
        Task("purchase", after="click"),
        Task("several", after="purchase"),
        Task("coupon", after="several"),
    ),
    "a mixed chain": schema_of(
        Task("coupon", after="several", positive_weight=0.5),
        Task("several", after="purchase", over="all", positive_weight=3.0),
        Task("purchase", after="click", positive_weight=2.0),
        Task("click", after="visit", over="all"),
        Task("visit"),
    ),
}


@dtypes
@pytest.mark.parametrize("schema", FUNNELS.values(), ids=FUNNELS)
def test_the_probabilities_are_those_of_the_natural_distribution(schema: Schema, dtype: torch.dtype) -> None:
    world = world_of(schema)
    found = predictions(logits_of(sampled_world(world, schema), schema, dtype), schema)
    assert biased_tasks(schema) == ()
    for task, prediction in zip(schema.tasks, found, strict=True):
        assert prediction.dtype == dtype
        tolerance = 1e-12 if dtype == torch.float64 else 3e-5
        torch.testing.assert_close(prediction.double(), probability(world, task), rtol=tolerance, atol=0.0)


def test_without_sampling_a_probability_is_the_sigmoid() -> None:
    schema = Schema([], [Numeric("age")], [Task("click"), Task("buy", after="click", over="all")])
    outputs = [torch.randn(9), torch.randn(9)]
    assert all(map(torch.equal, predictions(outputs, schema), [output.sigmoid() for output in outputs]))
    assert all(map(torch.equal, scores(outputs, schema), outputs))


def test_a_rate_of_one_changes_nothing() -> None:
    schema = schema_of(Task("click"), Task("purchase", after="click", over="all"), rate=1.0)
    outputs = [torch.randn(9), torch.randn(9)]
    assert all(map(torch.equal, scores(outputs, schema), outputs))
    assert biased_tasks(schema) == ()


def test_a_task_beside_the_sampled_one_is_left_as_it_is_and_named() -> None:
    schema = schema_of(
        Task("click"), Task("purchase", after="click"), Task("like", after="click"), Task("share"),
        Task("coupon", after="purchase"),
    )  # fmt: skip
    outputs = [torch.randn(9) for _ in schema.tasks]
    found = scores(outputs, schema)
    assert torch.equal(found[2], outputs[2])
    assert torch.equal(found[3], outputs[3])
    assert biased_tasks(schema) == ("like", "share")


def test_logits_keep_small_probabilities_apart_and_large_ones_finite() -> None:
    schema = schema_of(
        Task("click"), Task("purchase", after="click", over="all"), Task("coupon", after="purchase", over="all"),
        rate=1e-4,
    )  # fmt: skip
    extremes = torch.tensor([-90.0, -30.0, 0.0, 30.0, 90.0])
    outputs = list(torch.cartesian_prod(extremes, extremes, extremes).unbind(1))  # most contradict the nesting
    for score, prediction in zip(scores(outputs, schema), predictions(outputs, schema), strict=True):
        assert score.isfinite().all()
        assert ((prediction >= 0) & (prediction <= 1)).all()


@pytest.mark.parametrize("over", ["parent", "all"])
@pytest.mark.parametrize("loss", ["squared", "log"])
@dtypes
def test_a_regression_nested_in_the_sampled_task_is_the_natural_one(
    over: Literal["parent", "all"], loss: Literal["squared", "log"], dtype: torch.dtype
) -> None:
    spend = Task("spend", kind="regression", loss=loss, mean=2.0, scale=3.0, after="purchase", over=over)
    schema = schema_of(Task("purchase"), spend)
    binary = schema_of(Task("purchase"))
    world = world_of(binary)
    kept = sampled_world(world, binary)
    given_purchase = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3

    def mean_of(chances: World) -> Tensor:  # of the target that the loss sees: 0 without a purchase
        return given_purchase * (1.0 if over == "parent" else probability(chances, schema.tasks[0]))

    outputs = [*logits_of(kept, binary, dtype), ((mean_of(kept) - spend.mean) / spend.scale).to(dtype)]
    expected = mean_of(world).expm1() if loss == "log" else mean_of(world)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(predictions(outputs, schema)[1].double(), expected, rtol=tolerance, atol=1e-6)


def test_a_huber_regression_over_all_rows_is_left_as_it_is_and_named() -> None:
    spend = Task("spend", kind="regression", loss="huber", mean=2.0, scale=3.0, after="purchase", over="all")
    schema = schema_of(Task("purchase"), spend)
    assert predictions([torch.zeros(1), torch.ones(1)], schema)[1].item() == 5.0
    assert biased_tasks(schema) == ("spend",)


def test_half_precision_is_widened() -> None:
    schema = schema_of(Task("purchase"))
    assert predictions([torch.zeros(1, dtype=torch.bfloat16)], schema)[0].dtype == torch.float32


def test_a_wrong_number_of_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one output for each of the tasks click, purchase, found 1"):
        predictions([torch.zeros(1)], schema_of(Task("click"), Task("purchase")))


class Predicting(nn.Module):
    """A module whose only work is the correction."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.schema = schema

    def forward(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(predictions(outputs.unbind(1), self.schema))


def test_the_correction_can_be_exported() -> None:
    spend = Task("spend", kind="regression", loss="log", mean=2.0, after="purchase", over="all")
    schema = schema_of(*FUNNELS["a mixed chain"].tasks, spend)
    module = Predicting(schema).eval()
    outputs = 3 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(module, (outputs,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for rows in (8, 3):
        torch.testing.assert_close(program.module()(outputs[:rows]), module(outputs[:rows]), rtol=0, atol=0)
