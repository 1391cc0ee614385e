"""Methods that weigh the tasks' losses, one row each; fixed weights stand beside equal weights in the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from equipoise.forks import Fork
from equipoise.loss_weighting import gradnorm, loss_discrepancy_control, random_weights
from equipoise.methods import from_torchjd
from equipoise.methods.method import Method

__all__ = ["ON_LOSSES"]

# The paper varies the decay of the logits, which pulls the weights towards equal ones, and keeps their rate.
_FAMO_SEARCH: Final = {"weights_decay": (1e-4, 1e-3, 1e-2)}


def plain_fork(tasks: Sequence[str]) -> Fork:
    """Build a fork that weighs nothing, for a loss weighting to read gradients at; without the option ``overlap``."""
    return Fork(tasks)


ON_LOSSES: Final[tuple[Method, ...]] = (
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
        search={"temperature": (1.0, 2.0, 4.0)},
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
        search=_FAMO_SEARCH,
    ),
    Method(
        "famo-next-batch", "FAMO, next batch",
        "Losses weighed so that all fall at the same rate, measured by the next batch's losses: one forward pass.",
        "NeurIPS, arXiv 2306.03792", 2023, loss_weighting=from_torchjd.famo_next_batch, search=_FAMO_SEARCH,
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
)  # fmt: skip
