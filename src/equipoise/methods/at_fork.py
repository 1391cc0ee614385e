"""The rows of the catalogue for methods at the fork, which need one backward pass through the shared layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from equipoise.forks import (
    PIVRG,
    Bargaining,
    EqualProjections,
    GradCraft,
    GradDrop,
    MetaBalanceFork,
    MinNorm,
    MultiBalance,
)
from equipoise.methods import torchjd_at_fork
from equipoise.methods.from_torchjd import uncertainty_weighting
from equipoise.methods.method import Method

__all__ = ["AT_FORK", "fairgrad"]

_MULTIBALANCE: Final[dict[str, Any]] = {"fork": MultiBalance, "paper": "arXiv 2411.11871", "year": 2024}


def nash_mtl(
    tasks: Sequence[str],
    *,
    task_weights: Sequence[float] | None = None,
    overlap: bool = False,
    gram_every: int = 1,
) -> Bargaining:
    """Build Nash-MTL: the bargaining equation with the exponent 1."""
    return Bargaining(tasks, task_weights=task_weights, overlap=overlap, gram_every=gram_every)


def fairgrad(
    tasks: Sequence[str],
    *,
    alpha: float = 2.0,
    task_weights: Sequence[float] | None = None,
    overlap: bool = False,
    gram_every: int = 1,
) -> Bargaining:
    """Build FairGrad: the bargaining equation with the exponent ``alpha``.

    The default is that of the authors' commands for CelebA and QM9. The values that tuning tries are ours.
    """
    return Bargaining(tasks, exponent=alpha, task_weights=task_weights, overlap=overlap, gram_every=gram_every)


AT_FORK: Final[tuple[Method, ...]] = (
    Method(
        "multibalance", "MultiBalance",
        "Gradients at the fork brought to equal length on average over steps, then balanced by their cosines.",
        **_MULTIBALANCE, search={"beta": (0.03, 0.1, 0.3, 1.0)},
    ),
    Method(
        "multibalance-uw", "MultiBalance and uncertainty weighting",
        "Losses weighed by a learned uncertainty each, their gradients at the fork balanced by averaged lengths.",
        **_MULTIBALANCE, loss_weighting=uncertainty_weighting, search={"beta": (0.03, 0.1, 0.3, 1.0)},
    ),
    Method(
        "multibalance-each-step", "MultiBalance, equal length in each step",
        "Gradients at the fork brought to equal length in each step, then balanced by their cosines.",
        **_MULTIBALANCE, options={"magnitude": "equal"}, search={"beta": (0.03, 0.1, 0.3, 1.0)},
    ),
    Method(
        "multibalance-literal", "MultiBalance, as its source writes it",
        "Gradients at the fork in their smoothed length, balanced by their raw Gram matrix; close to the plain sum.",
        **_MULTIBALANCE,
        options={"magnitude": "uncorrected", "direction": "raw", "reduction": "mean", "beta": 1.0},
    ),
    Method(
        "multibalance-own-cosine", "MultiBalance, own lengths and cosines",
        "Gradients at the fork in their own averaged length, balanced by their cosines.",
        **_MULTIBALANCE, options={"magnitude": "own", "direction": "cosine", "beta": 1.0},
    ),
    Method(
        "multibalance-own-gram", "MultiBalance, own lengths and Gram matrix",
        "Gradients at the fork in their own averaged length, balanced by their Gram matrix at trace M.",
        **_MULTIBALANCE, options={"magnitude": "own", "direction": "gram", "beta": 1.0},
    ),
    Method(
        "multibalance-no-magnitude", "MultiBalance, no magnitude", "Ablation: direction alone.",
        **_MULTIBALANCE, options={"magnitude": "none"},
    ),
    Method(
        "multibalance-no-direction", "MultiBalance, no direction", "Ablation: magnitude alone.",
        **_MULTIBALANCE, options={"direction": "none"},
    ),

    Method(
        "mgda", "MGDA at the fork", "The shortest convex combination of the gradients at the fork.",
        "NeurIPS, arXiv 1810.04650", 2018, fork=MinNorm, options={"lengths": "own"},
    ),
    Method(
        "mgda-equal-lengths", "MGDA on gradients of equal length",
        "The shortest convex combination of the directions at the fork: the scales of the losses do not matter.",
        "NeurIPS, arXiv 1810.04650", 2018, fork=MinNorm, options={"lengths": "equal"},
    ),
    Method(
        "nash-mtl", "Nash-MTL", "Gradients at the fork weighed by the Nash bargaining solution; scales do not matter.",
        "ICML, arXiv 2202.01017", 2022, fork=nash_mtl,
    ),
    Method(
        "fairgrad", "FairGrad", "Gradients at the fork weighed by α-fairness: the task that gains least counts most.",
        "ICML, arXiv 2402.15638", 2024, fork=fairgrad, search={"alpha": (0.5, 1.0, 2.0, 5.0)},
    ),
    Method(
        "pivrg", "PIVRG, scores against the base rate",
        "As FairGrad with α = 2, and more weight for tasks whose validation loss is nearer to that of the base rate.",
        "CVPR", 2025, fork=PIVRG, needs=frozenset({"validation"}),
    ),
    Method(
        "imtl-g", "IMTL-G", "The combination at the fork with the same projection on every task's gradient.",
        "ICLR", 2021, fork=EqualProjections, options={"length": "weights"},
    ),
    Method(
        "config", "ConFIG", "The direction of IMTL-G at the fork, as long as the projections of all gradients on it.",
        "ICLR, arXiv 2408.11104", 2025, fork=EqualProjections, options={"length": "projections"},
    ),

    Method(
        "pcgrad", "PCGrad", "Gradients at the fork projected off those that they conflict with, in random order.",
        "NeurIPS, arXiv 2001.06782", 2020, fork=torchjd_at_fork.PCGradFork,
    ),
    Method(
        "gradvac", "GradVac", "Gradients at the fork bent towards each other, to their average cosines.",
        "ICLR, arXiv 2010.05874", 2021, fork=torchjd_at_fork.GradVacFork, search={"beta": (0.001, 0.01, 0.1, 0.5)},
    ),
    Method(
        "gradcraft", "GradCraft", "Gradients at the fork brought near the longest, then all conflicts removed at once.",
        "KDD, arXiv 2407.19682", 2024, fork=GradCraft, search={"tau": (0.1, 0.4, 0.7, 1.0)},
    ),
    Method(
        "cagrad", "CAGrad", "The direction near the mean gradient at the fork that helps the worst task most.",
        "NeurIPS, arXiv 2110.14048", 2021, fork=torchjd_at_fork.cagrad, search={"c": (0.2, 0.4, 0.6, 0.8)},
    ),
    Method(
        "aligned-mtl", "Aligned-MTL", "Gradients at the fork made orthogonal and equally long with little rotation.",
        "CVPR, arXiv 2305.19000", 2023, fork=torchjd_at_fork.aligned_mtl,
    ),
    Method(
        "upgrad", "UPGrad", "Gradients at the fork projected onto the directions that harm no task, then averaged.",
        "arXiv 2406.16232", 2024, fork=torchjd_at_fork.upgrad,
    ),
    Method(
        "pcd", "PCD", "The first task's gradient at the fork, changed so that the others progress a little, too.",
        "TMLR, arXiv 2606.29521", 2026, fork=torchjd_at_fork.PCDFork, search={"tau": (0.01, 0.02, 0.05, 0.1)},
    ),
    Method(
        "crmogm-mgda", "CR-MOGM around MGDA", "The weights of MGDA at the fork, averaged over the steps.",
        "NeurIPS", 2022, fork=torchjd_at_fork.crmogm_mgda,
    ),
    Method(
        "crmogm-pcgrad", "CR-MOGM around PCGrad", "The weights of PCGrad at the fork, averaged over the steps.",
        "NeurIPS", 2022, fork=torchjd_at_fork.crmogm_pcgrad,
    ),

    Method(
        "metabalance-fork", "MetaBalance at the fork",
        "Gradients of the other tasks at the fork brought near the average length of the first task's.",
        "arXiv 2203.06801, WWW", 2022, fork=MetaBalanceFork,
        search={"relax": (0.2, 0.5, 0.7, 0.9)},
    ),
    Method(
        "graddrop", "GradDrop", "Gradients at the fork, each element from the tasks of one randomly drawn sign.",
        "NeurIPS, arXiv 2010.06808", 2020, fork=GradDrop,
    ),
)  # fmt: skip
