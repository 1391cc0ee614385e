"""The catalogue of methods, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch.distributed as dist
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.forks import Fork
from equipoise.loss_weighting import gradnorm, loss_discrepancy_control, random_weights, static_weights
from equipoise.methods import from_torchjd
from equipoise.methods.at_fork import AT_FORK
from equipoise.methods.method import PER_TASK, Method
from equipoise.methods.on_parameters import ON_PARAMETERS
from equipoise.optim import PUB, AdaTask, Clippy, MetaBalance
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
    relative: float = 0.5,
    absolute: float = 0.01,
    task_weights: Sequence[float] | None = None,
) -> PUB:
    """Build PUB over Clippy, which shrinks the joint update."""
    bounded = Clippy(optimizer, relative=relative, absolute=absolute)
    return PUB(
        bounded, shared=shared, tasks=tasks, data_parallel=data_parallel, form=form, update_every=update_every,
        task_weights=task_weights,
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


def plain_fork(tasks: Sequence[str]) -> Fork:
    """Build a fork that weighs nothing, for a loss weighting to read gradients at; without the option ``overlap``."""
    return Fork(tasks)


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
    Method("pub", "PUB", "Updates weighed so that every task gains from the joint one; our defaults.", **_PUB),
    Method(
        "pub-authors", "PUB (authors)", "Updates weighed in the form published by PUB's authors.", **_PUB,
        options={"form": "authors"},
    ),
    Method(
        "pub-literal", "PUB (literal)", "The authors' code as it is written: nothing rescaled, towers weighed too.",
        **_PUB, options={"form": "literal"},
    ),
    Method(
        "pub-shipped", "PUB (shipped)", "The authors' code as it behaves: all weights stay 1, the updates are added.",
        **_PUB, options={"form": "shipped"},
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
        "adatask", "AdaTask", "One optimizer state per task on the shared parameters.", "AAAI", 2023,
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
    Method(
        "uw", "Uncertainty weighting", "Losses weighed by a learned uncertainty of each task.",
        "CVPR, arXiv 1705.07115", 2018, loss_weighting=from_torchjd.uncertainty_weighting,
    ),
    Method(
        "imtl-l", "IMTL-L", "Losses brought to equal size by learned scales.", "ICLR", 2021,
        loss_weighting=from_torchjd.imtl_l,
    ),
    Method(
        "gls", "GLS", "The geometric mean of the losses, whose direction no loss's scale changes.",
        "CVPR workshops, arXiv 1904.08492", 2019, loss_weighting=from_torchjd.geometric_mean,
    ),
    Method(
        "dwa", "DWA", "Losses weighed by how fast each falls from epoch to epoch; equal weights in the first two.",
        "CVPR, arXiv 1803.10704", 2019, loss_weighting=from_torchjd.dwa, needs=frozenset({"epochs"}),
    ),
    Method(
        "rlw", "RLW", "Losses weighed at random, anew in every step: a yardstick for the other methods.",
        "TMLR, arXiv 2111.10603", 2022, loss_weighting=random_weights,
    ),
    Method(
        "stch", "STCH", "A smooth maximum of the losses: the largest weigh most.", "ICML, arXiv 2402.19078", 2024,
        loss_weighting=from_torchjd.smooth_tchebycheff, search={"mu": (0.01, 0.1, 0.5, 1.0)},
    ),
    Method(
        "famo", "FAMO", "Losses weighed so that all fall at the same rate, measured by a second forward pass.",
        "NeurIPS, arXiv 2306.03792", 2023, loss_weighting=from_torchjd.famo, needs=frozenset({"forward after step"}),
    ),
    Method(
        "famo-next-batch", "FAMO, next batch",
        "Losses weighed so that all fall at the same rate, measured by the next batch's losses: one forward pass.",
        "NeurIPS, arXiv 2306.03792", 2023, loss_weighting=from_torchjd.famo_next_batch,
    ),
    Method(
        "ldc-mtl", "LDC-MTL",
        "Losses weighed so that weighted losses differ little; the model lowers the differences too.",
        "arXiv 2502.08585", 2025, loss_weighting=loss_discrepancy_control, search={"penalty": (0.01, 0.05, 0.1)},
    ),
    Method(
        "gradnorm", "GradNorm",
        "Losses weighed so that gradients at the fork have equal lengths, longer for tasks that are behind.",
        "ICML, arXiv 1711.02257", 2018, fork=plain_fork, loss_weighting=gradnorm,
        search={"alpha": (0.0, 0.5, 1.0, 1.5)},
    ),
    *ON_PARAMETERS,
)  # fmt: skip
