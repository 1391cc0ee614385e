"""ESMM with a counterfactual loss of the conversion given a click."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional

from equipoise.ranking import layers
from equipoise.ranking.labels import targets_and_present
from equipoise.ranking.models.base import ForkFactory
from equipoise.ranking.models.esmm import ESMM
from equipoise.ranking.models.nested_tasks import log_odds_of_product
from equipoise.schema import Schema

__all__ = ["ESCM2"]

_RISKS: Final = ("ips", "dr")


class ESCM2(ESMM):
    r"""ESMM whose nested tasks have a second loss, which corrects for conversions that only a click would have shown.

    Wang et al., "ESCM²: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion Rate Estimation", SIGIR
    2022, DOI 10.1145/3477495.3531972. With o the label of the parent (the click), ô its probability, r the label of the
    nested task, r̂ its probability given the parent and δ their cross entropy, the loss of the nested task is that of
    ESMM, plus λ times one of two counterfactual risks, a mean over all rows (section 3)::

        ips:  o δ / ô                                     inverse propensity scores
        dr:   δ̂ + o (δ − δ̂) / ô + o (δ − δ̂)² / ô          doubly robust: the error's estimate, and the estimator's loss

    The propensity ô is a constant in them: no gradient flows through it. δ̂ is the output of one more tower per nested
    task. A row where one of the two labels is missing counts nothing.

    **What is shared, where the fork stands.** As in :class:`ESMM`. The second loss reads the nested task's own branch
    alone, so it belongs to this task; the tower of δ̂ is the task's own.

    Deviations: δ̂ is a softplus, so that it has the range of the cross entropy. 1 / ô is cut at ``largest_weight`` in
    both risks, which is 15 for ips in PaddleRec's code.

    Args:
        schema: the features and the tasks; every nested binary task has ``over="all"``.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        tower: widths of each tower's hidden layers.
        risk: "ips" or "dr".
        risk_weight: λ. PaddleRec's two weights, of the risk and of ESMM's loss, have the ratio 1.
        largest_weight: the largest inverse propensity score.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: as for ESMM; ``risk`` is another one, ``risk_weight`` is negative, or ``largest_weight`` under 1.

    Example:
        >>> import torch
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> tasks = [Task("click"), Task("conversion", after="click", over="all")]
        >>> model = ESCM2(Schema([Categorical("user", 9)], [], tasks), risk="dr")
        >>> click, conversion = model(torch.tensor([[3], [5]]), torch.empty(2, 0))
        >>> further = model.auxiliary_losses(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        >>> further["conversion"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        fork: ForkFactory | None = None,
        embedding_dim: int = 8,
        interaction: str = "none",
        tower: Sequence[int] = (128, 64),
        risk: str = "ips",
        risk_weight: float = 1.0,
        largest_weight: float = 15.0,
        sparse: bool = False,
    ) -> None:
        if risk not in _RISKS:
            raise ValueError(f"ESCM2: expected a risk out of {', '.join(_RISKS)}; found {risk!r}.")
        if not risk_weight >= 0 or not largest_weight >= 1:
            raise ValueError(
                "ESCM2: expected a risk_weight from 0 up and a largest_weight from 1 up; found "
                f"{risk_weight!r} and {largest_weight!r}."
            )
        super().__init__(
            schema, fork=fork, embedding_dim=embedding_dim, interaction=interaction, tower=tower, sparse=sparse
        )
        self.risk, self.risk_weight, self.largest_weight = risk, risk_weight, largest_weight
        if risk == "dr":
            self.heads = nn.ModuleList(
                head if parent is None else _WithImputation(head, layers.tower(self.embedding.width, tower))
                for head, parent in zip(self.heads, self.parents, strict=True)
            )
        self._seen: dict[int, tuple[Tensor, ...]] = {}

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        branches = self.branches(self.fork, self._read_by_tasks(categorical, numeric))
        outputs, seen = [], {}
        for task, branch in enumerate(branches):
            logits = self._chain(task, self._conditional(task, branch), branch[0])
            outputs.append(log_odds_of_product(logits))
            if self.training and self.parents[task] is not None:
                head = self.heads[task]
                imputed = (head.imputation(branch[1]),) if isinstance(head, _WithImputation) else ()
                seen[task] = (logits[0], log_odds_of_product(logits[1:]).detach(), *imputed)
        self._seen = seen
        return tuple(outputs)

    def auxiliary_losses(self, labels: Tensor, /) -> Mapping[str, Tensor] | None:
        """Return λ times the counterfactual risk of each row, by nested task; see :class:`RankingModel`."""
        seen, self._seen = self._seen, {}
        targets, present = targets_and_present(labels)
        found = {}
        for task, (logit, parent_logit, *imputed) in seen.items():
            parent = self.parents[task]
            known = present[:, task] & present[:, parent]
            clicked = targets[:, parent] * (1 + (-parent_logit).to(targets).exp()).clamp(
                max=self.largest_weight
            )  # o / ô
            error = functional.binary_cross_entropy_with_logits(logit.to(targets), targets[:, task], reduction="none")
            if imputed:
                estimate = functional.softplus(imputed[0].to(targets))
                missed = error - estimate
                risk = estimate + clicked * (missed + missed.square())
            else:
                risk = clicked * error
            found[self.schema.task_names[task]] = self.risk_weight * risk.where(known, 0.0)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Tensors of a forward pass cannot be copied.
        return self.__dict__ | {"_seen": {}}


class _WithImputation(nn.Module):
    """The tower of a nested task, and that of the estimate δ̂ of its error."""

    def __init__(self, tower: nn.Module, imputation: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.imputation = imputation

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logit of the task given its parent."""
        logit: Tensor = self.tower(inputs)
        return logit
