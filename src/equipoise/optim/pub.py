"""PUB: parameter update balancing, which weighs the tasks' updates rather than their gradients."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from equipoise.optim.adatask import AdaTask
from equipoise.optim.entries import OwnState, rows_index
from equipoise.optim.forms import FormName, form_named
from equipoise.optim.gradients import Pending
from equipoise.optim.joint_step import JointStep
from equipoise.optim.last_layer import HiddenLayersError, NoLastLayerError
from equipoise.optim.measured_part import MeasuredPart, unscaled_gradients
from equipoise.optim.metabalance import MetaBalance
from equipoise.optim.task_optimizer import TaskOptimizer
from equipoise.replaying import replayed
from equipoise.solvers import bargaining_weights

__all__ = ["PUB"]

_FORMS_AROUND_ADATASK: Final = ("matched", "authors")
_WHY_NOT_AROUND_ADATASK: Final = {
    "ours": "each task's own state would undo the weights of the gradients",
    "literal": "it spans the towers, which AdaTask leaves to the wrapped optimizer",
    "shipped": "the sum of the tasks' updates is AdaTask alone",
}


def _before_the_first_step(count: int, device: torch.device) -> dict[str, Any]:
    alpha = torch.ones(count, dtype=torch.float64, device=device)
    gram, present = alpha.new_zeros(count, count), torch.zeros_like(alpha, dtype=torch.bool)
    return {"steps": 0, "solved": False, "solves_on_all": False, "alpha": alpha, "gram": gram, "present": present}


class PUB(TaskOptimizer):
    """Balances the tasks' updates of the shared parameters (arXiv 2410.05806): α > 0 with ``G α = 1/α``.

    ``G_ij = ⟨u_i, u_j⟩`` over the shared parameters, u_m the update of task m. α is solved in the steps 1, 1 + K,
    1 + 2K, … counting from 0 (K = ``update_every``; in every step for K = 1) and kept in between; before the first
    solve it is 1. All other parameters take the wrapped optimizer's own step on the sum of the losses. With one task
    the result equals that of the wrapped optimizer bit for bit.

    ``form`` says what u_m is, and how α is used. "The update of g_m" is what the optimizer would subtract, without the
    learning rate, had g_m alone come, from the state that all tasks share.

    - ``"ours"`` (the default): ``u_m = g_m / √v̂``, the momentum taken out and one second moment v̂ for all: the
      state's, advanced by ``Σ g_m²`` (SGD: g_m itself). α is rescaled to the mean 1 and weighs the gradients: the
      optimizer takes its own step with ``Σ α_m g_m``, so that a learning rate keeps its meaning. Between two solves
      a step makes one backward pass, in which each task is weighed where it enters the shared part of the graph; and
      two where several tasks enter it together (stacked towers, a compiled graph, one tensor of all losses), or, on
      several ranks, a custom function stands before it.
    - ``"matched"``: u_m is the update of g_m, and the shared parameters move by ``lr Σ α_m u_m``, rescaled in every
      step to the norm of the optimizer's own update, that of ``Σ g_m``; the state advances with ``Σ g_m``. Around
      :class:`AdaTask` (where it is the default) u_m comes from the task's own state, and the norm is that of
      ``Σ u_m``. One backward pass per task in every step.
    - ``"authors"``: as in the paper. u_m as in ``"matched"``; α is multiplied by ``√‖G‖_F``, our reading of their
      normalisation; no rescaling, so that with a shared state the step comes near M times the optimizer's; the state
      advances with ``Σ α_m g_m``.
    - ``"literal"``: as the published code is written. ``α_m (G α)_m = 1`` in true units and nothing rescaled, so that
      the joint update has the norm √M whatever the model's size. G and the joint update span the towers too: all
      parameters of the optimizer, where a parameter that a task does not reach counts as an update of 0. Decoupled
      weight decay (AdamW) comes once per task that reaches the parameter; decay that is part of the gradient is part
      of every u_m in all forms that weigh updates. Deviation: the equation is solved, and with our ridge; the
      published solver stops at 1e-3.
    - ``"shipped"``: as the published code behaves. Its solver never runs, so α stays 1: the sum of the M updates, over
      all parameters, with weight decay as in ``"literal"``. ``update_every`` has no effect.

    ``solve_on`` says from which of the shared parameters α is solved in ``"ours"``. By default it is the last shared
    layer, where every path from a loss to shared parameters goes through it, as in a shared bottom. The passes per task
    end there, right below the towers, before the step's pass with the weighted sum: a step that solves is nearly as
    cheap as the others. α then knows nothing of conflicts further below. With all shared parameters, the exact form, a
    step that solves makes one backward pass per task through everything that is shared. The default takes the exact
    form where a path goes past the last layer: in MMoE through the gates, in PLE through each task's own experts, in a
    residual network past its last block. It looks again when a task comes for the first time, or other parameters are
    trained. It also takes the exact form once several micro-batches add up to a step: the first one would decide α for
    all, as it does with ``"last"``.

    The defaults are ours. On validation data this form gains as much as any does at its own learning rate, for a
    fraction of the cost (``benchmarks/results/defaults-updates-complete-journey.md``). From the last layer of a shared
    bottom α gains as much as from all or more (``docs/evidence.md``). From the last layer of PLE it loses
    (``docs/questions.md``).

    Defined for odd cases: an absent task keeps its α and has no part; so does one whose update is zero or whose norm
    overflows. Opposed tasks (u_1 = −u_2) get large, equal α, bounded by the solver's ridge, and move nothing. Entries
    of a gradient that are not finite count as 0. Decoupled decay comes once in ``"ours"``, ``"matched"`` and
    ``"authors"``. Where groups differ in their learning rate, u_m is measured in actual change of the parameters.
    Under a ``GradScaler`` call ``scaler.step(optimizer)`` without ``unscale_``.

    With ``torch.compile`` set ``torch._functorch.config.donated_buffer = False``: a backward pass per task keeps the
    graph.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop over all the model's parameters; or
            :class:`Clippy` around one, which then shrinks the joint update; or around one of these :class:`AdaTask`,
            for updates from a state per task, or :class:`MetaBalance`, whose rescaled gradients the updates come from
            (one backward pass per task in every step).
        shared: the parameters to balance; ``"auto"``: those that at least two tasks reach, found in the graph of the
            first losses.
        form: ``"ours"``, ``"matched"``, ``"authors"``, ``"literal"`` or ``"shipped"``; None: ``"ours"``, around
            :class:`AdaTask` ``"matched"``.
        update_every: K, at least 1.
        solve_on: ``"all"``; ``"last"``: the shared parameters above which no shared weight matrix stands, found in the
            graph of the losses of the first solve (of MMoE the last layer of each expert, of PLE that of the shared
            experts at the top); or a list of some of the shared parameters. ``"auto"``: in form ``"ours"`` ``"last"``
            where no path from a loss to a shared parameter goes past that layer and a step has one ``backward``, else
            ``"all"``, with a warning where ``torch.compile`` hides the layer; in other forms and around
            :class:`MetaBalance` ``"all"``, since their steps need all gradients of each task. :attr:`solved_on` and
            ``repr`` tell which it was.
        tasks: the tasks' names, for losses by name, for saved state, which is matched by name, and for the monitor; if
            not given those of a dict of losses, else "0", "1", …
        task_weights: the user's preferences p, one positive number per task in the order of ``tasks``, brought to the
            mean 1 over the tasks present. α then solves ``G α = p/α``: the utilities ``α_m ⟨u_m, Σ α_j u_j⟩`` are
            exactly proportional to p in every solve. None: all equal.
        data_parallel: the ``DistributedDataParallel`` or TorchRec ``DistributedModelParallel`` module whose
            ranks train together, or their process group if they start from equal parameters; :class:`AdaTask`
            inside has been told already. ``backward`` then averages all that a step needs in one collective
            (tasks' gradients apart when α is solved), in the place of the module's own averaging, which it switches
            off (``require_backward_grad_sync``).

    Attributes:
        balanced: the parameters that α weighs: the shared ones, or all where the form spans the towers.
        solved_on: the parameters that α is solved from, out of these; empty until the last layer is found.
        tasks: the tasks' names; empty before the first ``backward`` if not given.
        last_gram: G of the last solve, float64, shape [M, M], 0 for tasks that were absent.
        last_weights: the present α, float64, shape [M].
        last_present: which tasks were present in the last solve, bool, shape [M].

    Raises:
        TypeError: ``optimizer`` is none of these.
        ValueError: an option has another value than those named; ``shared`` is empty, holds what is not the
            optimizer's, or differs from AdaTask's; a form that does not fit AdaTask, which has a state per task;
            ``data_parallel`` holds no DDP, or one with other parameters than the optimizer's; ``solve_on`` is given to
            another form than ``"ours"``, or around MetaBalance, which needs all gradients of each task.
        RuntimeError: there are several ranks and no ``data_parallel``.

    Warns:
        UserWarning: in the first ``backward`` that solves, where ``torch.compile`` made ``"auto"`` choose ``"all"``.

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
        shared: Iterable[Parameter] | Literal["auto"],
        form: FormName | None = None,
        update_every: int = 10,
        solve_on: Literal["auto", "all", "last"] | Iterable[Parameter] = "auto",
        tasks: Sequence[str] | None = None,
        task_weights: Sequence[float] | None = None,
        data_parallel: Module | dist.ProcessGroup | None = None,
    ) -> None:
        self.task_weights = None if task_weights is None else [float(weight) for weight in task_weights]
        if not all(0 < weight < float("inf") for weight in self.task_weights or []):
            raise ValueError(f"task_weights must be positive and finite, found {task_weights}.")
        self._preferences: Tensor | None = None
        super().__init__(optimizer, shared, tasks, data_parallel)
        if type(update_every) is not int or update_every < 1:
            raise ValueError(f"update_every must be a whole number of at least 1, found {update_every!r}.")
        if isinstance(optimizer, PUB):
            raise TypeError("PUB wraps a torch.optim optimizer, Clippy, AdaTask or MetaBalance, found PUB.")
        self._own = isinstance(optimizer, AdaTask)
        self._metabalance = optimizer if isinstance(optimizer, MetaBalance) else None
        self.form: FormName = form or ("matched" if self._own else "ours")
        self._form = form_named(self.form)
        if task_weights is not None and not self._form.solves:
            raise ValueError(
                f"form {self.form!r} keeps all weights at 1, so that task_weights would have no effect: leave them "
                "out, or use another form."
            )
        if isinstance(optimizer, TaskOptimizer) and not (self._shared_is_known and optimizer._shared_is_known):
            if optimizer._shared_is_known or self._shared_is_known:
                self._settle_shared(self.shared or optimizer.shared)
        elif isinstance(optimizer, TaskOptimizer) and set(map(id, optimizer.shared)) != set(map(id, self.shared)):
            raise ValueError(
                f"PUB and the {type(optimizer).__name__} inside it must share the same parameters, found "
                f"{len(self.shared)} in PUB and {len(optimizer.shared)} in {type(optimizer).__name__} that are not the "
                "same."
            )
        if self._metabalance is not None and self._form.spans_towers:
            raise ValueError(
                f"Around MetaBalance form must be one that leaves the towers to the optimizer, found {self.form!r}: "
                "MetaBalance rescales the gradients of shared parameters."
            )
        if self._own and self.form not in _FORMS_AROUND_ADATASK:
            raise ValueError(
                f"Around AdaTask form must be one of {', '.join(map(repr, _FORMS_AROUND_ADATASK))}, found "
                f"{self.form!r}: {_WHY_NOT_AROUND_ADATASK[self.form]}."
            )
        if isinstance(optimizer, AdaTask | MetaBalance) and optimizer.task_weights is not None:
            raise ValueError(
                f"PUB weighs the tasks anew, so that task_weights of the {type(optimizer).__name__} inside it would "
                "have no effect: give them to PUB."
            )
        self.update_every = update_every
        self._part = self._part_of(solve_on)
        if not self.tasks:
            self._memory.update(_before_the_first_step(0, self._device))
        self._choose_balanced()
        self._take_averaging_over()

    def _part_of(self, solve_on: str | Iterable[Parameter]) -> MeasuredPart | None:
        if solve_on == "all":
            return None
        part = MeasuredPart(solve_on)
        if not self._may_solve_on_less:
            if part.chooses:
                return None
            found = "MetaBalance inside" if self.form == "ours" else f"form {self.form!r}"
            raise ValueError(
                f"solve_on={part!r} saves the tasks' passes through all that is shared, found {found}, which needs "
                'them in any case. Set solve_on to "all", or use form "ours" without MetaBalance.'
            )
        if self._shared_is_known:
            part.check(self.shared)
        return part

    @property
    def _may_solve_on_less(self) -> bool:
        return self.form == "ours" and self._metabalance is None

    @property
    def _measured(self) -> MeasuredPart | None:
        """The part to solve from; None for all shared parameters."""
        part = self._part
        return None if part is not None and part.chooses and self._memory["solves_on_all"] else part

    @property
    def solved_on(self) -> list[Parameter]:
        """The parameters that α is solved from; empty until the last layer is found."""
        return self.balanced if self._measured is None else self._measured.parameters

    @property
    def last_weights(self) -> Tensor:
        """The present α, float64, shape [M]."""
        found: Tensor = self._memory["alpha"]
        return found

    @property
    def last_gram(self) -> Tensor:
        """G of the last solve, float64, shape [M, M]."""
        found: Tensor = self._memory["gram"]
        return found

    @property
    def last_present(self) -> Tensor:
        """The tasks that were present in the last solve, bool, shape [M]."""
        found: Tensor = self._memory["present"]
        return found

    def _begin(self, tasks: tuple[str, ...]) -> None:
        if self.task_weights is not None:
            if len(self.task_weights) != len(tasks):
                raise ValueError(
                    f"task_weights must have one number for each of {', '.join(tasks)}, found {self.task_weights}."
                )
            self._preferences = torch.tensor(self.task_weights, dtype=torch.float64, device=self._device)
        super()._begin(tasks)
        self._memory.update(_before_the_first_step(len(tasks), self._device))

    def _spans_towers(self) -> bool:
        return self._form.spans_towers

    def _due(self) -> bool:
        return self._form.solves and (self.update_every == 1 or self._memory["steps"] % self.update_every == 1)

    def _weighs_gradients(self) -> bool:
        """True if the step is the wrapped optimizer's own, with weighted gradients."""
        if len(self.tasks) == 1 or self._form.weighs == "gradients":
            return True
        if self._form.matched or self._own:
            return False
        balanced = {id(p) for p in self.balanced}
        groups = [group for group in self.param_groups if any(id(p) in balanced for p in group["params"])]
        return all(map(self._rule.is_identity, groups))

    def _needs_each(self) -> bool:
        if len(self.tasks) == 1:
            return False
        sum_is_enough = self._rule.affine and not self._own and not self._form.spans_towers
        solves_now = self._measured is None and self._due()
        return solves_now or self._metabalance is not None or not (self._weighs_gradients() or sum_is_enough)

    def _needs_total(self) -> bool:
        return self._memory["solved"] and not self._weighs_gradients() and self._form.matched

    def _weights(self, tasks: list[int]) -> list[Tensor] | None:
        solution = (self._pending.solution if self._pending else None) or self._memory
        if not solution["solved"]:
            return None
        weights = solution["alpha"].unbind()
        return [weights[task] for task in tasks]

    def _before_passes(self, pending: Pending, losses: dict[int, Tensor]) -> None:
        """Solve for α from a part of the shared parameters, where that is due."""
        part, averaging = self._measured, self._averaging
        if part is None or len(self.tasks) == 1 or not (losses or averaging):
            return
        if any(pending.present):  # the step's first batch has solved for all of them, and may lack tasks of the others
            if part.chooses:
                self._memory["solves_on_all"] = True  # from the next step on
            return
        if not self._due():
            return
        try:
            parameters, gradients = self._gradients_of(part, pending, losses)
        except NoLastLayerError as error:
            if not part.chooses:
                a_list = "pass solve_on=[parameters of the layer below the towers]"
                raise RuntimeError(f'PUB(solve_on="last") found that {error}: {a_list}, or "all".') from error
            self._memory["solves_on_all"] = True
            if isinstance(error, HiddenLayersError):  # the user can name the layer; else all is the right choice
                self._warn_of_hidden_layers(error)
            pending.of_task = [[None for _ in self.balanced] for _ in self.tasks]
            return
        if gradients:
            with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                joint = JointStep(self.torch_optimizer, parameters, list(gradients.values()), counts=self._counts)
                pending.solution = self._solution(joint, list(gradients))

    def _gradients_of(
        self, part: MeasuredPart, pending: Pending, losses: dict[int, Tensor]
    ) -> tuple[list[Parameter], dict[int, list[Tensor | None]]]:
        """Return the part's parameters, and their gradients by task, of those that any rank has."""
        averaging, count = self._averaging, len(self.tasks)
        parameters = part.trained(losses.values(), self.shared, averaging)
        if not parameters:
            return [], {}
        gradients, pending.unscaled = unscaled_gradients(losses, parameters, count, averaging)
        if part.grown(gradients, losses.values(), self.shared, averaging):
            parameters = part.trained(losses.values(), self.shared, averaging)
            gradients, pending.unscaled = unscaled_gradients(losses, parameters, count, averaging)
        return parameters, gradients

    def _warn_of_hidden_layers(self, error: HiddenLayersError) -> None:
        warnings.warn(
            f"PUB solves from all {len(self.shared)} shared parameters, which takes a backward pass per task, since "
            f"{error}. For cheaper steps pass solve_on=[parameters of the layer below the towers]; to keep these, pass "
            'solve_on="all".',
            stacklevel=4,
        )

    def _overflown(self, pending: Pending) -> bool:
        if pending.solution and not pending.unscaled and getattr(self, "grad_scale", None) is not None:
            raise RuntimeError(
                "PUB solves from the last shared layer before the step, from gradients without a GradScaler's factor, "
                "found losses whose factor is not known. Multiply them by `scale` of a torch.amp.GradScaler, not of a "
                'subclass with a `scale` of its own; or pass solve_on="all".'
            )
        return super()._overflown(pending)

    def _move(self, pending: Pending) -> None:
        tasks = pending.tasks
        self._memory.update(pending.solution)
        if tasks and pending.of_task:
            self._move_each(pending, tasks)
        elif not tasks or self._weighs_gradients():
            self._step_all()
        else:
            self._move_mean(pending, tasks)
        self._memory["steps"] += 1

    def _move_each(self, pending: Pending, tasks: list[int]) -> None:
        own = OwnState(len(pending.present), tasks) if self._own else None
        gradients = [pending.of_task[task] for task in tasks]
        if self._metabalance is not None:
            gradients = self._metabalance.rescaled(gradients, tasks)
        joint = JointStep(
            self.torch_optimizer,
            self.balanced,
            gradients,
            own,
            counts=self._counts,
            unreached_stay=self._form.spans_towers,
        )
        if self._due():
            self._memory.update(self._solution(joint, tasks))
        weights = self._weights_of(tasks)
        if self._weighs_gradients():
            for p, grad in joint.combine(weights):
                p.grad = grad
            self._step_torch()
        else:
            self._step_towers()
            self._balanced_move(joint, weights, torch.ones_like(weights))

    def _move_mean(self, pending: Pending, tasks: list[int]) -> None:
        """Step from ``Σ α_m g_m`` alone: Σ α_m u(g_m) = s u(Σ α_m g_m / s) with s = Σ α_m, because u is affine."""
        size = self._weights_of(tasks).sum()
        mean = [None if p.grad is None else p.grad / size.to(p.dtype) for p in self.balanced]
        gradients, weights = [mean], size.unsqueeze(0)
        plain = weights  # before the first solve α = 1, and the weighted sum is the plain one
        if pending.total:
            gradients = [mean, pending.total]
            weights = torch.stack((size, torch.zeros_like(size)))
            plain = torch.stack((torch.zeros_like(size), torch.ones_like(size)))
        self._step_towers()
        self._balanced_move(
            JointStep(self.torch_optimizer, self.balanced, gradients, counts=self._counts), weights, plain
        )

    def _balanced_move(self, joint: JointStep, weights: Tensor, plain: Tensor) -> None:
        joint.move(
            weights,
            joint=weights if self._form.weighted_state else plain,
            plain=plain if self._form.matched else None,
        )

    def _solution(self, joint: JointStep, tasks: list[int]) -> dict[str, Any]:
        """Return what changes in the state when α is solved from the updates of these tasks."""
        gram = joint.gram(momentum=self._form.weighs == "updates")
        preferences = self._preferences
        if preferences is not None:
            preferences = self._rows_of(preferences, tasks)
            preferences = preferences / preferences.mean()
        inputs = [gram, self._weights_of(tasks), *([] if preferences is None else [preferences])]
        scale = self._form.scale
        (alpha,) = replayed(self, functools.partial(_solved, scale), inputs, options=scale, key=len(tasks))
        memory = self._memory
        present = torch.ones_like(memory["present"])
        if len(tasks) < len(self.tasks):
            here = rows_index(tasks, len(self.tasks), alpha.device)
            alpha = memory["alpha"].index_copy(0, here, alpha)
            gram = torch.zeros_like(memory["gram"]).index_put_((here.unsqueeze(1), here), gram)
            present = torch.zeros_like(memory["present"]).index_fill_(0, here, True)
        return {"alpha": alpha, "gram": gram, "present": present, "solved": True}

    def _weights_of(self, tasks: list[int]) -> Tensor:
        """Return α of these tasks."""
        return self._rows_of(self._memory["alpha"], tasks)

    def _rows_of(self, values: Tensor, tasks: list[int]) -> Tensor:
        if len(tasks) == len(self.tasks):
            return values
        return values.index_select(0, rows_index(tasks, len(self.tasks), values.device))

    def _take_over(self, saved: dict[str, Any], places: list[int | None]) -> None:
        memory = self._memory
        scalars = {name: saved[name] for name in ("steps", "solved", "solves_on_all")}
        memory.update(scalars)
        rows = {name: saved[name].to(self._device, copy=True) for name in ("alpha", "gram", "present")}
        if places == list(range(len(saved["tasks"]))):
            memory.update(rows)
            return
        known = [(place, kept) for place, kept in enumerate(places) if kept is not None]
        memory.update(_before_the_first_step(len(places), self._device) | scalars)
        for place, kept in known:
            memory["alpha"][place], memory["present"][place] = rows["alpha"][kept], rows["present"][kept]
            for other, of_other in known:
                memory["gram"][place, other] = rows["gram"][kept, of_other]

    def __repr__(self) -> str:
        solve_on = f", solve_on={self._measured or 'all'!r}" if self._may_solve_on_less else ""
        return (
            f"PUB({self._inner_repr()}, shared=[{len(self.shared)} parameters], update_every={self.update_every}, "
            f"form={self.form!r}{solve_on}"
            f"{'' if self.task_weights is None else f', task_weights={self.task_weights}'})"
        )


def _solved(scale: str, gram: Tensor, before: Tensor, preferences: Tensor | None = None) -> tuple[Tensor]:
    """Return α of the Gram matrix of updates; that of before for a task that takes no part."""
    solved = bargaining_weights(gram, preferences=preferences)
    if scale == "mean 1":
        solved = solved * ((solved > 0).sum() / solved.sum())
    elif scale == "root norm":
        solved = solved * gram.norm().sqrt()
    return (torch.where((solved > 0) & (solved < torch.inf), solved, before),)
