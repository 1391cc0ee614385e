"""The forms of PUB, which differ in what they weigh, in the length of the step and in the optimizer's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FORMS", "Form", "FormName", "form_named"]

FormName = Literal["ours", "matched", "authors", "literal", "shipped"]
"""The names that ``PUB(form=...)`` takes."""


@dataclass(frozen=True)
class Form:
    """One form of PUB.

    Attributes:
        weighs: ``"gradients"``: α weighs the gradients, and the optimizer takes its own step with their weighted sum;
            ``"updates"``: α weighs the updates that the optimizer would make from each gradient.
        scale: the length of α. ``"mean 1"`` for gradients; for updates ``"root norm"`` multiplies the solution by
            ``√‖G‖_F``, and ``"solution"`` leaves it as it solves ``α_m (G α)_m = 1``.
        matched: rescale the joint update to the norm of the optimizer's own.
        weighted_state: advance the optimizer's state with ``Σ α_m g_m`` instead of ``Σ g_m``.
        solves: False keeps α at 1.
        spans_towers: weigh every parameter of the optimizer, not the shared ones alone. A parameter that a task does
            not reach gets no update from this task, and decoupled weight decay comes once for each task that reaches
            the parameter.
    """

    weighs: Literal["gradients", "updates"]
    scale: Literal["mean 1", "root norm", "solution"]
    matched: bool = False
    weighted_state: bool = False
    solves: bool = True
    spans_towers: bool = False


FORMS: Final[dict[FormName, Form]] = {
    "ours": Form("gradients", "mean 1"),
    "matched": Form("updates", "root norm", matched=True),
    "authors": Form("updates", "root norm", weighted_state=True),
    "literal": Form("updates", "solution", weighted_state=True, spans_towers=True),
    "shipped": Form("updates", "solution", solves=False, weighted_state=True, spans_towers=True),
}
"""Every form by its name; :class:`equipoise.PUB` says what they mean."""


def form_named(name: str, /) -> Form:
    """Return the form of this name.

    Raises:
        ValueError: there is no form of this name.
    """
    for known, form in FORMS.items():
        if known == name:
            return form
    raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, found {name!r}.")
