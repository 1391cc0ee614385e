"""Methods that only weigh losses: the plain sum, and every task on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from equipoise.methods.method import Method

__all__ = ["EqualWeights", "SingleTask"]


@dataclass(frozen=True)
class EqualWeights(Method):
    """The plain sum of losses, which is what most rankers train with today."""

    family: ClassVar[str] = "loss weights"


@dataclass(frozen=True)
class SingleTask(Method):
    """One model per task, trained on its loss alone, from the weights that the joint model starts with."""

    family: ClassVar[str] = "loss weights"

    def groups(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Every task apart."""
        return [(task,) for task in tasks]
