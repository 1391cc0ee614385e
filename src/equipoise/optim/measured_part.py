"""The part of the shared parameters that PUB solves its weights from, where that is not all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.nn import Parameter

from equipoise.grad_scaler import note_grad_scalers
from equipoise.optim.averaging import Averaging
from equipoise.optim.checks import distinct
from equipoise.optim.last_layer import last_shared_layer, refuse_what_goes_past
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
        self._tasks: set[int] = set()  # those that were present when the layer was found
        self._trained: set[int] = set()  # the shared parameters that required a gradient then
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
        """Return the parameters that require a gradient; finds the layer first, and anew where others are trained.

        Raises:
            ValueError: the list holds a parameter that is not shared.
            NoLastLayerError: the graph of the losses does not say which layer is the last; of ``"auto"`` also where a
                path goes past it.
            RuntimeError: the whole list is frozen.
        """
        trained = {id(p) for p in shared if p.requires_grad}
        if self._list is None and (not self.parameters or trained != self._trained):
            self.parameters, self._tasks, self._trained = [], set(), trained
            self._find(losses, shared, averaging)
        self.check(shared)
        found = [p for p in self.parameters if p.requires_grad]
        if self._list is not None and not found:
            raise RuntimeError(
                f"solve_on holds {len(self._list)} parameters, all of which are frozen, so that there is no gradient "
                "to solve from. Name those of a layer that is trained."
            )
        return found

    def grown(
        self,
        tasks: Iterable[int],
        losses: Iterable[Tensor],
        shared: Sequence[Parameter],
        averaging: Averaging | None,
    ) -> bool:
        """Return whether the layer holds more parameters now that these tasks are present, and note the tasks.

        Looks only where a task was never present before; it may reach shared parameters by a path of its own.

        Args:
            tasks: those present on any rank.
            losses: those present on this one.
            shared: the parameters that tasks share.
            averaging: the ranks; None for one process.

        Raises:
            NoLastLayerError: as by :meth:`trained`.
        """
        known, self._tasks = self._tasks, self._tasks | set(tasks)
        before = len(self.parameters)
        if self._list is None and known and known != self._tasks:
            self._find(losses, shared, averaging)
        return len(self.parameters) > before

    def _find(self, losses: Iterable[Tensor], shared: Sequence[Parameter], averaging: Averaging | None) -> None:
        """Add the last layer of these losses to the parameters."""
        ranks, losses = averaging.group if averaging else None, list(losses)
        layer = {id(p) for p in (*self.parameters, *last_shared_layer(losses, shared, ranks))}
        parameters = [p for p in shared if id(p) in layer]
        if self.chooses and parameters:
            refuse_what_goes_past(losses, shared, parameters, ranks)
        self.parameters = parameters

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
