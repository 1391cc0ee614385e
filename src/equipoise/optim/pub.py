"""PUB: parameter update balancing, which weighs the tasks' updates rather than their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.adatask import AdaTask
from equipoise.optim.entries import OwnState
from equipoise.optim.joint_step import JointStep
from equipoise.optim.task_optimizer import Pending, TaskOptimizer
from equipoise.solvers import bargaining_weights

__all__ = ["PUB"]


class PUB(TaskOptimizer):
    """Balances the tasks' updates of the shared parameters (arXiv 2410.05806): α > 0 with ``G α = 1/α``.

    ``G_ij = ⟨u_i, u_j⟩`` over the shared parameters. α is solved in the steps 1, 1 + K, 1 + 2K, … counting
    from 0 (K = ``update_every``; in every step for K = 1) and kept in between; before the first solve it is
    1. All other parameters take the wrapped optimizer's own step on their own loss. With one task PUB is
    the wrapped optimizer to the last bit.

    ``utility`` says what u_m is, and what α weighs:

    - ``"update"`` (the paper): what the optimizer would subtract, without the learning rate, had g_m alone come,
      from the shared state. The shared parameters move by ``lr Σ α_m u_m``. Needs one backward pass per task in
      every step; for SGD, whose update is affine in the gradient, only when α is solved.
    - ``"gradient"`` (ours): ``g_m / √v̂``, the momentum taken out and one second moment v̂ for all: the state's,
      advanced by ``Σ g_m²`` (SGD: g_m itself). Then the optimizer takes its own step with ``Σ α_m g_m``. Between
      two solves one backward pass to the shared parameters, and one through the heads.

    ``step`` says how long the step is:

    - ``"authors"``: α is multiplied by ``√‖G‖_F``. With a shared state the step comes near M times the optimizer's.
    - ``"match"`` (ours): for updates, ``Σ α_m u_m`` is rescaled in every step to the norm of the optimizer's own,
      that on ``Σ g_m`` (with :class:`AdaTask` inside, ``Σ u_m``), so that a learning rate keeps its meaning. For
      gradients, α is rescaled to the mean 1.

    ``state`` says what advances a shared state where updates are weighed:

    - ``"sum"`` (ours): ``Σ g_m``, so that the state stays what the wrapped optimizer's own would be.
    - ``"weighted"`` (the paper): ``Σ α_m g_m``. Where tasks are nearly opposed, or one has a tiny update, α is large
      and wavers, and this state remembers it: on the toy of the paper's figure 2 the path becomes chaotic.

    The defaults are ours: on validation data ``utility="gradient"`` gains as much as any form does at its own learning
    rate, for a fraction of the cost (``benchmarks/results/defaults-updates-complete-journey.md``), and ``step="match"``
    lets a learning rate keep its meaning. The paper's form is ``utility="update", step="authors", state="weighted"``.

    Defined for odd cases: an absent task keeps its α and has no part; so does one whose update is zero or
    whose norm overflows. Opposed tasks (u_1 = −u_2) get large, equal α, bounded by the solver's ridge, and
    move nothing. Entries of a shared gradient that are not finite count as 0. Weight decay that is part of
    the gradient is part of every u_m; decoupled decay (AdamW) comes once. Where shared groups differ in
    their learning rate, u_m is measured in actual change of the parameters. Under a ``GradScaler`` call
    ``scaler.step(optimizer)`` without ``unscale_``.

    With ``torch.compile`` set ``torch._functorch.config.donated_buffer = False``: a backward pass per task
    keeps the graph.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop over all the model's parameters; or
            :class:`Clippy` around one, which then shrinks the joint update; or :class:`AdaTask` around one
            of these, for updates from a state per task.
        shared: the parameters to balance.
        update_every: K, at least 1.
        utility: ``"update"`` or ``"gradient"``; if None ``"gradient"``, but ``"update"`` around :class:`AdaTask`.
        step: ``"match"`` or ``"authors"``.
        state: ``"sum"`` or ``"weighted"``; of no effect with AdaTask or ``utility="gradient"``.
        tasks: the tasks' names for the monitor; "0", "1", … if not given.
        data_parallel: the ``DistributedDataParallel`` or TorchRec ``DistributedModelParallel`` module whose
            ranks train together, or their process group if they start from equal parameters; :class:`AdaTask`
            inside has been told already. ``backward`` then averages all that a step needs in one collective
            (tasks' gradients apart when α is solved), in the place of the module's own averaging, which it switches
            off (``require_backward_grad_sync``).

    Attributes:
        tasks: the tasks' names; empty before the first ``backward`` if not given.
        last_gram: G of the last solve, float64, shape [M, M], 0 for tasks that were absent.
        last_weights: α as it stands, float64, shape [M].
        last_present: which tasks were present in the last solve, bool, shape [M].

    Raises:
        TypeError: ``optimizer`` is none of these.
        ValueError: an option has another value than those named; ``shared`` is empty, holds what is not the
            optimizer's, or differs from AdaTask's; ``utility="gradient"`` with AdaTask, whose state would
            undo the weights; ``data_parallel`` holds no DDP, or one with other parameters than the optimizer's.
        RuntimeError: there are several ranks and no ``data_parallel``.

    Example:
        >>> shared, head = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
        >>> optimizer = PUB(torch.optim.Adam([shared, head], lr=0.5), shared=[shared])
        >>> optimizer.zero_grad()
        >>> optimizer.backward([shared.sum(), (shared * head).sum()])
        >>> optimizer.step()
        >>> optimizer.last_weights
        tensor([1., 1.], dtype=torch.float64)
    """

    _key = "pub"

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        shared: Iterable[Parameter],
        update_every: int = 10,
        utility: Literal["update", "gradient"] | None = None,
        step: Literal["authors", "match"] = "match",
        state: Literal["sum", "weighted"] = "sum",
        tasks: Sequence[str] | None = None,
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(optimizer, shared, data_parallel)
        if utility is None:
            utility = "update" if isinstance(optimizer, AdaTask) else "gradient"
        for name, value, allowed in (
            ("utility", utility, ("update", "gradient")),
            ("step", step, ("authors", "match")),
            ("state", state, ("sum", "weighted")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, found {value!r}.")
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, found {update_every}.")
        if isinstance(optimizer, PUB):
            raise TypeError("PUB wraps a torch.optim optimizer, Clippy or AdaTask, found PUB.")
        self._own = isinstance(optimizer, AdaTask)
        if isinstance(optimizer, AdaTask) and set(map(id, optimizer.shared)) != set(map(id, self.shared)):
            raise ValueError(
                f"PUB and the AdaTask inside it must share the same parameters, found {len(self.shared)} in PUB and "
                f"{len(optimizer.shared)} in AdaTask that are not the same."
            )
        if self._own and utility == "gradient":
            raise ValueError(
                'utility="gradient" cannot be balanced with AdaTask: each task\'s own state would undo the weights of '
                'the gradients. Use utility="update".'
            )
        self.update_every = update_every
        self.utility = utility
        self.step_form = step
        self.state_form = state
        self.tasks: tuple[str, ...] = ()
        self._steps = 0
        self._solved = False
        self._alpha = self.shared[0].new_ones(0, dtype=torch.float64)
        self.last_gram = self._alpha.new_zeros(0, 0)
        self.last_present = self._alpha.bool()
        if tasks is not None:
            self._begin(tuple(tasks))
        self._take_averaging_over()

    @property
    def last_weights(self) -> Tensor:
        """α as it stands, float64, shape [M]."""
        return self._alpha

    def _begin(self, tasks: tuple[str, ...]) -> None:
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"tasks must be names that differ, at least one; found {list(tasks)}.")
        self.tasks, self._count = tasks, len(tasks)
        self._alpha = self.shared[0].new_ones(len(tasks), dtype=torch.float64)
        self.last_gram = self._alpha.new_zeros(len(tasks), len(tasks))
        self.last_present = torch.zeros_like(self._alpha, dtype=torch.bool)

    def backward(self, losses: Sequence[Tensor | None] | Tensor, /) -> None:
        """See :meth:`TaskOptimizer.backward`."""
        if not self.tasks:
            self._begin(tuple(str(task) for task in range(len(losses))))
        super().backward(losses)

    def _due(self) -> bool:
        return self.update_every == 1 or self._steps % self.update_every == 1

    def _weighs_gradients(self) -> bool:
        """Whether the wrapped optimizer's own step with weighted gradients is all there is to do."""
        if self._count == 1 or self.utility == "gradient":
            return True
        shared = {id(p) for p in self.shared}
        groups = [group for group in self.param_groups if any(id(p) in shared for p in group["params"])]
        return self.step_form == "authors" and not self._own and all(map(self._rule.is_identity, groups))

    def _needs_each(self) -> bool:
        if self._count == 1:
            return False
        return self._due() or not (self._weighs_gradients() or (self._rule.affine and not self._own))

    def _needs_total(self) -> bool:
        return self._solved and not self._weighs_gradients() and (self.step_form == "match" or self.state_form == "sum")

    def _weights(self, tasks: list[int]) -> list[Tensor] | None:
        if not self._solved:
            return None
        weights = self._alpha.unbind()
        return [weights[task] for task in tasks]

    def _move(self, pending: Pending) -> None:
        tasks = pending.tasks
        if tasks and pending.of_task:
            self._move_each(pending, tasks)
        elif not tasks or self._weighs_gradients():
            self._step_all()
        else:
            self._move_mean(pending, tasks)
        self._steps += 1

    def _move_each(self, pending: Pending, tasks: list[int]) -> None:
        own = OwnState(len(pending.present), tasks) if self._own else None
        gradients = [pending.of_task[task] for task in tasks]
        joint = JointStep(self.torch_optimizer, self.shared, gradients, own)
        if self._due():
            self._solve(joint, tasks)
        weights = self._of(tasks)
        if self._weighs_gradients():
            for p, grad in joint.combine(weights):
                p.grad = grad
            self.torch_optimizer.step()
        else:
            self._step_heads()
            self._balanced_move(joint, weights, torch.ones_like(weights))

    def _move_mean(self, pending: Pending, tasks: list[int]) -> None:
        """The step from ``Σ α_m g_m`` alone: Σ α_m u(g_m) = s u(Σ α_m g_m / s) with s = Σ α_m, because u is
        affine.
        """
        size = self._of(tasks).sum()
        mean = [None if p.grad is None else p.grad / size.to(p.dtype) for p in self.shared]
        gradients, weights = [mean], size.unsqueeze(0)
        plain = weights  # before the first solve α = 1, and the weighted sum is the plain one
        if pending.total:
            gradients = [mean, pending.total]
            weights = torch.stack((size, torch.zeros_like(size)))
            plain = torch.stack((torch.zeros_like(size), torch.ones_like(size)))
        self._step_heads()
        self._balanced_move(JointStep(self.torch_optimizer, self.shared, gradients), weights, plain)

    def _balanced_move(self, joint: JointStep, weights: Tensor, plain: Tensor) -> None:
        joint.move(
            weights,
            joint=weights if self.state_form == "weighted" else plain,
            plain=plain if self.step_form == "match" else None,
        )

    def _solve(self, joint: JointStep, tasks: list[int]) -> None:
        gram = joint.gram(momentum=self.utility == "update")
        solved = bargaining_weights(gram)
        if self.utility == "gradient" and self.step_form == "match":
            solved = solved * ((solved > 0).sum() / solved.sum())
        else:
            solved = solved * gram.norm().sqrt()
        alpha = torch.where((solved > 0) & (solved < torch.inf), solved, self._of(tasks))
        if len(tasks) == len(self.tasks):
            self._alpha, self.last_gram = alpha, gram
            self.last_present = torch.ones_like(self.last_present)
        else:
            here = torch.tensor(tasks, device=alpha.device)
            self._alpha = self._alpha.index_copy(0, here, alpha)
            self.last_gram = torch.zeros_like(self.last_gram).index_put_((here.unsqueeze(1), here), gram)
            self.last_present = torch.zeros_like(self.last_present).index_fill_(0, here, True)
        self._solved = True

    def _of(self, tasks: list[int]) -> Tensor:
        return self._alpha if len(tasks) == len(self.tasks) else self._alpha[tasks]

    def _own_state(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "steps": self._steps,
            "solved": self._solved,
            "alpha": self._alpha,
            "gram": self.last_gram,
            "present": self.last_present,
        }

    def _load_own_state(self, state: dict[str, Any]) -> None:
        device = self.shared[0].device
        if self._count is not None and state["tasks"] and len(state["tasks"]) != self._count:
            raise ValueError(f"Expected the state of {self._count} tasks, found {len(state['tasks'])}.")
        if state["tasks"] and not self.tasks:
            self._begin(tuple(state["tasks"]))
        self._steps, self._solved = state["steps"], state["solved"]
        self._alpha = state["alpha"].to(device, copy=True)
        self.last_gram = state["gram"].to(device, copy=True)
        self.last_present = state["present"].to(device, copy=True)

    def __repr__(self) -> str:
        return (
            f"PUB({self.optimizer!r}, shared=[{len(self.shared)} parameters], update_every={self.update_every}, "
            f"utility={self.utility!r}, step={self.step_form!r}, state={self.state_form!r})"
        )
