"""The methods on the shared parameters' gradients: one backward pass per task, and M times their memory.

What torchjd implements is torchjd's, imported when a factory is first called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from equipoise.jacobian.adapters import (
    ExcessRisks,
    GradientVaccine,
    PreferringAggregator,
    PriorityConstrained,
    Seeded,
    TwoBatches,
    Weighing,
)
from equipoise.jacobian.from_gram import Bargaining, ParetoEfficient
from equipoise.jacobian.tracking import DualBalancing, GradientCorrection
from equipoise.loss_weighting import LossWeighting
from equipoise.methods.from_torchjd import torchjd_aggregation
from equipoise.methods.method import Method

__all__ = ["ON_PARAMETERS"]

Weights = Sequence[float] | None


def mgda(*, epsilon: float = 1e-3, max_iters: int = 100, task_weights: Weights = None) -> Weighing:
    """Build MGDA: the min-norm point of the gradients, by Frank-Wolfe steps."""
    return Weighing(torchjd_aggregation("MGDA", epsilon=epsilon, max_iters=max_iters), task_weights=task_weights)


def pcgrad(*, seed: int = 0, task_weights: Weights = None) -> Weighing:
    """Build PCGrad (arXiv 2001.06782, algorithm 1): each gradient without its part against the others."""
    return Weighing(torchjd_aggregation("PCGrad"), seed=seed, task_weights=task_weights)


def gradvac(*, beta: float = 0.01, seed: int = 0, task_weights: Weights = None) -> GradientVaccine:
    """Build GradVac (arXiv 2010.05874): raises cosines to their moving average; β is the paper's."""
    return GradientVaccine(torchjd_aggregation("GradVac", beta=beta), seed=seed, task_weights=task_weights)


def cagrad(*, c: float = 0.4, task_weights: Weights = None) -> Weighing:
    """Build CAGrad (arXiv 2110.14048, algorithm 1), solved by cvxpy on the host, which takes milliseconds a step.

    c = 0.4 is the authors' choice for NYUv2.
    """
    return Weighing(torchjd_aggregation("CAGrad", c=c), task_weights=task_weights)


def imtl_g(*, task_weights: Weights = None) -> Weighing:
    """Build IMTL-G: equal projections of the joint gradient on all gradients."""
    return Weighing(torchjd_aggregation("IMTLG"), task_weights=task_weights)


def nash_mtl(*, task_weights: Weights = None) -> Bargaining:
    """Build Nash-MTL (arXiv 2202.01017, eq. 4) with our solver; torchjd's needs cvxpy and ecos, and a host sync."""
    return Bargaining(task_weights=task_weights)


def fairgrad(*, alpha: float = 2.0, task_weights: Weights = None) -> Bargaining:
    """Build FairGrad (arXiv 2402.15638) with our solver; torchjd's calls scipy on the host."""
    return Bargaining(exponent=alpha, task_weights=task_weights)


def aligned_mtl(*, scale_mode: str = "min", task_weights: Weights = None) -> PreferringAggregator:
    """Build Aligned-MTL (CVPR 2023, algorithm 1): the gradients' system brought to condition 1."""
    if scale_mode not in ("min", "median", "rmse"):
        raise ValueError(f"scale_mode must be one of min, median, rmse; found {scale_mode!r}.")
    return PreferringAggregator(
        torchjd_aggregation("AlignedMTL", scale_mode=scale_mode), scale="mean", task_weights=task_weights
    )


def upgrad(*, task_weights: Weights = None) -> PreferringAggregator:
    """Build UPGrad (arXiv 2406.16232): each gradient projected onto the dual cone of all, by quadprog on the host."""
    return PreferringAggregator(torchjd_aggregation("UPGrad"), scale="mean", task_weights=task_weights)


def dualproj(*, task_weights: Weights = None) -> PreferringAggregator:
    """Build DualProj (GEM, NeurIPS 2017, eq. 11): the mean gradient projected onto the dual cone of all."""
    return PreferringAggregator(torchjd_aggregation("DualProj"), scale="mean", task_weights=task_weights)


