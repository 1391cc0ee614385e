"""Aggregators of torchjd with preferences, draws or a state, as :class:`TaskAggregator`; they are given, not imported.

torchjd keeps one state for as many rows as it was last given, and starts anew when that number changes. Here the state
has a row per task: torchjd is handed those of the present tasks before each call.

Gram matrices are handed over with a mean diagonal near 1. Their scale changes no weights but for torchjd's constants
against a division by zero, by which gradients shorter than 0.01 would get weights of 0 from CAGrad, and no projection
from UPGrad.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from equipoise.jacobian.aggregator import TaskAggregator, WeighingAggregator

__all__ = [
    "ExcessRisks",
    "GradientVaccine",
    "PreferringAggregator",
    "PriorityConstrained",
    "Seeded",
    "TwoBatches",
    "Weighing",
]


class Weighing(WeighingAggregator):
    """A ``GramianWeightedAggregator`` of torchjd without a state.

    Args:
        aggregator: has an attribute ``gramian_weighting``, from a Gram matrix to weights.
        seed: if the weighting draws from torch's global generators, it draws as the seed and the step say: alike on all
            ranks and after a checkpoint, and without changing the global random state. None: it does not draw.
    """

    def __init__(
        self, aggregator: Any, *, seed: int | None = None, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(task_weights=task_weights)
        self.aggregator = aggregator
        self.seed = seed

    def weigh(self, jacobian: Tensor, state: dict[str, Tensor], /, *, step: int) -> Tensor:
        """Return torchjd's weights."""
        with _draws_of(self.seed, step, jacobian.device):
            weights: Tensor = self.aggregator.gramian_weighting(_gram_of(jacobian))
        return weights

    def __repr__(self) -> str:
        return self._repr_of(self.aggregator, **({} if self.seed is None else {"seed": self.seed}))


class PreferringAggregator(TaskAggregator):
    """An aggregator of torchjd with a ``pref_vector``, which is set to the preferences of the present tasks.

    Args:
        aggregator: has an attribute ``pref_vector``.
        scale: ``"mean"`` if its ``pref_vector`` has the sum 1 by default, ``"sum"`` if each entry is 1.
    """

    def __init__(self, aggregator: Any, *, scale: Literal["mean", "sum"], task_weights: Sequence[float] | None) -> None:
        super().__init__(task_weights=task_weights)
        self.aggregator = aggregator
        self.scale = scale

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Return torchjd's aggregation with these tasks' preferences."""
        preferences = self.preferences(present, jacobian)
        if preferences is not None:
            self.aggregator.pref_vector = preferences / len(present) if self.scale == "mean" else preferences
        weighting = getattr(self.aggregator, "gramian_weighting", None)
        joint: Tensor = self.aggregator(jacobian) if weighting is None else weighting(_gram_of(jacobian)) @ jacobian
        return joint

    def __repr__(self) -> str:
        return self._repr_of(self.aggregator)


class Seeded(TaskAggregator):
    """A random aggregator of torchjd without weights per task; its draws are those of :class:`Weighing`."""

    def __init__(self, aggregator: Any, *, seed: int) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.seed = seed

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Return torchjd's aggregation with this step's draws."""
        with _draws_of(self.seed, step, jacobian.device):
            joint: Tensor = self.aggregator(jacobian)
        return joint

    def __repr__(self) -> str:
        return self._repr_of(self.aggregator, seed=self.seed)


class GradientVaccine(WeighingAggregator):
    """torchjd's ``GradVac``: its moving averages of cosines have one entry per pair of tasks.

    Args:
        aggregator: a ``torchjd.aggregation.GradVac``.
        seed: of the order in which it visits pairs; see :class:`Weighing`.
    """

    kept: ClassVar = {"targets": "pair"}

    def __init__(self, aggregator: Any, *, seed: int, task_weights: Sequence[float] | None = None) -> None:
        super().__init__(task_weights=task_weights)
        self.aggregator = aggregator
        self.seed = seed
        _keep_state(aggregator.gramian_weighting)

    def initial(self, tasks: int, like: Tensor, /) -> dict[str, Tensor]:
        """Return averages of 0."""
        return {"targets": like.new_zeros(tasks, tasks)}

    def weigh(self, jacobian: Tensor, state: dict[str, Tensor], /, *, step: int) -> Tensor:
        """Return torchjd's weights; moves the averages of the pairs of present tasks."""
        weighting = self.aggregator.gramian_weighting
        weighting._phi_t = state["targets"].to("cpu", copy=True)  # torchjd changes it in place, on the CPU
        with _draws_of(self.seed, step, jacobian.device):
            weights: Tensor = weighting(_gram_of(jacobian))
        state["targets"] = weighting._phi_t.to(jacobian.device)
        return weights

    def __repr__(self) -> str:
        return self._repr_of(self.aggregator, seed=self.seed)


