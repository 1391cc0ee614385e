"""A fork that brings every task's gradient to a length of 1, or part of the way there."""

from collections.abc import Sequence

from torch import Tensor

from equipoise import Fork
from equipoise.methods import Method


class UnitGradients(Fork):
    """Divides each task's gradient by its length to the power of ``power``."""

    def __init__(self, tasks: Sequence[str], *, power: float = 1.0) -> None:
        super().__init__(tasks)
        self.power = power

    def weigh(self, gram: Tensor, present: Tensor, /) -> Tensor:
        """``n ** -power``."""
        return gram.diagonal().pow(-self.power / 2)


UNIT_GRADIENTS = Method("unit-gradients", "Unit gradients", "Gradients at the fork at length 1.", fork=UnitGradients)
