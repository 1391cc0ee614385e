"""The optimizers, schedules and clipping that settings describe, against plain loops with torch.optim."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from equipoise.data import Dataset
from equipoise.methods import METHODS
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import build_model
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import IncompatibleError, Learner, SettingError, train
from equipoise.training.optimizers import embedding_tables, note_on_large_tables
from equipoise.training.row_wise_adagrad import RowWiseAdagrad

LR, STEPS = 0.02, 12


def batches(dataset: Dataset) -> list[Batch]:
    found: list[Batch] = []
    while len(found) < STEPS:
        found += dataset.train.batches(64, generator=torch.Generator().manual_seed(len(found)))
    return found[:STEPS]


def apart(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the dense parameters and the tables."""
    tables = embedding_tables(model)
    return [p for p in model.parameters() if all(p is not table for table in tables)], tables


Adam, AdamW = (partial(kind, fused=True) for kind in (torch.optim.Adam, torch.optim.AdamW))
RECIPES: dict[str, tuple[dict, Callable[[nn.Module], list[Optimizer]]]] = {
    "adam-decay": (
        {"weight_decay": 0.1, "table_decay": 0.5},
        lambda model: [
            Adam(apart(model)[0], lr=LR, weight_decay=0.1),
            AdamW(apart(model)[1], lr=LR, weight_decay=0.5),
        ],
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.1, "optimizer_options": {"beta2": 0.9, "eps": 1e-6}},
        lambda model: [
            AdamW(apart(model)[0], lr=LR, weight_decay=0.1, betas=(0.9, 0.9), eps=1e-6),
            AdamW(apart(model)[1], lr=LR, weight_decay=0.0, betas=(0.9, 0.9), eps=1e-6),
        ],
    ),
    "sgd": (
        {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9, "nesterov": True}, "table_lr": 0.2},
        lambda model: [
            torch.optim.SGD(apart(model)[0], lr=LR, momentum=0.9, nesterov=True),
            torch.optim.SGD(apart(model)[1], lr=0.2, momentum=0.9, nesterov=True),
        ],
    ),
    "adam-not-fused": (
        {"optimizer_options": {"fused": False}, "table_decay": 0.5},
        lambda model: [
            torch.optim.Adam(apart(model)[0], lr=LR),
            torch.optim.AdamW(apart(model)[1], lr=LR, weight_decay=0.5),
        ],
    ),
    "adagrad": ({"optimizer": "adagrad"}, lambda model: [torch.optim.Adagrad(model.parameters(), lr=LR)]),
    "rmsprop": ({"optimizer": "rmsprop"}, lambda model: [torch.optim.RMSprop(model.parameters(), lr=LR)]),
    "row-wise": (
        {"table_optimizer": "rowwise-adagrad", "table_decay": 0.3},
        lambda model: [
            Adam(apart(model)[0], lr=LR),
            RowWiseAdagrad(apart(model)[1], 0.3, weight_decay=0.3),
        ],
    ),
    "row-wise-sparse": (
        {"table_optimizer": "rowwise-adagrad", "table_lr": 0.1, "model_options": {"sparse": True}},
        lambda model: [Adam(apart(model)[0], lr=LR), RowWiseAdagrad(apart(model)[1], 0.1)],
    ),
}


@pytest.mark.parametrize(("batch_size", "is_sparse"), [(8, True), (128, False)])
def test_row_wise_adagrad_steps_the_rows_of_the_batch_alone_in_a_table_that_is_large_beside_it(batch_size, is_sparse):
    schema = Schema([Categorical("item", 2048)], [Numeric("number")], [Task("click"), Task("like")])
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (batch_size, None):  # a learner that does not know the size of its batches takes all rows
        settings = TrainingSettings.of(lr=LR, seed=0, table_optimizer="rowwise-adagrad", batch_size=size)
        learner = Learner(schema, METHODS["multibalance"], settings)
        generator.manual_seed(0)
        for _ in range(3):
            ids = torch.randint(2048, (batch_size, 1), generator=generator)
            labels = torch.randint(2, (batch_size, 2), generator=generator).float()
            learner.step(Batch(ids, torch.ones(batch_size, 1), labels, torch.ones(batch_size)))
        (table,) = embedding_tables(learner.model().models[0])
        assert table.grad is not None
        assert table.grad.is_sparse is (is_sparse and size is not None)
        found.append(list(learner.model().models[0].parameters()))
    torch.testing.assert_close(*found)


