"""One step of MultiBalance on Python's numbers, for the CPU.

The M×M arithmetic of :meth:`equipoise.MultiBalance.weigh` is nothing, but as tensor operations it is thirty starts,
each far longer than the arithmetic once a training step has swept the caches. The tests hold the two forms against
each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Step", "StepState"]


@dataclass
class StepState:
    """λ⁰, λ, u and 1 − (1 − γ)^k of every task; a step moves the last three in place."""

    preferences: Sequence[float]
    balance: list[float]
    average: list[float]
    correction: list[float]


@dataclass(frozen=True)
class Step:
    """The options of ``MultiBalance`` that a step reads."""

    gamma: float
    rho: float
    beta: float
    magnitude: str
    direction: str
    even: float  # 1/M as the dtype of λ has it
    clip: float = math.inf

    def move(self, state: StepState, gram: Sequence[Sequence[float]], present: Sequence[bool]) -> list[float]:
        """Moves ``state`` by one step and returns ``M λ_m r_m / n_m``, 0 for tasks that are not present."""
        here = [task for task, is_present in enumerate(present) if is_present]
        norms = {task: math.sqrt(gram[task][task]) for task in here}
        lengths = norms if self.magnitude == "none" else self._move_averages(state, norms)
        if self.direction == "cosine":
            self._move_balance(state, gram, {task: 1 / norms[task] for task in here})
        elif self.direction == "gram":
            mean = math.hypot(*lengths.values()) / math.sqrt(len(here) or 1)  # squares of small numbers may vanish
            self._move_balance(state, gram, {task: lengths[task] / mean / norms[task] for task in here})
        # Divided by 1/M as λ's buffer has it, so that equal λ, themselves rounded, give exactly 1.
        return [
            share / self.even * (lengths[task] / norms[task]) if task in norms else 0.0
            for task, share in enumerate(state.balance)
        ]

    def _move_averages(self, state: StepState, norms: dict[int, float]) -> dict[int, float]:
        for task, norm in norms.items():
            newest = norm
            if state.correction[task] > 0:
                newest = min(norm, self.clip * (state.average[task] / state.correction[task]))
            state.average[task] += self.gamma * (newest - state.average[task])
            state.correction[task] += self.gamma * (1 - state.correction[task])
        lengths = {task: state.average[task] / state.correction[task] for task in norms}
        if self.magnitude == "equal" and norms:
            return dict.fromkeys(norms, math.fsum(lengths.values()) / len(norms))
        return lengths

    def _move_balance(self, state: StepState, gram: Sequence[Sequence[float]], scale: dict[int, float]) -> None:
        """λ ← Proj(λ − β S (λ + ρ λ⁰)) over the present tasks, which keep the share of λ that they have."""
        balance = state.balance
        point = {task: own * (balance[task] + self.rho * state.preferences[task]) for task, own in scale.items()}
        moved = {}
        for task, own in scale.items():
            row = gram[task]
            slope = own * math.fsum(row[other] * weight for other, weight in point.items())
            moved[task] = balance[task] - self.beta * slope
        total = math.fsum(share for task, share in enumerate(balance) if task not in scale) - 1
        threshold = -math.inf
        for place, value in enumerate(sorted(moved.values(), reverse=True), start=1):
            total += value
            threshold = max(threshold, total / place)
        for task, value in moved.items():
            balance[task] = max(value - threshold, 0.0)
