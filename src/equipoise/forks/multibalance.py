"""MultiBalance (arXiv 2411.11871): a fork that balances the tasks' gradients in magnitude and in direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from equipoise.forks.balance_options import BalanceOptions
from equipoise.forks.fork import Fork
from equipoise.forks.gram import divisor_beside
from equipoise.forks.kernel_choice import MOST_IN_REGISTERS, kernels_for
from equipoise.forks.preferring import Preferring
from equipoise.forks.ranks import group_of_several
from equipoise.solvers import project_simplex

__all__ = ["MultiBalance"]

Magnitude = Literal["averaged", "equal", "own", "uncorrected", "none"]
Direction = Literal["cosine", "gram", "raw", "none"]
Reduction = Literal["sum", "mean"]


class MultiBalance(Preferring):
    r"""Balances tasks at the shared representation: magnitudes by a moving average, direction by simplex weights.

    From `MultiBalance: Multi-Objective Gradient Balancing in Industrial-Scale Multi-Task Recommendation System
    <https://arxiv.org/abs/2411.11871>`_. One step, with ``n_m = ‖g_m‖`` over the whole global batch::

        u_m ← (1 − γ) u_m + γ n_m,   û_m = u_m / (1 − (1 − γ)^k_m)      k_m: steps in which task m was present
        v_m = r_m g_m / n_m          r_m by ``magnitude``
        λ   ← Proj_Δ(λ − β S (λ + ρ/M))     S by ``direction``, λ = 1/M at the start
        out = M Σ_m λ_m p_m v_m             p_m = M · task_weights_m / Σ task_weights

    A step moves the averages and the λ of the tasks present in it; these project onto the part of the simplex that the
    others leave. M is the number of all tasks, so that equal λ and ``magnitude="none"`` give the plain sum.

    ===============  ==============================================================================================
    ``magnitude``    r_m
    ===============  ==============================================================================================
    "averaged"       n_m / û_m times the mean of û over all tasks that have been present so far, in this step or before:
                     equal lengths on average over steps, also of tasks with separate rows or steps. A rare task's step
                     with many positives stays longer than one with few
    "equal"          that mean: equal lengths in each step. **A rare task suffers**: a batch without its positives gives
                     it a short gradient, which this stretches to the length of all others
    "own"            û_m
    "uncorrected"    u_m, which starts at 0
    "none"           n_m
    ===============  ==============================================================================================

    ===============  ==============================================================================================
    ``direction``    S
    ===============  ==============================================================================================
    "cosine"         the cosines ⟨g_i, g_j⟩ / (n_i n_j). **Does nothing with two tasks**: the matrix is symmetric in
                     them, so both keep λ = ½ and only the magnitudes are balanced. With three or more it works.
    "raw"            VᵀV, V = [v_1 … v_M]; with gradients of realistic size λ hardly moves
    "gram"           VᵀV · K / tr(VᵀV), K the number of tasks present: moves λ to the shortest v if their lengths
                     differ
    "none"           λ stays 1/M
    ===============  ==============================================================================================

    The defaults are ours, chosen on validation data (``benchmarks/results/defaults-forks-complete-journey.md``):
    without equal magnitudes a task whose loss is scaled up takes over the shared layers. The one source that spells
    the paper's formulas out recommends ``direction="cosine"`` and writes ``MultiBalance(tasks,
    magnitude="uncorrected", direction="raw", reduction="mean", beta=1.0)``.

    ``task_weights`` act for the whole training: next to a task of weight 1, the balanced gradient of a task of weight
    9 stays 9 times as long as with equal weights. They scale the balanced gradients and are not part of S.

    Args:
        tasks: the tasks' names, or how many there are.
        gamma: γ, weight of the newest norm in the moving average, in (0, 1].
        rho: ρ, pull of λ towards 1/M, at least 0.
        beta: β, step size of λ, at least 0.
        magnitude: the length of the balanced gradients, see above.
        direction: the matrix that moves λ, see above.
        reduction: "sum" as above; "mean" leaves the factor M of ``out`` away.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.
        clip: against spikes, limits the norm that enters a task's moving average to this multiple of that average,
            above 1, and that of its gradient with ``magnitude="averaged"``; with the other magnitudes the gradient is
            scaled to the averages' length in any case. It has no effect in a task's first step. Not with ``overlap``
            or ``gram_every``, whose weights react to a spike too late.
        process_group: the ranks that share a global batch; the default group if None.
        overlap: weigh by the step before's Gram matrix, see :class:`Fork`.
        gram_every: measure the Gram matrix in one step out of so many, see :class:`Fork`.

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

    task_dims: ClassVar = {**Fork.task_dims, "averages": (1,), "balance": (0,)}

    averages: Tensor
    balance: Tensor

    replayable: ClassVar[bool] = True

    def __init__(
        self,
        tasks: int | Sequence[str],
        *,
        gamma: float = 0.01,
        rho: float = 0.1,
        beta: float = 0.1,
        magnitude: Magnitude = "averaged",
        direction: Direction = "cosine",
        reduction: Reduction = "sum",
        task_weights: Sequence[float] | None = None,
        clip: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        gram_every: int = 1,
    ) -> None:
        super().__init__(
            tasks, task_weights=task_weights, process_group=process_group, overlap=overlap, gram_every=gram_every
        )
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], found {gamma}.")
        if not (0 <= rho < math.inf and 0 <= beta < math.inf):
            raise ValueError(f"rho and beta must be finite and at least 0, found rho={rho}, beta={beta}.")
        for name, found, known in [
            ("magnitude", magnitude, get_args(Magnitude)),
            ("direction", direction, get_args(Direction)),
            ("reduction", reduction, get_args(Reduction)),
        ]:
            if found not in known:
                raise ValueError(f"{name} must be one of {known}, found {found!r}.")
        if clip is not None and (isinstance(clip, str) or magnitude == "none" or not 1 < clip < math.inf):
            raise ValueError(
                f"clip must be above 1 and finite, with a magnitude to average; found {clip}, {magnitude!r}."
            )
        if clip is not None and (overlap or gram_every > 1):
            late = "overlap=True" if overlap else f"gram_every={gram_every}"
            raise ValueError(
                f"clip cannot hold back a spike with {late}, which weighs by a step before: leave out either."
            )
        self.clip = clip
        self.gamma = gamma
        self.rho = rho
        self.beta = beta
        self.magnitude: Magnitude = magnitude
        self.direction: Direction = direction
        self.reduction: Reduction = reduction
        # 1/M in the dtype of λ.
        self._even = torch.tensor(1 / len(self.tasks), dtype=self.last_weights.dtype, device="cpu").item()
        self.register_buffer("balance", torch.empty_like(self.last_weights))
        # Row 0 is u, row 1 is 1 − (1 − γ)^k, which obeys the same recursion with 1 in the place of the norm.
        self.register_buffer("averages", torch.empty(2, len(self.tasks), dtype=self.last_weights.dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Go back to the state before the first step; see :meth:`Fork.reset_parameters`."""
        super().reset_parameters()
        self.balance.fill_(self._even)
        self.averages.zero_()

    def tasks_changed(self) -> None:
        """Scale λ to sum 1 again; see :meth:`TaskState.tasks_changed`."""
        total = self.balance.sum()
        self.balance.copy_(torch.where(total > 0, self.balance / total, self._even))

    @property
    def magnitudes(self) -> Tensor:
        """The bias-corrected moving averages û of the gradient norms, shape [M].

        NaN before a task's first step, and for ever with ``magnitude="none"``, which keeps no averages.
        """
        return self.averages[0] / self.averages[1]

    def step_at_once(self, gradients: Sequence[Tensor], factor: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Do as :meth:`Fork.step_at_once`, with the usual options, on one rank that measures in each step."""
        buffers = self._buffers  # buffers as attributes take several times as long
        if type(self) is not MultiBalance or not self._usual or buffers["known_weights"] is not None:
            return None
        if len(gradients) > MOST_IN_REGISTERS and not gradients[0].is_cpu:
            return None
        kernels = kernels_for(gradients) if self.last_gram.dtype == torch.float32 else None
        if kernels is None or group_of_several(self.process_group) is not None:
            return None
        if factor is not None:
            factor = divisor_beside(gradients[0], factor)
        last = self.last_gram, self.last_weights, self.last_present
        found: tuple[Tensor, Tensor] = kernels.balanced_sum(
            gradients, factor, buffers["averages"], buffers["balance"], last, options=self._options
        )
        return found

    def solve_step(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """Do as :meth:`Fork.solve_step`; with the default options by one kernel, where there is one."""
        kernels = kernels_for(gram) if self._usual and type(self).weigh is MultiBalance.weigh else None
        if kernels is None:
            return super().solve_step(gram)
        last = self.last_gram, self.last_weights, self.last_present
        found: tuple[Tensor, Tensor] = kernels.balance_step(
            gram, self.averages, self.balance, last, known=self.known_weights, options=self._options
        )
        self.remember_step()
        return found

    @property
    def _usual(self) -> bool:
        return self.magnitude == "averaged" and self.direction in {"cosine", "none"} and self.clip is None

    @property
    def _options(self) -> BalanceOptions:
        preferences = None if self.task_weights is None else self.preferences
        unit = 1.0 if self.reduction == "mean" else self._even
        cosine = self.direction == "cosine"
        # In each step, so without the checks of BalanceOptions(…), which take longer than all of this.
        return tuple.__new__(BalanceOptions, (preferences, self.gamma, self.rho * self._even, self.beta, unit, cosine))

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """Return ``M λ_m p_m r_m / n_m`` after one step of the averages and of λ; see :meth:`Fork.weigh`."""
        norms = gram.diagonal().sqrt()
        lengths = norms if self.magnitude == "none" else self._step_averages(norms, present)
        divisors = torch.where(present, norms, torch.inf)  # tasks that are not present come out as 0
        ratios = lengths / divisors
        if self.direction == "cosine":
            self._step_balance(gram, present, divisors.reciprocal())
        elif self.direction == "raw":
            # Gradients longer than 1e6 move λ to an end of the simplex, and need not overflow on the way.
            self._step_balance(gram, present, ratios * (1e6 / lengths.amax()).clamp(max=1.0))
        elif self.direction == "gram":
            self._step_balance(gram, present, _to_unit_mean_square(lengths, present) / divisors)
        if self.task_weights is not None:
            ratios = ratios * self.preferences
        # Divided by 1/M as λ has it, so that equal λ, themselves rounded, give exactly 1.
        return self.balance * ratios if self.reduction == "mean" else self.balance / self._even * ratios

    def _step_averages(self, norms: Tensor, present: Tensor) -> Tensor:
        """Move u and return r: shape [M], or no dimensions where it is one number for all."""
        newest = norms
        if self.clip is not None:
            newest = torch.where(self.averages[1] > 0, norms.minimum(self.clip * self.magnitudes), norms)
        here = present.to(norms.dtype)
        average, correction = self.averages.unbind()
        average.lerp_(newest, self.gamma * here)
        correction.lerp_(here, self.gamma * here)
        if self.magnitude == "uncorrected":
            return average.clone()
        # A task that has never been present has 0 / tiny.
        corrected = average / correction.clamp(min=torch.finfo(norms.dtype).tiny)
        if self.magnitude == "own":
            return corrected
        mean = corrected.sum() / correction.count_nonzero()
        return mean if self.magnitude == "equal" else torch.where(present, newest * (mean / corrected), 0.0)

    def _step_balance(self, gram: Tensor, present: Tensor, scale: Tensor) -> None:
        """λ ← Proj_Δ(λ − β S (λ + ρ/M)) with ``S_ij = scale_i gram_ij scale_j``; ``scale`` is 0 for absent tasks."""
        slope = torch.mv(gram, scale * (self.balance + self.rho * self._even)) * scale
        free = 1 - torch.where(present, 0.0, self.balance).sum()
        moved = project_simplex(torch.sub(self.balance, slope, alpha=self.beta), present=present, total=free)
        self.balance.copy_(torch.where(present, moved, self.balance))

    def monitored(self) -> dict[str, Tensor]:
        """Return the weights, û where there are averages, and λ; see :class:`equipoise.Monitor`."""
        averages = {} if self.magnitude == "none" else {"magnitude": self.magnitudes}
        return super().monitored() | averages | {"balance": self.balance.clone()}

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        return (
            f"{Fork.extra_repr(self)}, gamma={self.gamma}, rho={self.rho}, beta={self.beta}, "
            f"magnitude={self.magnitude!r}, direction={self.direction!r}, reduction={self.reduction!r}, "
            f"task_weights={self.task_weights!r}"
            f"{'' if self.clip is None else f', clip={self.clip}'}"
        )


def _to_unit_mean_square(lengths: Tensor, present: Tensor) -> Tensor:
    """Divide lengths by their root mean square; the balanced Gram matrix then has the number of tasks as its trace."""
    lengths = torch.where(present, lengths, 0.0)
    lengths = lengths / lengths.amax()  # squares of small numbers may vanish
    return lengths / (lengths.square().sum() / present.sum()).sqrt()