def config(*, task_weights: Weights = None) -> PreferringAggregator:
    """Build ConFIG (arXiv 2408.11104, eq. 2): the direction with equal cosines, or such as the preferences say."""
    return PreferringAggregator(torchjd_aggregation("ConFIG"), scale="sum", task_weights=task_weights)


def pcd(*, primary: str | None = None, tau: float = 0.02, beta: float = 0.999) -> PriorityConstrained:
    """Build PCD (arXiv 2606.29521): the primary gradient, as far as all others gain the share τ of their own step."""
    return PriorityConstrained(torchjd_aggregation("PCD", tau=tau, beta=beta), primary=primary)


def graddrop(*, seed: int = 0) -> Seeded:
    """Build GradDrop (arXiv 2010.06808, algorithm 1): each element from the tasks of one randomly drawn sign."""
    return Seeded(torchjd_aggregation("GradDrop"), seed=seed)


def excess_mtl(*, robust_step_size: float = 1.0, task_weights: Weights = None) -> ExcessRisks:
    """Build ExcessMTL (ICML 2024, eqs. 6, 7, 9) without warm-up, as its official code; LibMTL's step size is 0.01."""
    return ExcessRisks(torchjd_aggregation("ExcessMTL", robust_step_size=robust_step_size), task_weights=task_weights)


def modo(*, gamma: float = 0.1, rho: float = 0.1, task_weights: Weights = None) -> TwoBatches:
    """Build MoDo (JMLR 2024, eq. 2.9) with the batches of two steps; see :class:`TwoBatches`."""
    return TwoBatches(
        torchjd_aggregation("MoDoWeighting", gamma=gamma, rho=rho), buffer="_lambda", task_weights=task_weights
    )  # fmt: skip


def sdmgrad(*, pull: float = 0.3, task_weights: Weights = None) -> TwoBatches:
    """Build SDMGrad (arXiv 2305.18409) with the batches of two steps; see :class:`TwoBatches`.

    ``pull`` is the paper's λ, 0.3 in its experiments. Twenty steps at the rate 10 move the weights in each step, which
    enlarges rounding: float32 trainings on one and on several ranks part within some ten steps.
    """
    return TwoBatches(
        torchjd_aggregation("SDMGradWeighting", lambda_=pull), buffer="_w", pull=pull, task_weights=task_weights
    )  # fmt: skip


def logarithms(tasks: Sequence[str]) -> LossWeighting:
    """Build the weighting that trains on ``Σ_m log(L_m + 1e-8)``: every gradient is divided by its loss."""
    return LossWeighting(tasks, _sum_of_logarithms)


def _sum_of_logarithms(losses: Tensor) -> Tensor:
    return (losses + 1e-8).log().sum()