class PriorityConstrained(TaskAggregator):
    """torchjd's ``PCD``: a primary task, and a moving average of each task's squared norm.

    Where the primary task is absent the joint gradient is zero, as in the paper for a primary gradient of zero, and no
    average moves. A task that was absent for a while counts with the average that it had; one that comes for the first
    time after others with its present squared norm.

    Args:
        aggregator: a ``torchjd.aggregation.PCD``.
        primary: the name of the primary task; None: the first.
    """

    kept: ClassVar = {"averages": "task", "counts": "task"}

    def __init__(self, aggregator: Any, *, primary: str | None = None) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.primary = primary
        self._place = 0
        _keep_state(aggregator.gramian_weighting)

    def begin(self, tasks: Sequence[str], /) -> None:
        """Find the primary task's place."""
        super().begin(tasks)
        if self.primary is not None and self.primary not in tasks:
            raise ValueError(f"primary must be one of the tasks {', '.join(tasks)}, found {self.primary!r}.")
        self._place = 0 if self.primary is None else list(tasks).index(self.primary)

    def initial(self, tasks: int, like: Tensor, /) -> dict[str, Tensor]:
        """Return averages and counts of 0, in float64."""
        zeros = like.new_zeros(tasks, dtype=torch.float64)
        return {"averages": zeros, "counts": zeros.clone()}

    def aggregate(self, jacobian: Tensor, state: dict[str, Tensor], /, *, present: Sequence[int], step: int) -> Tensor:
        """Return torchjd's aggregation with the primary task's row first."""
        if self._place not in present:
            return torch.zeros_like(jacobian[0])
        first = list(present).index(self._place)
        order = [first, *(row for row in range(len(present)) if row != first)]
        jacobian = jacobian[order]
        weighting = self.aggregator.gramian_weighting
        averages, counts = state["averages"][order].cpu(), state["counts"][order].cpu()
        # torchjd corrects the bias of all averages by one count: the largest.
        most, beta = int(counts.max()), weighting.beta
        norms = jacobian.double().square().sum(1).cpu()
        corrected = torch.where(counts > 0, averages / (1 - beta ** counts.clamp(min=1)), norms)
        weighting._sq_norm_ema = torch.where(counts == most, averages, corrected * (1 - beta**most))
        weighting._n_steps = torch.tensor(most)
        joint: Tensor = self.aggregator(jacobian)
        back = torch.tensor(order).argsort()
        state["averages"] = weighting._sq_norm_ema[back].to(jacobian.device)
        state["counts"] = torch.full_like(state["counts"], most + 1)
        return joint

    def __repr__(self) -> str:
        return self._repr_of(self.aggregator, primary=self.primary)


