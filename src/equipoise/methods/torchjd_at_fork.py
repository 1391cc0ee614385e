"""Weightings of torchjd at a fork, which hands them the Gram matrix of the present tasks and keeps their state.

Each waits for the device in every step, because the tasks present decide the shape of the matrix, and most compute on
the CPU. torchjd is imported when a method is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from equipoise.forks import Fork, Weighted
from equipoise.methods.from_torchjd import torchjd_aggregation
from equipoise.solvers import min_norm_weights

__all__ = [
    "CRMOGMFork",
    "GradVacFork",
    "PCDFork",
    "PCGradFork",
    "aligned_mtl",
    "cagrad",
    "crmogm_mgda",
    "crmogm_pcgrad",
    "upgrad",
]


@dataclass(frozen=True)
class TorchjdWeighting:
    """A weighting of torchjd by name, called with the Gram matrix divided by the mean of its diagonal.

    None of the weights depends on the scale of the matrix, but torchjd's constants against a division by zero do: the
    gradients at a fork may be so short that CAGrad would return 0, and UPGrad project nothing.

    Raises:
        MethodError: torchjd, or a package that the weighting needs, is not installed.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Any:
        """Return a new weighting of torchjd."""
        return torchjd_aggregation(self.name, **self.options)

    def __call__(self, gram: Tensor, /) -> Tensor:
        weights: Tensor = self.build()(to_mean_1(gram))
        return weights


def to_mean_1(gram: Tensor, /) -> Tensor:
    """Return a Gram matrix divided by the mean of its diagonal."""
    return gram / gram.diagonal().mean()


def cagrad(tasks: Sequence[str], *, c: float = 0.4, task_weights: Sequence[float] | None = None) -> Weighted:
    """Build CAGrad: the direction within ``c ‖g_0‖`` of the mean gradient g_0 that helps the worst task most.

    Algorithm 1 of the paper, which tunes c between 0 and 1; 0.4 is its value for NYU-v2 (from memory). torchjd solves
    it by cvxpy on the CPU, some milliseconds a step.
    """
    return Weighted(tasks, TorchjdWeighting("CAGradWeighting", {"c": c}), task_weights=task_weights)


class WeightedByPreferenceVector(Weighted):
    """A weighting of torchjd with a ``pref_vector``, which is set to the preferences of the present tasks.

    ``task_weights`` weigh what the method makes of each gradient, as with GradCraft, and not the gradients themselves.

    Args:
        tasks: the tasks' names, or how many there are.
        weighting: its ``pref_vector`` has the sum 1 by default.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
    """

    weighting: TorchjdWeighting

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights, which follow the preferences already; see :meth:`equipoise.Fork.weigh`."""
        return self.unpreferred(gram, present)

    def weights_of(self, gram: Tensor, tasks: Tensor, /) -> Tensor:
        """Return the weights of the present tasks; see :meth:`equipoise.Weighted.weights_of`."""
        built = self.weighting.build()
        if self.task_weights is not None:
            preferences = self.preferences[tasks].to(gram)
            built.pref_vector = preferences / preferences.sum()
        weights: Tensor = built(to_mean_1(gram))
        return weights


def aligned_mtl(
    tasks: Sequence[str], *, scale_mode: str = "min", task_weights: Sequence[float] | None = None
) -> WeightedByPreferenceVector:
    """Build Aligned-MTL: gradients rotated as little as possible to be orthogonal and of one length (Algorithm 1).

    That length is the smallest singular value of the gradients' matrix ("min", the paper's), their median ("median") or
    root mean square ("rmse").
    """
    return WeightedByPreferenceVector(
        tasks, TorchjdWeighting("AlignedMTLWeighting", {"scale_mode": scale_mode}), task_weights=task_weights
    )


def upgrad(tasks: Sequence[str], *, task_weights: Sequence[float] | None = None) -> WeightedByPreferenceVector:
    """Build UPGrad: the mean of the gradients, each projected onto the directions that harm no task (section 3).

    torchjd solves M quadratic programs a step by quadprog on the CPU.
    """
    return WeightedByPreferenceVector(tasks, TorchjdWeighting("UPGradWeighting"), task_weights=task_weights)


class Drawing(Weighted):
    """A weighting that draws random numbers: on all ranks the same, and in a resumed run as in one that went on.

    The draws depend on ``seed`` and on the number of steps made, and leave the global random state alone.

    Args:
        tasks: the tasks' names, or how many there are.
        weighting: see :class:`equipoise.Weighted`.
        seed: of the draws.
        task_weights: see :class:`equipoise.Weighted`.
    """

    task_dims: ClassVar[Mapping[str, tuple[int, ...]]] = {**Fork.task_dims, "draws": ()}

    weighting: TorchjdWeighting
    draws: Tensor

    def __init__(
        self,
        tasks: int | Sequence[str],
        weighting: TorchjdWeighting,
        *,
        seed: int = 0,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(tasks, weighting, task_weights=task_weights)
        self.seed = seed
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`equipoise.Fork.reset_parameters`."""
        super().reset_parameters()
        self.draws.zero_()

    def weights_of(self, gram: Tensor, tasks: Tensor, /) -> Tensor:
        """Return the weights of the present tasks; see :meth:`equipoise.Weighted.weights_of`."""
        self.draws.add_(1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self.seed * 0x9E3779B1 + int(self.draws)) & 0xFFFFFFFF)
            return self.drawn(gram, tasks)

    def drawn(self, gram: Tensor, tasks: Tensor, /) -> Tensor:
        """Return the weights; called with PyTorch's random state on the CPU seeded for this step."""
        return super().weights_of(gram, tasks)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{super().extra_repr()}, seed={self.seed}"


