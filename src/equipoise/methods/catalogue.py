"""The catalogue of methods, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch.distributed as dist
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.loss_weighting import static_weights
from equipoise.methods.at_fork import AT_FORK, fairgrad
from equipoise.methods.method import PER_TASK, Method
from equipoise.methods.on_losses import ON_LOSSES
from equipoise.methods.on_parameters import ON_PARAMETERS
from equipoise.optim import PUB, AdaTask, Clippy, ConsistentTowers, MetaBalance
from equipoise.optim.forms import FormName

__all__ = ["CATALOGUE"]

_TASK_GRADIENTS: Final = frozenset({"per-task backward", "whole gradients"})
_PUB: Final[dict[str, Any]] = {
    "optimizer": PUB, "paper": "arXiv 2410.05806, ICDM", "year": 2024, "needs": _TASK_GRADIENTS
}  # fmt: skip


def pub_around_adatask(
    optimizer: Optimizer,
    *,
    shared: Sequence[Parameter],
    tasks: Sequence[str],
    data_parallel: Module | dist.ProcessGroup | None = None,
    form: FormName = "matched",
    update_every: int = 10,
    task_weights: Sequence[float] | None = None,
) -> PUB:
    """Build PUB over AdaTask, which balances updates computed with one optimizer state per task."""
    own = AdaTask(optimizer, shared=shared, data_parallel=data_parallel)
    return PUB(
        own, shared=shared, tasks=tasks, data_parallel=data_parallel, form=form, update_every=update_every,
        task_weights=task_weights,
    )  # fmt: skip


def pub_around_clippy(
    optimizer: Optimizer,
    *,
    shared: Sequence[Parameter],
    tasks: Sequence[str],
    data_parallel: Module | dist.ProcessGroup | None = None,
    form: FormName = "ours",
    update_every: int = 10,
    solve_on: Literal["auto", "all", "last"] = "auto",
    relative: float = 0.5,
    absolute: float = 0.01,
    task_weights: Sequence[float] | None = None,
) -> PUB:
    """Build PUB over Clippy, which shrinks the joint update."""
    bounded = Clippy(optimizer, relative=relative, absolute=absolute)
    return PUB(
        bounded, shared=shared, tasks=tasks, data_parallel=data_parallel, form=form, update_every=update_every,
        solve_on=solve_on, task_weights=task_weights,
    )  # fmt: skip


def pub_around_metabalance(
    optimizer: Optimizer,
    *,
    shared: Sequence[Parameter],
    tasks: Sequence[str],
    data_parallel: Module | dist.ProcessGroup | None = None,
    form: FormName = "ours",
    update_every: int = 10,
    target: str | None = None,
    relax: float = 0.7,
    beta: float = 0.9,
    task_weights: Sequence[float] | None = None,
) -> PUB:
    """Build PUB over MetaBalance, from whose rescaled gradients the updates come."""
    rescaled = MetaBalance(
        optimizer, shared=shared, target=target, relax=relax, beta=beta, tasks=tasks, data_parallel=data_parallel
    )
    return PUB(
        rescaled, shared=shared, tasks=tasks, data_parallel=data_parallel, form=form, update_every=update_every,
        task_weights=task_weights,
    )  # fmt: skip


CATALOGUE: Final[tuple[Method, ...]] = (
    Method(
        "single-task", "Single task", "One model per task, trained on its loss alone.",
        needs=frozenset({"a model per task"}),
    ),
    Method("equal", "Equal weights", "The plain sum of the losses."),
    Method(
        "static", "Static weights", "Losses weighed by fixed numbers, as a team tunes them by hand.",
        loss_weighting=static_weights, search={"weights": PER_TASK},
    ),
    *AT_FORK,
    Method(
        "consmtl", "ConsMTL",
        "FairGrad at the fork, and towers that also learn to turn their tasks' gradients there towards the joint one.",
        "CVPR", 2025, fork=fairgrad, optimizer=ConsistentTowers,
        needs=frozenset({"per-task backward", "second derivatives"}),
    ),
    Method("pub", "PUB", "Updates weighed so that every task gains from the joint one; our defaults.", **_PUB),
    Method(
        "pub-exact", "PUB (exact)", "The same, with weights from all that the tasks share, not the last layer alone.",
        **_PUB, options={"form": "ours", "solve_on": "all"},
    ),
    Method(
        "pub-authors", "PUB (authors)", "Updates weighed in the form published by PUB's authors.", **_PUB,
        options={"form": "authors", "solve_on": "all"},
    ),
    Method(
        "pub-literal", "PUB (literal)", "The authors' code as it is written: nothing rescaled, towers weighed too.",
        **_PUB, options={"form": "literal", "solve_on": "all"},
    ),
    Method(
        "pub-shipped", "PUB (shipped)", "The authors' code as it behaves: all weights stay 1, the updates are added.",
        **_PUB, options={"form": "shipped", "solve_on": "all"},
    ),
    Method(
        "pub-adatask", "PUB + AdaTask", "PUB on updates computed with one optimizer state per task.",
        **_PUB | {"optimizer": pub_around_adatask},
    ),
    Method(
        "pub-clippy", "PUB + Clippy", "PUB, with the joint update bounded by the parameters' size.",
        **_PUB | {"optimizer": pub_around_clippy, "needs": _TASK_GRADIENTS | {"whole updates"}},
    ),
    Method(
        "pub-metabalance", "PUB + MetaBalance", "PUB on updates of gradients brought near the first task's length.",
        **_PUB | {"optimizer": pub_around_metabalance},
    ),
    Method(
        "adatask", "AdaTask", "One optimizer state per task on the shared parameters.", "AAAI, arXiv 2211.15055", 2023,
        optimizer=AdaTask, needs=_TASK_GRADIENTS,
    ),
    Method(
        "metabalance", "MetaBalance",
        "Gradients of the other tasks brought near the length of the first task's, tensor by tensor.",
        "arXiv 2203.06801, WWW", 2022, optimizer=MetaBalance, needs=_TASK_GRADIENTS,
        search={"relax": (0.2, 0.5, 0.7, 0.9)},
    ),
    Method(
        "clippy", "Clippy", "The plain sum of the losses, updates bounded by the parameters' size.",
        "arXiv 2302.09178", 2023, optimizer=Clippy, needs=frozenset({"whole updates"}),
        search={"relative": (0.1, 0.2, 0.5, 1.0)},
    ),
    *ON_LOSSES,
    *ON_PARAMETERS,
)  # fmt: skip
"""Every method of equipoise, in the order of its tables."""
