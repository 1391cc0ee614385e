"""MultiBalance (arXiv 2411.11871): a fork that balances the tasks' gradients in magnitude and in direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.fork import Fork
from equipoise.forks.multibalance_numbers import Step, StepState
from equipoise.solvers import project_simplex

__all__ = ["MultiBalance"]

Magnitude = Literal["equal", "own", "none"]
Direction = Literal["cosine", "gram", "none"]


class MultiBalance(Fork):
    r"""Balances tasks at the shared representation: magnitudes by a moving average, direction by simplex weights.

    From `MultiBalance: Multi-Objective Gradient Balancing in Industrial-Scale Multi-Task Recommendation System
    <https://arxiv.org/abs/2411.11871>`_. One step, with ``n_m = ‖g_m‖`` over the whole global batch::

        u_m ← (1 − γ) u_m + γ n_m,   û_m = u_m / (1 − (1 − γ)^k_m)      k_m: steps in which task m was present
        v_m = r_m g_m / n_m          r_m = û_m ("own"), mean of the present û ("equal"), n_m ("none")
        λ   ← Proj_Δ(λ − β S (λ + ρ λ⁰))    S = cosines of the g ("cosine"), VᵀV · M / tr(VᵀV) ("gram"); fixed ("none")
        out = M Σ_m λ_m v_m

    Sums and the M inside S run over the tasks present in the step. The average and the λ of the others do not move,
    and the present ones project onto the part of the simplex that the others leave. The M of ``out`` is the number of
    all tasks, so that equal λ and ``magnitude="none"`` always give the plain sum of the gradients.

    The defaults are ours, chosen on validation data (``benchmarks/results/defaults-forks-complete-journey.md``).
    The paper's form is ``MultiBalance(tasks, magnitude="own", direction="gram", beta=1.0)``; equal magnitudes are our
    addition, without which a task whose loss is scaled up takes over the shared layers.

    Args:
        tasks: the tasks' names, or how many there are.
        gamma: weight of the newest norm in the moving average, in (0, 1].
        rho: pull of λ towards its inverse preference λ⁰, at least 0.
        beta: step size of λ, at least 0.
        magnitude: what length the balanced gradients have.
        direction: which matrix moves λ.
        task_weights: the user's preferences λ⁰ (brought to sum 1), one positive number per task in the order of
            ``tasks``; all equal if None.
        clip: against spikes, limits the norm that enters a task's moving average to so many times that average, above
            1; a gradient itself is brought to the averages' length in any case. A task's first step has no average
            to compare with. Not with ``overlap``, whose weights know of a spike one step too late.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> fork = MultiBalance(["click", "conversion"])
        >>> shared = torch.ones(4, 3, requires_grad=True)
        >>> for_click, for_conversion = fork(shared)
        >>> (for_click.mean() + 23 * for_conversion.mean()).backward()
        >>> norms = fork.last_weights * fork.last_gram.diagonal().sqrt()
        >>> bool(torch.isclose(norms[0], norms[1]))  # the loss 23 times as large has the same say upstream
        True
    """

    averages: Tensor
    balance: Tensor
    preferences: Tensor

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        gamma: float = 0.01,
        rho: float = 0.1,
        beta: float = 0.1,
        magnitude: Magnitude = "equal",
        direction: Direction = "cosine",
        task_weights: Sequence[float] | None = None,
        clip: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
    ) -> None:
        super().__init__(tasks, process_group=process_group, overlap=overlap)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], found {gamma}.")
        if not (0 <= rho < math.inf and 0 <= beta < math.inf):
            raise ValueError(f"rho and beta must be finite and at least 0, found rho={rho}, beta={beta}.")
        if magnitude not in get_args(Magnitude):
            raise ValueError(f"magnitude must be one of {get_args(Magnitude)}, found {magnitude!r}.")
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {get_args(Direction)}, found {direction!r}.")
        if clip is not None and (isinstance(clip, str) or magnitude == "none" or not 1 < clip < math.inf):
            raise ValueError(
                f"clip must be above 1 and finite, with a magnitude to average; found {clip}, {magnitude!r}."
            )
        if clip is not None and overlap:
            raise ValueError(
                "clip cannot hold back a spike with overlap=True, which weighs by the step before: leave out either."
            )
        self.clip = clip
        self.gamma = gamma
        self.rho = rho
        self.beta = beta
        self.magnitude: Magnitude = magnitude
        self.direction: Direction = direction
        self._shares = _preferences(task_weights, self.tasks)
        self.task_weights = None if task_weights is None else [float(weight) for weight in task_weights]
        self._even = torch.tensor(1 / len(self.tasks), dtype=self.last_weights.dtype, device="cpu").item()
        self.register_buffer("preferences", torch.empty_like(self.last_weights), persistent=False)
        self.register_buffer("balance", torch.empty_like(self.last_weights))
        # Row 0 is u, row 1 is 1 − (1 − γ)^k, which obeys the same recursion with 1 in the place of the norm.
        self.register_buffer("averages", torch.empty(2, len(self.tasks), dtype=self.last_weights.dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the state before the first step; see :meth:`Fork.reset_parameters`."""
        super().reset_parameters()
        self.preferences.copy_(torch.tensor(self._shares, dtype=self.preferences.dtype))
        self.balance.copy_(self.preferences)
        self.averages.zero_()

    @property
    def magnitudes(self) -> Tensor:
        """The bias-corrected moving averages û of the gradient norms, shape [M].

        NaN before a task's first step, and for ever with ``magnitude="none"``, which keeps no averages.
        """
        return self.averages[0] / self.averages[1]

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """``M λ_m r_m / n_m`` after one step of the averages and of λ; see the class and :meth:`Fork.weigh`."""
        if gram.is_cpu and not torch.compiler.is_compiling():
            return self._weigh_numbers(gram, present)
        norms = gram.diagonal().sqrt()
        length = norms
        if self.magnitude != "none":
            newest = norms
            if self.clip is not None:
                newest = torch.where(self.averages[1] > 0, norms.minimum(self.clip * self.magnitudes), norms)
            newest = torch.stack([newest, torch.ones_like(norms)])
            self.averages.lerp_(torch.where(present, newest, self.averages), self.gamma)
            length = self.magnitudes
            if self.magnitude == "equal":
                length = (torch.where(present, length, 0.0).sum() / present.sum()).expand_as(norms)
        if self.direction == "cosine":
            self._step_balance(gram, present, torch.where(present, norms.reciprocal(), 0.0))
        elif self.direction == "gram":
            self._step_balance(gram, present, torch.where(present, _relative(length, present) / norms, 0.0))
        # Divided by 1/M rather than multiplied by M, so that equal λ, themselves rounded, give exactly 1.
        return self.balance / (1 / len(self.tasks)) * torch.where(present, length / norms, 0.0)

    def _weigh_numbers(self, gram: Tensor, present: Tensor) -> Tensor:
        """The same step on Python's numbers: on a CPU thirty tiny tensor operations take far longer."""
        clip = math.inf if self.clip is None else self.clip
        step = Step(self.gamma, self.rho, self.beta, self.magnitude, self.direction, self._even, clip)
        state = StepState(self._shares, self.balance.tolist(), *self.averages.tolist())
        weights = step.move(state, gram.tolist(), present.tolist())
        if self.magnitude != "none":
            self.averages.copy_(gram.new_tensor([state.average, state.correction]))
        if self.direction != "none":
            self.balance.copy_(gram.new_tensor(state.balance))
        return gram.new_tensor(weights)

    def monitored(self) -> dict[str, Tensor]:
        """û, where there are averages, and λ; see :class:`equipoise.Monitor`."""
        averages = {} if self.magnitude == "none" else {"magnitude": self.magnitudes}
        return averages | {"balance": self.balance.clone()}

    def _step_balance(self, gram: Tensor, present: Tensor, scale: Tensor) -> None:
        point = torch.where(present, self.balance + self.rho * self.preferences, 0.0)
        slope = scale * torch.mv(gram, scale * point)
        free = 1 - torch.where(present, 0.0, self.balance).sum()
        moved = project_simplex(self.balance - self.beta * slope, present=present, total=free)
        self.balance.copy_(torch.where(present, moved, self.balance))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{super().extra_repr()}, gamma={self.gamma}, rho={self.rho}, beta={self.beta}, "
            f"magnitude={self.magnitude!r}, direction={self.direction!r}, task_weights={self.task_weights!r}"
            f"{'' if self.clip is None else f', clip={self.clip}'}"
        )


def _relative(length: Tensor, present: Tensor) -> Tensor:
    """Lengths over their root mean square, which makes the trace of the balanced Gram matrix the number of tasks."""
    length = torch.where(present, length, 0.0)
    length = length / length.amax()  # squares of small numbers may vanish
    return length / (length.square().sum() / present.sum()).sqrt()


def _preferences(task_weights: Sequence[float] | None, tasks: Sequence[str]) -> list[float]:
    """The tasks' shares of 1."""
    weights = [1.0] * len(tasks) if task_weights is None else task_weights
    usable = isinstance(weights, Sequence) and all(isinstance(weight, int | float) for weight in weights)
    if not usable or len(weights) != len(tasks) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"task_weights must be a list of {len(tasks)} positive finite numbers, one for each of "
            f"{', '.join(tasks)}; found {task_weights!r}."
        )
    total = math.fsum(weights)
    return [weight / total for weight in weights]
