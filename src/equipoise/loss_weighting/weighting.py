"""Loss weighting: computes one weight per task from the losses; its state is saved in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipoise.preferences import preference_factors

__all__ = ["LossWeighting"]


class LossWeighting(nn.Module):
    r"""Weighs the tasks' losses by a scalarization ``S`` of them, such as those of ``torchjd.scalarization``.

    With ``L`` the losses, the model is trained on ``Σ_m w_m L_m``, ``w_m = ∂S(L)/∂L_m`` held constant: its gradient is
    that of ``S(L)``. Parameters of the scalarizer get their gradient of ``S`` in the same call.

    An absent task (no label in the batch, or a loss that is not finite) enters ``S`` with its last known loss, or 1 if
    it had none. The weighting's state then stays finite; the absent task has no gradient in the model.

    ``task_weights`` multiply the weights after ``S``, which is not told of them: next to a task of weight 1, that of
    weight 9 has 9 times the weight in the sum of losses that it would have with equal preferences. Learned parameters
    of ``S`` get the same gradient. A method that equalises what it measures, by ``update`` or ``learn_from_gram``, is
    shown each measure over the task's weight, so that it does not take the preference back.

    A saved state is matched by the tasks' names; their order may differ.

    Over several ranks :meth:`weigh` must be given the losses of the global batch, so that all ranks find equal weights.

    Args:
        tasks: the tasks' names.
        scalarizer: from losses of shape [M] to a scalar. It may have methods to learn by, besides parameters:
            ``update(losses)`` after each step, to step its parameters itself, as in torchjd; ``step()`` after each
            epoch, likewise; ``observe(losses, present)`` before each step's weights; ``learn_from_gram(gram, losses,
            present)`` after each backward pass, ``gram`` the [M, M] inner products of the weighted losses' gradients
            at the model's forks.
        update_on: the batch whose losses ``update`` is given: the "same batch" once more after the step, which takes a
            second forward pass, or the "next batch" before its step, which takes none.
        task_weights: preferences, one positive number per task in the order of ``tasks``; all equal if None.

    Attributes:
        tasks: the tasks' names.
        last_losses: the losses that ``S`` was last given, shape [M].
        last_weights: the weights of the last step, shape [M].
        last_present: which tasks were present in the last step, bool, shape [M].

    Example:
        >>> weighting = LossWeighting(["click", "like"], lambda losses: losses.log().sum())
        >>> weighting.weigh(torch.tensor([0.5, 4.0]), torch.tensor([True, True]))
        tensor([2.0000, 0.2500])
        >>> weighting.weigh(torch.tensor([0.25, 0.0]), torch.tensor([True, False]))
        tensor([4.0000, 0.2500])
    """

    last_losses: Tensor
    last_weights: Tensor
    last_present: Tensor

    def __init__(
        self,
        tasks: Sequence[str],
        scalarizer: Any,
        *,
        update_on: Literal["same batch", "next batch"] = "same batch",
        task_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.scalarizer = scalarizer
        self.update_on = update_on
        self.begun = False  # the first batch is next to none
        self.has_update = hasattr(scalarizer, "update")
        self.learns_after_step = self.has_update and update_on == "same batch"
        self.learns_after_epoch = hasattr(scalarizer, "step")
        self.learns_from_gram = hasattr(scalarizer, "learn_from_gram")
        ones = torch.ones(len(self.tasks))
        self.register_buffer("last_losses", ones)
        # No buffers: nobody should average, broadcast or save them.
        self.last_weights = ones.clone()
        self.last_present = torch.zeros_like(ones, dtype=torch.bool)
        self.task_weights = None if task_weights is None else [float(weight) for weight in task_weights]
        self.preferences = torch.tensor(preference_factors(task_weights, self.tasks))
        self.register_load_state_dict_pre_hook(_bring_into_order)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.last_weights = self.last_weights.to(self.last_losses)
        self.last_present = self.last_present.to(self.last_losses.device)
        self.preferences = self.preferences.to(self.last_losses)
        return self

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the scalarizer's parameters for the model's optimizer; none if the scalarizer steps them itself."""
        if self.has_update or not isinstance(self.scalarizer, nn.Module):
            return []
        return [parameter for parameter in self.scalarizer.parameters() if parameter.requires_grad]

    def weigh(self, losses: Tensor, present: Tensor, /) -> Tensor:
        """Return the weights of this step's losses; no host sync besides the scalarizer's own.

        Args:
            losses: those of the global batch, shape [M].
            present: which tasks have a label in the global batch, bool, shape [M].

        Returns:
            Weights without a gradient, shape [M].
        """
        before = self.last_losses.clone()
        values = self._seen(losses, present)
        if self.begun and self.has_update and self.update_on == "next batch":
            self._update(before, values)
        self.begun = True
        if hasattr(self.scalarizer, "observe"):
            self.scalarizer.observe(values, self.last_present)
        values.requires_grad_()
        learned = self.learned_parameters()
        with torch.enable_grad():
            found = torch.autograd.grad(self.scalarizer(values), [values, *learned])
        for parameter, gradient in zip(learned, found[1:], strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        weights = found[0] if self.task_weights is None else found[0] * self.preferences
        self.last_weights.copy_(weights)
        return weights

    def after_backward(self, gram: Tensor, /) -> None:
        """Show the scalarizer the Gram matrix of the step's backward pass, if it learns from it.

        Args:
            gram: inner products of the weighted losses' gradients over the global batch in unscaled units, shape
                [M, M]; a task whose diagonal entry is 0 has no part.
        """
        if self.learns_from_gram:
            gram = (gram / (self.preferences * self.preferences.unsqueeze(1))).to(self.last_losses.dtype)
            self.scalarizer.learn_from_gram(gram, self.last_losses, self.last_present & (gram.diagonal() > 0))

    def after_step(self, losses: Tensor, present: Tensor, /) -> None:
        """Call the scalarizer's ``update`` after the optimizer's step, if it takes the same batch.

        Args:
            losses: those of the same batch after the step, shape [M].
            present: as in :meth:`weigh`.
        """
        if self.learns_after_step:
            before = self.last_losses.clone()
            self._update(before, self._seen(losses, present))

    def after_epoch(self) -> None:
        """Call the scalarizer's ``step`` at the end of an epoch, if it has one."""
        if self.learns_after_epoch:
            self.scalarizer.step()

    def monitored(self) -> dict[str, Tensor]:
        """Return quantities per task for the monitor: name -> copy on the device, shape [M]."""
        return {"weight": self.last_weights.clone()}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tasks, and the scalarizer's state besides parameters: numbers, tensors, an optimizer's state."""
        held = {
            name: value.state_dict() if isinstance(value, Optimizer) else value
            for name, value in self._attributes().items()
        }
        return {"tasks": list(self.tasks), "begun": self.begun, "scalarizer": held}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`get_extra_state` returned.

        Raises:
            ValueError: the scalarizer holds other things than the saved one did.
        """
        self._create_late_attributes()
        now, saved = self._attributes(), state["scalarizer"]
        if now.keys() != saved.keys():
            raise ValueError(f"Expected a scalarizer's state of {sorted(now)}, found {sorted(saved)}.")
        for name, value in saved.items():
            held = now[name]
            if isinstance(held, Optimizer) and value is not None:
                held.load_state_dict(value)
            else:
                setattr(self.scalarizer, name, _on(self.last_losses.device, value))
        self.begun = state["begun"]

    def extra_repr(self) -> str:
        """Return the tasks, the scalarizer if it is not a module, and the preferences."""
        shown = "" if isinstance(self.scalarizer, nn.Module) else f", scalarizer={self.scalarizer!r}"
        preferring = "" if self.task_weights is None else f", task_weights={self.task_weights}"
        learning = ", update_on='next batch'" if self.update_on == "next batch" else ""
        return f"tasks={list(self.tasks)}{shown}{learning}{preferring}"

    def _update(self, before: Tensor, after: Tensor) -> None:
        """Call ``update`` with the losses after a step, the logarithm of their fall divided by the preferences."""
        if self.task_weights is not None:
            before = before.clamp(min=torch.finfo(before.dtype).tiny)
            after = before * (after / before) ** (1 / self.preferences)
        self.scalarizer.update(after)

    def _seen(self, losses: Tensor, present: Tensor) -> Tensor:
        losses = losses.detach()
        here = present & losses.isfinite()
        values = torch.where(here, losses, self.last_losses)
        self.last_losses.copy_(values)
        self.last_present.copy_(here)
        return values

    def _attributes(self) -> dict[str, Any]:
        own = vars(self.scalarizer).keys() - vars(nn.Module()).keys() if isinstance(self.scalarizer, nn.Module) else ()
        return {name: value for name in sorted(own) if not callable(value := getattr(self.scalarizer, name))}

    def _create_late_attributes(self) -> None:
        """Make one step and undo it, because torchjd's FAMO creates its optimizer in the first step."""
        if self.has_update:
            ones = torch.ones_like(self.last_losses)
            self.scalarizer(ones)
            self.scalarizer.update(ones)


def _bring_into_order(weighting: LossWeighting, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Bring what a state holds of each task, the tensors of shape [M], into the order of the weighting's tasks.

    Raises:
        ValueError: the state belongs to other tasks.
    """
    extra = state.get(f"{prefix}_extra_state")
    if extra is None:  # strict loading says what is missing
        return
    saved, tasks = list(extra["tasks"]), list(weighting.tasks)
    if sorted(saved) != sorted(tasks):
        raise ValueError(
            f"Expected the state of a loss weighting over {', '.join(tasks)}; found that of {', '.join(saved)}: start "
            "the weighting anew where tasks come or go."
        )
    places = [saved.index(task) for task in tasks]
    for name in [name for name in state if name.startswith(prefix)]:
        state[name] = _in_order(state[name], places)


def _in_order(value: Any, places: list[int]) -> Any:
    if isinstance(value, Tensor):
        return value[places] if value.shape == (len(places),) else value
    if isinstance(value, Mapping):
        return {key: _in_order(entry, places) for key, entry in value.items()}
    if isinstance(value, list):
        return [_in_order(entry, places) for entry in value]
    return value


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, list):
        return [_on(device, entry) for entry in value]
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