ON_PARAMETERS: Final[tuple[Method, ...]] = (
    Method(
        "mgda-parameters", "MGDA on parameters", "The shortest convex combination of the shared parameters' gradients.",
        "NeurIPS, arXiv 1810.04650", 2018, jacobian=mgda,
    ),
    Method(
        "pcgrad-parameters", "PCGrad on parameters",
        "Each task's gradient without its part that points against the others', in random order.",
        "NeurIPS, arXiv 2001.06782", 2020, jacobian=pcgrad,
    ),
    Method(
        "gradvac-parameters", "GradVac on parameters",
        "Each pair of gradients turned until its cosine reaches its moving average.",
        "ICLR, arXiv 2010.05874", 2021, jacobian=gradvac, search={"beta": (0.001, 0.01, 0.1, 0.5)},
    ),
    Method(
        "cagrad-parameters", "CAGrad on parameters",
        "Near the mean gradient, the step from which the task that gains least gains most; solved by cvxpy.",
        "NeurIPS, arXiv 2110.14048", 2021, jacobian=cagrad, search={"c": (0.2, 0.4, 0.6, 0.8)},
    ),
    Method(
        "imtl-g-parameters", "IMTL-G on parameters", "A joint gradient with equal projections on all gradients.",
        "ICLR", 2021, jacobian=imtl_g,
    ),
    Method(
        "nash-mtl-parameters", "Nash-MTL on parameters",
        "Gradients weighed by the bargaining solution, in which all tasks gain in proportion.",
        "ICML, arXiv 2202.01017", 2022, jacobian=nash_mtl,
    ),
    Method(
        "fairgrad-parameters", "FairGrad on parameters", "Gradients weighed so that the tasks' gains are alpha-fair.",
        "ICML, arXiv 2402.15638", 2024, jacobian=fairgrad, search={"alpha": (0.5, 1.0, 2.0, 5.0)},
    ),
    Method(
        "aligned-mtl-parameters", "Aligned-MTL on parameters",
        "The gradients' system brought to the condition number 1, in the length of its shortest axis.",
        "CVPR, arXiv 2305.19000", 2023, jacobian=aligned_mtl,
    ),
    Method(
        "upgrad-parameters", "UPGrad on parameters",
        "The mean of the gradients, each turned until it harms no task; solved by quadprog.",
        "arXiv 2406.16232", 2024, jacobian=upgrad,
    ),
    Method(
        "dualproj-parameters", "DualProj on parameters",
        "The mean gradient, turned until it harms no task; solved by quadprog.",
        "NeurIPS, arXiv 1706.08840", 2017, jacobian=dualproj,
    ),
    Method(
        "config-parameters", "ConFIG on parameters", "The direction that has the same cosine with all gradients.",
        "ICLR, arXiv 2408.11104", 2025, jacobian=config,
    ),
    Method(
        "pcd-parameters", "PCD on parameters",
        "The gradient of a primary task, the first by default, as far as every other task gains a little too.",
        "TMLR, arXiv 2606.29521", 2026, jacobian=pcd, search={"tau": (0.01, 0.02, 0.05, 0.1)},
    ),
    Method(
        "graddrop-parameters", "GradDrop on parameters",
        "Each element of the shared parameters' gradient from the tasks of one randomly drawn sign.",
        "NeurIPS, arXiv 2010.06808", 2020, jacobian=graddrop,
    ),
    Method(
        "excess-mtl-parameters", "ExcessMTL on parameters",
        "Weights that grow with a task's estimated distance from its best loss.",
        "ICML, arXiv 2402.02009", 2024, jacobian=excess_mtl,
    ),
    Method(
        "modo-parameters", "MoDo on parameters",
        "The min-norm weights followed by small steps, with the Jacobians of two batches.",
        "JMLR, arXiv 2305.20057", 2024, jacobian=modo,
    ),
    Method(
        "sdmgrad-parameters", "SDMGrad on parameters",
        "The min-norm weights drawn to equal ones, with the Jacobians of two batches.",
        "NeurIPS, arXiv 2305.18409", 2023, jacobian=sdmgrad, search={"pull": (0.1, 0.3, 0.6, 1.0)},
    ),
    Method(
        "db-mtl-parameters", "DB-MTL on parameters",
        "Gradients of the losses' logarithms, averaged over the steps and brought to the longest one's length.",
        "arXiv 2308.12029", 2023, jacobian=DualBalancing, loss_weighting=logarithms,
        search={"beta": (0.1, 0.5, 0.9)},
    ),
    Method(
        "moco-parameters", "MoCo on parameters",
        "Tracked gradients, weighed by small steps towards the min-norm weights.",
        "ICLR, arXiv 2210.12624", 2023, jacobian=GradientCorrection,
    ),
    Method(
        "pe-ltr-parameters", "PE-LTR on parameters",
        "Min-norm weights with a least weight per task, by a linear system and a projection.",
        "RecSys", 2019, jacobian=ParetoEfficient,
    ),
)  # fmt: skip
"""The rows of the catalogue."""