def test_a_note_names_row_wise_adagrad_where_adam_would_step_many_rows_for_each_row_of_a_batch():
    def note(rows: int, **settings: object) -> str:
        schema = Schema([Categorical("item", rows), Categorical("last", rows, table="item")], [], [Task("click")])
        return note_on_large_tables(schema, TrainingSettings.of(**{"batch_size": 1000, **settings}))

    assert "have 600,000 rows, all of which adam steps in every step; a batch looks up at most 2,000." in note(600_000)
    assert not note(500_000)
    assert not note(600_000, table_optimizer="rowwise-adagrad")
    assert not note(600_000, device="cuda")
    assert not note(600_000, sharding="row-wise")
    assert not note(600_000, batch_size=None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_is_that_of_a_plain_loop_with_the_optimizers_of_torch(tiny: Dataset, name: str) -> None:
    settings, build = RECIPES[name]
    learner = Learner(tiny.schema, METHODS["equal"], TrainingSettings.of(lr=LR, seed=1, **settings))
    torch.manual_seed(1)
    model = build_model("shared-bottom", tiny.schema, **settings.get("model_options", {}))
    optimizers = build(model)
    for batch in batches(tiny):
        learner.step(batch)
        model.zero_grad()
        sum(task_losses(model(batch.categorical, batch.numeric), batch.labels, tiny.schema.tasks)).backward()
        for optimizer in optimizers:
            optimizer.step()
    (member,) = learner._members
    for (path, found), expected in zip(member.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize(
    "name",
    [*(name for name in METHODS if METHODS[name].optimizer is not None), "mgda-parameters", "db-mtl-parameters"],
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adagrad", "rmsprop"])
def test_methods_that_balance_updates_train_with_every_optimizer(tiny: Dataset, name: str, optimizer: str) -> None:
    settings = {"lr": 0.05 if optimizer == "sgd" else 0.01, "optimizer": optimizer, "weight_decay": 1e-4}
    learner = Learner(tiny.schema, METHODS[name], TrainingSettings.of(**settings, table_lr=0.02))
    losses = torch.stack([learner.step(batch) for batch in batches(tiny)])
    assert losses.isfinite().all()


@pytest.mark.parametrize("name", ["equal", "multibalance", "pub", "adatask"])
def test_a_fused_step_changes_no_more_than_rounding(tiny: Dataset, name: str) -> None:
    losses = []
    for fused in (False, True):
        settings = TrainingSettings.of(lr=0.01, optimizer_options={"fused": fused}, table_decay=0.1)
        learner = Learner(tiny.schema, METHODS[name], settings)
        losses.append(torch.stack([learner.step(batch) for batch in batches(tiny)]))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def rates(dataset: Dataset, **settings: object) -> list[float]:
    """Return the factors of the learning rate over ten steps, the same for all groups."""
    learner = Learner(dataset.schema, METHODS["multibalance"], TrainingSettings.of(lr=LR, **settings), total_steps=10)
    (member,) = learner._members
    seen = []
    for batch in batches(dataset)[:10]:
        groups = member.optimizer.param_groups
        factors = {round(group["lr"] / group.get("initial_lr", group["lr"]), 12) for group in groups}
        assert len(factors) == 1
        seen += factors
        learner.step(batch)
    return seen


@pytest.mark.parametrize("tables", ["same", "rowwise-adagrad"])
def test_rates_warm_up_and_fall_as_the_schedule_says(tiny: Dataset, tables: str) -> None:
    settings = {"table_optimizer": tables, "table_lr": 0.3}
    rising = [0.25, 0.5, 0.75, 1.0]
    assert rates(tiny, warmup=0.4, **settings) == pytest.approx([*rising, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rates(tiny, warmup=0.4, schedule="constant", **settings) == pytest.approx([*rising, *[1] * 6])
    cosine = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates(tiny, schedule="cosine", **settings) == pytest.approx(cosine)
    assert rates(tiny, **settings) == pytest.approx([1 - step / 10 for step in range(10)])
    assert rates(tiny, schedule="constant", **settings) == [1.0] * 10


@pytest.mark.parametrize("name", ["equal", "multibalance", "consmtl", "single-task", "uw", "clippy"])
def test_the_gradient_of_the_dense_part_is_shortened_to_the_norm(tiny: Dataset, name: str) -> None:
    """Plain descent at a rate of 1 moves by the gradient, which the norm bounds; tables move as without it."""
    settings = {"optimizer": "sgd", "lr": 1.0, "loss_scale": {"like": 50.0}}
    moved = {}
    for clip in (None, 0.01):
        learner = Learner(tiny.schema, METHODS[name], TrainingSettings.of(**settings, clip_norm=clip))
        befores = [[p.detach().clone() for p in member.model.parameters()] for member in learner._members]
        learner.step(batches(tiny)[0])
        for place, (member, before) in enumerate(zip(learner._members, befores, strict=True)):
            tables = {id(p) for p in embedding_tables(member.model)}
            parts = [(id(p) in tables, p.detach() - b) for p, b in zip(member.model.parameters(), before, strict=True)]
            moved[clip, place] = [
                torch.cat([step.flatten() for of_table, step in parts if of_table is wanted])
                for wanted in (False, True)
            ]
    for (clip, place), (dense, table) in moved.items():
        if clip is None:
            continue
        whole_dense, whole_table = moved[None, place]
        assert dense.norm() <= 0.01 * 1.001
        if name != "clippy":  # it shortens updates itself
            assert whole_dense.norm() > 0.1
            torch.testing.assert_close(dense * whole_dense.norm() / dense.norm(), whole_dense, rtol=1e-3, atol=1e-5)
            assert torch.equal(table, whole_table)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "pub",
            {"table_optimizer": "rowwise-adagrad"},
            r"'pub' steps the tables together .* set table_optimizer to same",
        ),
        ("clippy", {"table_optimizer": "rowwise-adagrad"}, "'clippy' steps the tables together"),
        ("mgda-parameters", {"table_optimizer": "rowwise-adagrad"}, "balance at a fork"),
        ("adatask", {"clip_norm": 1.0}, "'adatask' steps with the tasks' gradients one by one.*leave clip_norm out"),
        ("equal", {"optimizer": "sgd", "table_decay": 0.1}, "a decoupled decay, which sgd does not have: use"),
        ("equal", {"model_options": {"sparse": True}}, "only row-wise Adagrad takes: set table_optimizer"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_remedy(
    tiny: Dataset, method: str, settings: dict, message: str
) -> None:
    with pytest.raises(IncompatibleError, match=message):
        Learner(tiny.schema, METHODS[method], TrainingSettings.of(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer_options": {"momentum": 0.9}}, "of adam: expected options out of beta1, .*; found momentum"),
        ({"optimizer_options": {"eps": "small"}}, "eps must be a number, found 'small'"),
        ({"optimizer": "rmsprop", "optimizer_options": {"fused": True}}, "out of alpha, .*; found fused"),
        ({"optimizer_options": {"amsgrad": 1}}, "amsgrad must be true or false, found 1"),
        ({"optimizer_options": {"beta1": 1.5}}, "of adam: Invalid beta parameter"),
        ({"optimizer": "lion"}, "optimizer: input should be 'adam', 'adamw'.*; found 'lion'"),
        ({"warmup": 1.0}, "warmup: input should be less than 1"),
    ],
)
def test_options_that_an_optimizer_does_not_have_are_named(tiny: Dataset, settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        train(tiny, "equal", batch_size=64, **settings)
