"""Every model of the package in a small size, on schemas that it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from equipoise.forks.fork import Fork
from equipoise.ranking.models import MODELS, PRESETS, ForkFactory, RankingModel, build_model
from equipoise.schema import Categorical, Categories, Numeric, Schema, Task, Vector

OWN = [name for name in MODELS if name not in PRESETS]
"""The names of the package's models, without presets."""

SCHEMA = Schema(
    [Categorical("user", 30), Categorical("item", 5)],
    [Numeric("price"), Numeric("age")],
    # Names that a ModuleDict would refuse, a nested task, and one beside.
    [Task("click"), Task("keys", after="click", over="all"), Task("long.view")],
)
ONE_TASK = replace(SCHEMA, tasks=SCHEMA.tasks[:1])
NUMBERS_ALONE = replace(SCHEMA, categorical=[])
IDS_ALONE = replace(SCHEMA, numeric=[])
CHAIN = replace(
    SCHEMA,
    tasks=[
        Task("refund", after="buy", over="all"),
        Task("click"),
        Task("buy", after="click", over="all"),
        Task("like"),
        Task("share", after="click", over="all"),
        Task("seconds", kind="regression"),
    ],
)
"""A chain of three tasks in another order, a parent of two, and a regression."""
EVERY_KIND = Schema(
    [
        Categorical("video", 12),
        Categories("watched", 12, 3, pooling="attention", target="video", table="video"),
        Categories("tags", 6, 2),
        Categorical("surface", 4),
    ],
    [Numeric("age"), Vector("image", 3)],
    SCHEMA.tasks,
)

NEEDS_NESTED_TASKS = {"esmm", "escm2", "aitm"}
SMALL: dict[str, dict[str, object]] = {
    "shared-bottom": {"embedding_dim": 4, "bottom": (16, 8), "tower": (5,)},
    "mmoe": {"embedding_dim": 4, "experts": 3, "expert": (16, 8), "tower": (5,)},
    "ple": {"embedding_dim": 4, "levels": 2, "shared_experts": 2, "task_experts": 2, "expert": (8,), "tower": (5,)},
    "esmm": {"embedding_dim": 4, "tower": (8, 5)},
    "escm2": {"embedding_dim": 4, "tower": (8, 5), "risk": "dr"},
    "aitm": {"embedding_dim": 4, "bottom": (8, 6), "tower": (5,)},
    "stem": {"embedding_dim": 4, "shared_experts": 2, "task_experts": 2, "expert": (8, 6), "tower": (5,)},
    "home": {"embedding_dim": 4, "experts": 2, "expert": (6,), "gate_rank": 2, "tower": (5,)},
    "star": {"embedding_dim": 4, "bottom": (8, 6), "tower": (5,), "auxiliary": (4,)},
}

every_model = pytest.mark.parametrize("name", OWN)
every_fork = pytest.mark.parametrize("forked", [False, True], ids=["plain", "forked"])


def skip_unless_taken(name: str, schema: Schema) -> None:
    """Skip the test if the model does not take such a schema, by its description."""
    if name in NEEDS_NESTED_TASKS and not any(task.after for task in schema.tasks):
        pytest.skip(f"{name} needs a nested task")
    if name == "star" and not schema.categorical:
        pytest.skip("star needs a categorical feature")


def needed(name: str, schema: Schema) -> dict[str, object]:
    """Return the options that the model needs for a schema."""
    return {"scenario": schema.categorical[-1].name} if name == "star" else {}


def make(
    name: str,
    schema: Schema = SCHEMA,
    *,
    fork: ForkFactory | None = None,
    forked: bool = False,
    seed: int = 0,
    **options: object,
) -> RankingModel:
    """Build a model of a small size; ``forked``: with a plain fork."""
    skip_unless_taken(name, schema)
    torch.manual_seed(seed)
    fork = (lambda: Fork(schema.task_names)) if forked else fork
    return build_model(name, schema, fork=fork, **SMALL.get(name, {}) | needed(name, schema) | options)