class ExcessRisks(WeighingAggregator):
    """torchjd's ``ExcessMTL``: per task a weight, the sum of its squared gradients, and its first excess risk.

    The sums take as much memory as the tasks' gradients.

    Args:
        aggregator: a ``torchjd.aggregation.ExcessMTL`` without warm-up.
    """

    kept: ClassVar = {"weights": "share", "squares": "task", "baselines": "task"}
    keeps_vectors: ClassVar = True

    def __init__(self, aggregator: Any, *, task_weights: Sequence[float] | None = None) -> None:
        super().__init__(task_weights=task_weights)
        self.aggregator = aggregator
        self._first = copy.deepcopy(aggregator.weighting)
        _keep_state(aggregator.weighting)

    def initial(self, tasks: int, like: Tensor, /) -> dict[str, Tensor]:
        """Return equal weights, and zeros."""
        weights = _equal_shares(tasks, like)
        return {
            "weights": weights, "squares": like.new_zeros(tasks, like.shape[1]), "baselines": torch.zeros_like(weights)
        }  # fmt: skip

    def weigh(self, jacobian: Tensor, state: dict[str, Tensor], /, *, step: int) -> Tensor:
        """Return torchjd's weights; a task's first step sets its baseline and is not divided by it, as there."""
        weighting, baselines = self.aggregator.weighting, state["baselines"]
        new = baselines == 0
        weighting._weights = state["weights"]
        weighting._sq_grad_sum = state["squares"].clone()  # torchjd changes it in place
        weighting._initial_w = torch.where(new, 1 - 1e-7, baselines)  # torchjd adds 1e-7 and divides by it
        weights: Tensor = weighting(jacobian)
        state["weights"], state["squares"] = weighting._weights, weighting._sq_grad_sum
        if new.any():
            self._first(jacobian[new])
            state["baselines"] = baselines.masked_scatter(new, self._first._initial_w)
            self._first.reset()
        return weights

    def __repr__(self) -> str:
        return self._repr_of(self.aggregator)


class TwoBatches(WeighingAggregator):
    """torchjd's ``MoDoWeighting`` or ``SDMGradWeighting``, with the batches of two steps as their two batches.

    Both move their weights λ by ``J₁ J₂ᵀ``, whose Jacobians come from independent batches at the same parameters. Here
    J₂ is the present step's Jacobian and J₁ that of the last step in which a task was present, which needs no further
    pass but lies one step behind (ours). The present step is weighed by the λ found before it, so that weights and
    gradient are independent, as with the third batch of the papers. J₁ takes as much memory as the tasks' gradients.

    Args:
        weighting: a ``torchjd.aggregation`` weighting that keeps λ in a buffer.
        buffer: the name of that buffer.
        pull: SDMGrad's coefficient, by which equal weights are added to λ; 0 for MoDo.
    """

    kept: ClassVar = {"shares": "share", "previous": "task"}
    keeps_vectors: ClassVar = True

    def __init__(
        self, weighting: Any, *, buffer: str, pull: float = 0.0, task_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(task_weights=task_weights)
        self.weighting = weighting
        self.buffer = buffer
        self.pull = pull
        _keep_state(weighting)

    def initial(self, tasks: int, like: Tensor, /) -> dict[str, Tensor]:
        """Return equal shares, and Jacobians of 0, which move nothing."""
        return {"shares": _equal_shares(tasks, like), "previous": like.new_zeros(tasks, like.shape[1])}

    def weigh(self, jacobian: Tensor, state: dict[str, Tensor], /, *, step: int) -> Tensor:
        """Return the weights found so far, then move them by torchjd's step."""
        shares = state["shares"]
        setattr(self.weighting, self.buffer, shares)
        self.weighting(state["previous"] @ jacobian.T)
        state["shares"], state["previous"] = getattr(self.weighting, self.buffer), jacobian
        return (shares + self.pull / len(shares)) / (1 + self.pull)

    def __repr__(self) -> str:
        return self._repr_of(self.weighting)


def _equal_shares(tasks: int, like: Tensor) -> Tensor:
    return like.new_full((tasks,), 1 / max(tasks, 1))


def _gram_of(jacobian: Tensor) -> Tensor:
    """Return the Gram matrix of the rows, divided by the power of 2 next to its mean diagonal, which is exact."""
    gram = jacobian @ jacobian.T
    return gram / torch.exp2(gram.diagonal().mean().log2().round())


@contextmanager
def _draws_of(seed: int | None, step: int, device: torch.device) -> Iterator[None]:
    """Draw from torch's global generators as the seed and the step say; afterwards they are as before."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        number = (seed * 1_000_003 + step) % (1 << 63)
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


def _keep_state(weighting: Any) -> None:
    """Keep torchjd from starting its state anew: it is set before each call."""
    weighting._ensure_state = _nothing


def _nothing(*_: object) -> None:
    """Leave the state as it is."""
