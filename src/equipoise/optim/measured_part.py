"""The part of the shared parameters that PUB solves its weights from, where that is not all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.nn import Parameter

from equipoise.grad_scaler import note_grad_scalers
from equipoise.optim.averaging import Averaging
from equipoise.optim.checks import distinct
from equipoise.optim.last_layer import NoLastLayerError, goes_past, last_shared_layer
from equipoise.optim.passes import gradients_of_each

__all__ = ["MeasuredPart", "unscaled_gradients"]


class MeasuredPart:
    """The last shared layer, or the user's list of shared parameters.

    Args:
        chosen: ``"last"``, ``"auto"`` for the last layer where no path goes past it, or a list.

    Attributes:
        chooses: whether all shared parameters are to take the part's place where the last layer does not do.
        parameters: those of the list or the layer; empty until the layer is found.

    Raises:
        ValueError: ``chosen`` is none of these, or an empty list.
    """

    def __init__(self, chosen: str | Iterable[Parameter]) -> None:
        if isinstance(chosen, str) and chosen not in ("auto", "last"):
            raise ValueError(
                f'solve_on must be "auto", "all", "last" or a list of shared parameters, found {chosen!r}.'
            )
        self.chooses = isinstance(chosen, str) and chosen == "auto"
        self._list = None if isinstance(chosen, str) else distinct(chosen)
        if self._list == []:
            raise ValueError(
                'solve_on must hold at least one shared parameter, or be "auto", "all" or "last"; found none.'
            )
        self.parameters: list[Parameter] = self._list or []
        note_grad_scalers()  # gradients are measured before a GradScaler takes its factor out

    def check(self, shared: Sequence[Parameter]) -> None:
        """Refuse a list with parameters that are not shared.

        Raises:
            ValueError: there is one.
        """
        known = {id(p) for p in shared}
        for p in self._list or []:
            if id(p) not in known:
                found = f"a tensor of shape {tuple(p.shape)}" if isinstance(p, Tensor) else type(p).__name__
                raise ValueError(f"solve_on must hold shared parameters, found {found} that is not one of `shared`.")

    def trained(
        self, losses: Iterable[Tensor], shared: Sequence[Parameter], averaging: Averaging | None
    ) -> list[Parameter]:
        """Return the parameters that require a gradient; finds the layer anew where all of it has been frozen.

        Raises:
            ValueError: the list holds a parameter that is not shared.
            NoLastLayerError: the graph of the losses does not say which layer is the last; of ``"auto"`` also where a
                path goes past it.
            RuntimeError: the whole list is frozen.
        """
        found = [p for p in self.parameters if p.requires_grad]
        if self._list is None and not found:
            ranks, losses = averaging.group if averaging else None, list(losses)
            found = last_shared_layer(losses, shared, ranks)
            if self.chooses and found and goes_past(losses, shared, found, ranks):
                raise NoLastLayerError("paths from the losses to other shared parameters go past the last layer")
            self.parameters = found
        self.check(shared)
        if self._list is not None and not found:
            raise RuntimeError(
                f"solve_on holds {len(self._list)} parameters, all of which are frozen, so that there is no gradient "
                "to solve from. Name those of a layer that is trained."
            )
        return found

    def __repr__(self) -> str:
        if self.chooses and not self.parameters:
            return "'auto'"
        return "'last'" if self._list is None else f"[{len(self._list)} parameters]"


def unscaled_gradients(
    losses: Mapping[int, Tensor], parameters: Sequence[Parameter], count: int, averaging: Averaging | None
) -> tuple[dict[int, list[Tensor | None]], bool]:
    """Return the gradients of each task that any rank has, averaged over the ranks, and whether they are unscaled.

    The factor of a ``GradScaler`` is taken out where it is known, which it is not for every way to scale a loss.

    Args:
        losses: those present on this rank, by the number of the task.
        parameters: those to measure at; a small part of the model.
        count: the number of tasks.
        averaging: the ranks; None for one process.
    """
    found, factors = gradients_of_each(losses.values(), parameters)
    of_task: list[list[Tensor | None]] = [[None for _ in parameters] for _ in range(count)]
    for task, own, factor in zip(losses, found, factors, strict=True):
        of_task[task] = [g if g is None or factor is None else g / factor.to(g.device) for g in own]
    tasks = list(losses)
    if averaging is not None:
        flat = [g for own in of_task for g in own]
        flat, present = averaging.average([*parameters] * count, flat, [task in losses for task in range(count)])
        width = len(parameters)
        of_task = [flat[task * width : (task + 1) * width] for task in range(count)]
        tasks = [task for task, here in enumerate(present) if here]
    return {task: of_task[task] for task in tasks}, None not in factors
