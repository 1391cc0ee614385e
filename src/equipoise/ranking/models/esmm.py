"""The entire space model: the probability of a nested task over all rows is a product of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from equipoise.ranking import layers
from equipoise.ranking.interactions import build_input
from equipoise.ranking.models.base import ForkFactory, RankingModel
from equipoise.ranking.models.nested_tasks import log_odds_of_product, parents_over_all_rows
from equipoise.schema import Schema

__all__ = ["ESMM"]


class ESMM(RankingModel):
    """Embeddings that all tasks share and a tower per task; nested tasks are learned over all rows, as products.

    Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate", SIGIR
    2018, DOI 10.1145/3209978.3210104. The tower of a conversion nested in a click gives pCVR, the probability of a
    conversion given a click. Its loss is that of their product over all rows (equations 1 and 3)::

        pCTCVR = pCTR · pCVR

    The model's output for the conversion is the logit of this product, from :func:`log_odds_of_product`. A task nested
    in a nested task multiplies along the whole chain. Tasks that are not nested, and regressions, have a plain tower.

    **What is shared.** The conversion's loss reaches the click's tower through the product. So the tower of a task with
    nested tasks is shared, and only the towers of tasks in which nothing is nested are their own.

    **Where the fork stands.** It takes all that tasks read of the shared part, as one tuple: the logits of the shared
    towers, shape [B] each, and the embedding, shape [B, width], for the towers behind the fork.

    Deviations: embeddings are put side by side, not summed per field group; towers end in one logit, not in two.

    Args:
        schema: the features and the tasks; every nested binary task has ``over="all"``.
        fork: builds the fork; None: the plain sum of the tasks' gradients.
        embedding_dim: width of one categorical feature's embedding; 18 in the paper.
        interaction: how features interact before the model reads them, see :func:`build_input`.
        tower: widths of each tower's hidden layers; 360-200-80 in the paper.
        sparse: give the embedding table sparse gradients.

    Raises:
        ValueError: no binary task is nested, or one has ``over="parent"``.

    Example:
        >>> import torch
        >>> from equipoise.schema import Categorical, Schema, Task
        >>> tasks = [Task("click"), Task("conversion", after="click", over="all")]
        >>> model = ESMM(Schema([Categorical("user", 9)], [], tasks))
        >>> click, conversion = model(torch.tensor([[3], [5]]), torch.empty(2, 0))
        >>> bool((conversion < click).all())
        True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        fork: ForkFactory | None = None,
        embedding_dim: int = 8,
        interaction: str = "none",
        tower: Sequence[int] = (128, 64),
        sparse: bool = False,
    ) -> None:
        super().__init__(schema)
        self.parents = parents_over_all_rows(schema, type(self).__name__)
        self.fork = self.new_fork(fork)
        self.embedding = build_input(schema, embedding_dim=embedding_dim, interaction=interaction, sparse=sparse)
        towers = [layers.tower(self.embedding.width, tower) for _ in schema.tasks]
        self.shared_towers = nn.ModuleDict(
            {str(task): built for task, built in enumerate(towers) if task in self.parents}
        )
        self.heads = nn.ModuleList(
            nn.Identity() if task in self.parents else built for task, built in enumerate(towers)
        )

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`RankingModel.forward`."""
        branches = self.branches(self.fork, self._read_by_tasks(categorical, numeric))
        return tuple(
            log_odds_of_product(self._chain(task, self._conditional(task, branch), branch[0]))
            for task, branch in enumerate(branches)
        )

    def _read_by_tasks(self, categorical: Tensor, numeric: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = self.embedding(categorical, numeric)
        # A view is a node of its own beside the shared towers, see MMoE.
        return {task: tower(inputs) for task, tower in self.shared_towers.items()}, inputs.view_as(inputs)

    def _conditional(self, task: int, branch: Any) -> Tensor:
        """Return the logit of a task given its parent, from its branch."""
        logits, inputs = branch
        found: Tensor = self.heads[task](logits.get(str(task), inputs))
        return found

    def _chain(self, task: int, logit: Tensor, shared_logits: dict[str, Tensor]) -> list[Tensor]:
        """Return the conditional logits of a task and of all its ancestors."""
        found, parent = [logit], self.parents[task]
        while parent is not None:
            found.append(shared_logits[str(parent)])
            parent = self.parents[parent]
        return found