class PCGradFork(Drawing):
    """PCGrad: each gradient projected off those that it conflicts with, one after the other, in a random order.

    From `Gradient Surgery for Multi-Task Learning <https://arxiv.org/abs/2001.06782>`_ (Algorithm 1).

    Args:
        tasks: the tasks' names, or how many there are.
        seed: of the orders.
        task_weights: see :class:`equipoise.Weighted`.
    """

    def __init__(
        self, tasks: int | Sequence[str], *, seed: int = 0, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(tasks, TorchjdWeighting("PCGradWeighting"), seed=seed, task_weights=task_weights)


class GradVacFork(Drawing):
    """GradVac: each gradient bent towards the others until their cosines are at least what they were on average.

    From `Gradient Vaccine <https://arxiv.org/abs/2010.05874>`_ (eq. 2 and 3). The average cosines of a pair move in the
    steps in which both tasks are present.

    Args:
        tasks: the tasks' names, or how many there are.
        beta: the weight of the newest cosine in the average, in [0, 1]; the default is the authors' (from memory, and
            GradCraft's authors compare with it); torchjd's is 0.5.
        seed: of the orders in which the others are gone through.
        task_weights: see :class:`equipoise.Weighted`.
    """

    task_dims: ClassVar = {**Drawing.task_dims, "targets": (0, 1)}

    targets: Tensor

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        beta: float = 0.01,
        seed: int = 0,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        weighting = TorchjdWeighting("GradVacWeighting", {"beta": beta})
        super().__init__(tasks, weighting, seed=seed, task_weights=task_weights)
        self.register_buffer("targets", torch.zeros_like(self.last_gram))

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`equipoise.Fork.reset_parameters`."""
        super().reset_parameters()
        self.targets.zero_()

    def drawn(self, gram: Tensor, tasks: Tensor, /) -> Tensor:
        """Return the weights after one step of the average cosines."""
        rows = tasks.unsqueeze(1)
        built = self.weighting.build()
        built._phi_t = self.targets[rows, tasks].to("cpu", gram.dtype)
        built._state_key = len(tasks), gram.dtype
        weights: Tensor = built(to_mean_1(gram))
        self.targets[rows, tasks] = built._phi_t.to(self.targets)
        return weights


class PCDFork(Weighted):
    """PCD: the primary task's gradient, changed as little as every other task needs for a share of its own progress.

    From `Not All Objectives Are Born Equal: Priority-Constrained Descent
    <https://openreview.net/forum?id=HT01yGHLEt>`_ (TMLR 2026). Each gradient is divided by the moving average of its
    length, and what flows on has the length of the primary task's gradient. In a step without that task nothing flows
    on.

    The moving average of a task's squared length moves in the steps in which the task is present, and its bias is
    corrected by their number; torchjd counts the steps of all tasks together. Its constant ε is left out: a task that
    is present has a length.

    Args:
        tasks: the tasks' names, or how many there are.
        primary: the name of the primary task; None: the first.
        tau: τ, the share of its own progress that every other task gets, in [0, 1]; the default is the paper's.
        beta: β, the weight of the past in the moving average, in [0, 1).
        task_weights: see :class:`equipoise.Weighted`.

    Raises:
        ValueError: an option is out of its range, or ``primary`` is no task.
    """

    task_dims: ClassVar = {**Fork.task_dims, "averages": (1,)}

    weighting: TorchjdWeighting
    averages: Tensor

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        primary: str | None = None,
        tau: float = 0.02,
        beta: float = 0.999,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        options = {"tau": tau, "beta": beta, "eps": 0.0}
        super().__init__(tasks, TorchjdWeighting("PCDWeighting", options), task_weights=task_weights)
        if primary is not None and primary not in self.tasks:
            raise ValueError(f"primary must be one of the tasks {', '.join(self.tasks)}, found {primary!r}.")
        self.primary = primary
        self.beta = beta
        self._place = 0 if primary is None else self.tasks.index(primary)
        # Row 0 is the average, row 1 is 1 − β^k, which obeys the same recursion with 1 in the place of the square.
        self.register_buffer("averages", torch.zeros(2, len(self.tasks), dtype=self.last_weights.dtype))

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`equipoise.Fork.reset_parameters`."""
        super().reset_parameters()
        self.averages.zero_()

    def weights_of(self, gram: Tensor, tasks: Tensor, /) -> Tensor:
        """Return the weights after one step of the averages; see :meth:`equipoise.Weighted.weights_of`."""
        squares = gram.diagonal().double()
        newest = torch.stack((squares, torch.ones_like(squares)))
        moved = self.averages[:, tasks].double().lerp(newest, 1 - self.beta)
        self.averages[:, tasks] = moved.to(self.averages)
        first = (tasks == self._place).nonzero().squeeze(1)
        if not len(first):
            return torch.zeros_like(squares)
        order = torch.cat((first, (tasks != self._place).nonzero().squeeze(1)))
        built = self.weighting.build()
        # torchjd moves its averages by itself: it is given those from which it gets to ours, as if bias were long gone.
        goal = moved[0] / moved[1]
        before = goal if self.beta == 0 else (goal - (1 - self.beta) * squares) / self.beta
        built._sq_norm_ema, built._n_steps, built._state_key = before[order].cpu(), torch.tensor(1 << 60), len(tasks)
        found = built(gram[order.unsqueeze(1), order])
        return torch.zeros_like(found).index_copy_(0, order, found)

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return f"{super().extra_repr()}, primary={self.primary!r}"


class CRMOGMFork(Drawing):
    """CR-MOGM: the weights of another method, averaged over the steps.

    From `On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond
    <https://proceedings.neurips.cc/paper_files/paper/2022/hash/f91bd64a3620aad8e70a27ad9cb3ca57-Abstract-Conference.html>`_
    (Algorithm 1): ``λ_k = α λ_{k−1} + (1 − α) λ̂_k``, λ̂ the other method's weights; a task's first average is its first
    weight. A task's average moves in the steps in which it is present.

    Args:
        tasks: the tasks' names, or how many there are.
        weighting: the other method, a function from a Gram matrix to weights.
        alpha: α, the weight of the past, in [0, 1]; the default is torchjd's. The paper raises it towards 1 as the
            learning rate falls.
        seed: of the other method's draws.
        task_weights: see :class:`equipoise.Weighted`.
    """

    task_dims: ClassVar = {**Drawing.task_dims, "averages": (0,), "begun": (0,)}

    averages: Tensor
    begun: Tensor

    def __init__(
        self,
        tasks: int | Sequence[str],
        weighting: Any,
        *,
        alpha: float = 0.9,
        seed: int = 0,
        task_weights: Sequence[float] | None = None,
    ) -> None:
        smoothed = TorchjdWeighting("CRMOGMWeighting", {"weighting": weighting, "alpha": alpha})
        super().__init__(tasks, smoothed, seed=seed, task_weights=task_weights)
        self.register_buffer("averages", torch.zeros_like(self.last_weights))
        self.register_buffer("begun", torch.zeros_like(self.last_present))

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`equipoise.Fork.reset_parameters`."""
        super().reset_parameters()
        self.averages.zero_()
        self.begun.zero_()

    def drawn(self, gram: Tensor, tasks: Tensor, /) -> Tensor:
        """Return the averages of the present tasks' weights after one step."""
        built = self.weighting.build()
        newest = built.weighting(to_mean_1(gram))
        built.weighting = lambda _: newest
        built._lambda = torch.where(self.begun[tasks], self.averages[tasks].to(newest), newest)
        weights: Tensor = built(gram)
        self.averages[tasks] = weights.to(self.averages)
        self.begun[tasks] = True
        return weights


def crmogm_mgda(tasks: Sequence[str], *, alpha: float = 0.9, task_weights: Sequence[float] | None = None) -> CRMOGMFork:
    """Build CR-MOGM around MGDA, the shortest convex combination of the gradients."""
    return CRMOGMFork(tasks, min_norm_weights, alpha=alpha, task_weights=task_weights)


def crmogm_pcgrad(
    tasks: Sequence[str], *, alpha: float = 0.9, seed: int = 0, task_weights: Sequence[float] | None = None
) -> CRMOGMFork:
    """Build CR-MOGM around PCGrad, whose orders are random."""
    return CRMOGMFork(tasks, TorchjdWeighting("PCGradWeighting"), alpha=alpha, seed=seed, task_weights=task_weights)
