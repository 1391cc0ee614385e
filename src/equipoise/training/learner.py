"""One training step of a method: its models, each with its optimizer and the tasks that it learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise.errors import SettingError
from equipoise.forks import PIVRG
from equipoise.forks.fork import Fork
from equipoise.methods import Method
from equipoise.monitor import Reading
from equipoise.ranking.losses import labelled_rows, task_losses
from equipoise.ranking.models import build_model
from equipoise.schema import Batch, Schema
from equipoise.settings import TrainingSettings
from equipoise.training.building import build_members
from equipoise.training.compatibility import Combination, check_compatible
from equipoise.training.faults.misplaced_forks import warn_of_misplaced_forks
from equipoise.training.faults.non_finite import (
    all_finite,
    finite_losses,
    leave_out_non_finite,
    mark_non_finite_gradient,
    mark_non_finite_own_gradients,
)
from equipoise.training.member import MEMBER_PARTS, Member, check_module, model_state, sharded_model_state
from equipoise.training.models import ModelsByTask
from equipoise.training.ranks.world import World, usable_device
from equipoise.training.reproducibility import random_states, restore_random_states
from equipoise.training.state_checks import UnexpectedStateError, expect_count, expect_keys, expect_list

__all__ = ["Learner"]


class Learner:
    """A method's models in training: one for joint methods, one per task for single-task training.

    For the same seed, the models of all methods start from the same weights. The global random state is not changed.

    Args:
        schema: features and tasks.
        method: the method to train with.
        settings: model, learning rate, seed and all else; ``non_finite="raise"`` is the caller's to act on, and
            ``"skip-step"`` waits for the device in every step. Tables that TorchRec shards are stepped by Adagrad,
            or row-wise Adagrad, fused into the backward pass.
        total_steps: the steps of the whole training, over which the rates rise and fall; None: they stay.
        epoch_steps: the steps of one epoch, for methods that learn at its end; None: no epoch ends.
        world: the processes that train together; models and batches live on its device.

    Attributes:
        steps: the number of steps made.
        skipped_steps: the number of them that "skip-step" left out.

    Raises:
        SettingError: the model, one of its options, the device or a task in ``loss_scale`` or
            ``task_weights`` is not known, a number is out of range, or the method cannot be trained with this sharding.
    """

    def __init__(
        self,
        schema: Schema,
        method: Method,
        settings: TrainingSettings,
        /,
        *,
        total_steps: int | None = None,
        epoch_steps: int | None = None,
        world: World | None = None,
    ) -> None:
        sharding, non_finite = settings.sharding, settings.non_finite
        self.schema = schema
        self.method = method
        self._settings = settings
        self.world = world or World(device=usable_device(settings.device))
        self.device = self.world.device
        self.non_finite = non_finite
        self.steps = self.skipped_steps = 0
        self._epoch_steps = epoch_steps
        self._in_equal_shares = sharding.startswith(("row-wise", "planner"))
        check_compatible(Combination(method, settings, self.world))
        self._scale = _per_task(schema.task_names, settings.loss_scale, "Loss scales")
        _per_task(schema.task_names, settings.task_weights, "Task weights")
        method.check_tasks(schema.task_names)
        if settings.task_weights:
            self.method = method = method.with_task_weights(settings.task_weights)
        self._members = build_members(schema, method, settings, self.world, total_steps=total_steps)
        self._unchecked = self.world.rank == 0
        self._stage: Literal["whole", "begun", "moving"] = "whole"
        # State that a step changes beside parameters, kept to undo or skip a step.
        taken_back = self.world.size == 1 or non_finite == "skip-step"
        self._buffers = [buffer for member in self._members if taken_back for buffer in member.model.buffers()]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._kept_weightings: list[dict[str, Any]] = []
        self._kept_random = random_states(self.device)

    def step(self, batch: Batch, /) -> Tensor:
        """Make one optimizer step of each model; return the unscaled losses before it, shape [M], on the device.

        A loss is NaN if its gradient at its logits or in its own layers is not finite.

        Args:
            batch: the global batch; of several ranks each trains on its share, and its losses are those shares of the
                global ones whose mean over the ranks is the loss of the batch.
        """
        self._begin()
        share, labelled = self._share(batch)
        losses: list[Tensor] = [torch.empty(0)] * len(self.schema.tasks)
        for place, member in enumerate(self._members):
            logits, own = self._losses(member, share, labelled)
            self._check_first_losses(member, own)
            spare = self.non_finite == "skip-task"
            finite = finite_losses(own, self.world, together=spare).unbind()
            for task, good in zip(member.tasks, finite, strict=True):
                mark_non_finite_gradient(logits[task], good, skip=spare)
            member.optimizer.zero_grad()
            if member.fused is not None:  # tables step in the backward pass
                self._stage = "moving"
            scaled = [self._scaled(loss, task) for loss, task in zip(own, member.tasks, strict=True)]
            if member.weighting is not None:
                weights = member.weighting.weigh(*self._of_whole_batch(member, scaled, batch))
                scaled = [weight * loss for weight, loss in zip(weights, scaled, strict=True)]
            self.method.backward(member.optimizer, scaled)
            self._stage = "moving"
            mark_non_finite_own_gradients(member.task_parameters, finite)
            if spare:
                leave_out_non_finite(member.own_parameters)
            if self.non_finite == "skip-step" and not all_finite(member.parameters, own, self.world):
                member.optimizer.zero_grad()
                self._restore_buffers(member.model)
                if member.weighting is not None:
                    member.weighting.load_state_dict(self._kept_weightings[place])
                self.skipped_steps += 1
            else:
                if member.weighting is not None and member.weighting.learns_from_gram:
                    member.weighting.after_backward(member.gram())
                member.clip_gradients(self._settings.clip_norm)
                member.optimizer.step()
                if member.weighting is not None and member.weighting.learns_after_step:
                    self._learn_after_step(member, batch, share, labelled)
            member.end_step(self.steps + 1)
            for task, loss, good in zip(member.tasks, own, finite, strict=True):
                losses[task] = torch.where(good, loss.detach(), torch.nan)
        self._unchecked = False
        self.steps += 1
        if self._epoch_steps is not None and self.steps % self._epoch_steps == 0:
            self._end_epoch()
        self._stage = "whole"
        return torch.stack(losses)

    def take_back(self) -> bool:
        """Undo a :meth:`step` that an exception has ended; return False if that is not possible.

        It is possible in a single process until parameters begin to move; before, only the forks' state has moved.
        """
        if self.world.size > 1 or self._stage == "moving":
            return False
        for member in self._members:
            member.optimizer.zero_grad()
        if self._stage == "begun":
            if self._buffers:
                torch._foreach_copy_(self._buffers, self._kept)
            for member, kept in zip(self._members, self._kept_weightings, strict=True):
                if member.weighting is not None:
                    member.weighting.load_state_dict(kept)
            restore_random_states(self._kept_random, self.device)
            self._stage = "whole"
        return True

    def note_validation(self, metrics: Mapping[str, Mapping[str, float]], /) -> None:
        """Give forks that learn from validation data each task's loss in percent of that of the base rate or mean."""
        scores = {task: 100 * found["ne"] for task, found in metrics.items()}
        for member in self._members:
            for part in member.model.modules():
                if isinstance(part, PIVRG):
                    part.note_scores(scores)

    def logits(self, batch: Batch, /) -> Tensor:
        """Return each task's logits from the model that learns it, in eval mode, shape [B, M]."""
        columns: list[Tensor] = [torch.empty(0)] * len(self.schema.tasks)
        with torch.no_grad():  # not inference mode, in which sharded tables cannot be looked up
            for member in self._members:
                self._share_running_statistics(member.model)
                member.module.eval()
                predicted = member.predict(batch.categorical, batch.numeric)
                member.module.train()
                for task in member.tasks:
                    columns[task] = predicted[task]
        return torch.stack(columns, dim=1)

    def model(self) -> ModelsByTask:
        """Return the model that gives the outputs of all tasks, each from the model that learns it.

        It is whole on every rank; what FSDP2 shards is gathered into a copy on the CPU. All ranks must call this.

        Raises:
            SettingError: TorchRec shards the tables.
        """
        tasks = self.schema.task_names
        groups = [[tasks[task] for task in member.tasks] for member in self._members]
        return ModelsByTask([self._whole(member) for member in self._members], groups, tasks)

    def weights(self) -> list[dict[str, Tensor]]:
        """Return a copy of the weights with which each model predicts: the averaged ones, if there are any."""
        return [member.weights() for member in self._members]

    def set_weights(self, weights: Sequence[Mapping[str, Tensor]], /) -> None:
        """Give each model weights that :meth:`weights` has returned, to predict with; training cannot go on."""
        for member, found in zip(self._members, weights, strict=True):
            member.set_weights(found)

    def use_averages(self) -> None:
        """Put the averaged weights, if there are any, into the models; training cannot go on."""
        for member in self._members:
            if member.averaged is not None:
                member.set_weights(member.weights())

    def check_weights(self, found: object, place: str) -> None:
        """Check loaded weights for :meth:`set_weights`.

        Raises:
            UnexpectedStateError: they are of another kind.
        """
        of_models = expect_list(found, place, length=len(self._members))
        for number, (member, weights) in enumerate(zip(self._members, of_models, strict=True)):
            check_module(weights, member.weights(), f"{place}/{number}")

    def read(self) -> list[Reading]:
        """Return the monitors' readings of the last step, on the device; none for methods without a monitor."""
        return [member.monitor.read() for member in self._members if member.monitor is not None]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of models with their forks, optimizers and schedules, without :meth:`sharded_state`."""
        states = [member.state() for member in self._members]
        return {
            "steps": self.steps, "skipped_steps": self.skipped_steps, "tasks": list(self.schema.task_names),
            **{part: [state[part] for state in states] for part in MEMBER_PARTS},
        }  # fmt: skip

    def sharded_state(self) -> dict[str, Tensor]:
        """Return, by name, the tensors of which a rank holds some parts or none: tables and their optimizer's state.

        They are the learner's own tensors: a checkpoint is loaded into them.
        """
        found: dict[str, Tensor] = {}
        for place, member in enumerate(self._members):
            state = sharded_model_state(member.module)
            found |= {f"models/{place}/{name}": value for name, value in state.items()}
            if member.fused is not None:
                for key, values in member.fused.state_dict()["state"].items():
                    found |= {f"fused/{place}/{key}/{name}": value for name, value in values.items()}
        return found

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore a state that :meth:`state_dict` gave.

        An optimizer's state goes by the places of its parameters, so the tasks must be the same in the same order.

        Raises:
            UnexpectedStateError: a part of it is missing or of another kind, or belongs to other tasks or to another
                order of them; the learner is as it was.
        """
        expect_keys(state, {"steps", "skipped_steps", "tasks", *MEMBER_PARTS}, "learner")
        self._check_tasks(expect_list(state["tasks"], "learner/tasks"))
        steps = expect_count(state["steps"], "learner/steps")
        skipped_steps = expect_count(state["skipped_steps"], "learner/skipped_steps")
        count = len(self._members)
        lists = [expect_list(state[part], f"learner/{part}", length=count) for part in MEMBER_PARTS]
        states = [dict(zip(MEMBER_PARTS, found, strict=True)) for found in zip(*lists, strict=True)]
        for place, (member, found) in enumerate(zip(self._members, states, strict=True)):
            member.check_state(found, steps, place)
        before = [copy.deepcopy(member.stepping_state()) for member in self._members]
        try:
            for place, (member, found) in enumerate(zip(self._members, states, strict=True)):
                member.load_stepping_state(found, place)
        except UnexpectedStateError:
            for place, (member, found) in enumerate(zip(self._members, before, strict=True)):
                member.load_stepping_state(found, place)
            raise
        for place, (member, found) in enumerate(zip(self._members, states, strict=True)):
            member.load_model_state(found, place)
        self.steps, self.skipped_steps = steps, skipped_steps

    def _whole(self, member: Member) -> nn.Module:
        sharded = sharded_model_state(member.module)
        if not sharded:
            return member.model
        if any(not hasattr(value, "full_tensor") for value in sharded.values()):
            raise SettingError(
                f"Sharding {self._settings.sharding!r} spreads the tables over the ranks, so none can hold the whole "
                "model: train with ddp or fsdp to get one."
            )
        state = model_state(member.module) | {name: value.full_tensor().cpu() for name, value in sharded.items()}
        settings, tasks = self._settings, [self.schema.task_names[task] for task in member.tasks]
        with torch.random.fork_rng(devices=[]):
            whole = build_model(
                settings.model, self.schema, fork=self.method.fork_factory(tasks), **settings.model_options
            )
        whole.load_state_dict(state)
        return whole

    def _check_tasks(self, found: Sequence[object]) -> None:
        own = self.schema.task_names
        if list(found) != list(own):
            expected = f"the tasks in the order {', '.join(own)}"
            raise UnexpectedStateError("learner/tasks", expected, found, words=", ".join(map(str, found)))

    def _check_first_losses(self, member: Member, losses: Sequence[Tensor]) -> None:
        """Warn in the first step if forks are not where several tasks meet."""
        if self._unchecked and len(member.tasks) > 1:
            named = {self.schema.task_names[task]: loss for task, loss in zip(member.tasks, losses, strict=True)}
            warn_of_misplaced_forks(member.module, named)

    def _begin(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        self._kept_weightings = [copy.deepcopy(member.weighting_state()) for member in self._members]
        if self.world.size == 1:
            self._kept_random = random_states(self.device)
            self._stage = "begun"

    def _restore_buffers(self, model: nn.Module) -> None:
        """Undo what a skipped step did to buffers, but for a matrix that is still on its way between ranks."""
        known = {id(buffer): kept for buffer, kept in zip(self._buffers, self._kept, strict=True)}
        arriving = {id(part.arriving) for part in model.modules() if isinstance(part, Fork)}
        for buffer in model.buffers():
            if id(buffer) not in arriving:
                buffer.copy_(known[id(buffer)])

    def _share(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """Return this rank's rows, and its divisors for the sums of the tasks' losses."""
        if self.world.size == 1:
            return batch, None
        if self._in_equal_shares and len(batch.labels) % self.world.size:
            raise SettingError(
                f"Tables that are sharded by rows need equal shares of a batch: expected a multiple of the "
                f"{self.world.size} ranks, found {len(batch.labels)} rows."
            )
        labelled = labelled_rows(batch.labels, self.schema.tasks, importance=batch.importance) / self.world.size
        rows = self.world.share(len(batch.labels))
        return batch[rows], labelled

    def _losses(self, member: Member, share: Batch, labelled: Tensor | None) -> tuple[Sequence[Tensor], list[Tensor]]:
        """Return the logits of all tasks, and the losses of the member's tasks, on this rank's rows."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._settings.precision == "bfloat16"):
            logits = member.module(share.categorical, share.numeric)
        auxiliary: Callable[[Tensor], Mapping[str, Tensor] | None] | None
        auxiliary = getattr(member.model, "auxiliary_losses", None)
        further = None if auxiliary is None else auxiliary(share.labels)
        own = task_losses(
            [logits[task] for task in member.tasks],
            _of_tasks(share.labels, member.tasks),
            [self.schema.tasks[task] for task in member.tasks],
            labelled=None if labelled is None else _of_tasks(labelled, member.tasks),
            importance=share.importance,
            auxiliary=further,
        )
        return logits, own

    def _share_running_statistics(self, model: nn.Module) -> None:
        """Give all ranks the first one's statistics of normalisations: those that a checkpoint holds."""
        if self.world.size == 1:
            return
        for part in model.modules():
            for name, buffer in part.named_buffers(recurse=False):
                if name in {"running_mean", "running_var"}:
                    dist.broadcast(buffer, 0)

    def _of_whole_batch(self, member: Member, losses: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the global batch's losses, without gradients, and a mask of the member's tasks with a label there."""
        values = torch.stack([loss.detach() for loss in losses])
        if self.world.size > 1:
            dist.all_reduce(values)
            values /= self.world.size
        return values, _of_tasks(batch.labels, member.tasks).isnan().logical_not().any(0)

    def _end_epoch(self) -> None:
        for member in self._members:
            if member.weighting is not None:
                member.weighting.after_epoch()

    def _learn_after_step(self, member: Member, batch: Batch, share: Batch, labelled: Tensor | None) -> None:
        """Show the loss weighting the losses of the same batch after the step."""
        assert member.weighting is not None
        with torch.no_grad():
            _, after = self._losses(member, share, labelled)
        scaled = [self._scaled(loss, task) for loss, task in zip(after, member.tasks, strict=True)]
        member.weighting.after_step(*self._of_whole_batch(member, scaled, batch))

    def _scaled(self, loss: Tensor, task: int) -> Tensor:
        return loss if self._scale[task] == 1 else loss * self._scale[task]


def _of_tasks(values: Tensor, tasks: Sequence[int]) -> Tensor:
    """Return some columns; an index of whole numbers would be copied to the device, which waits for it."""
    if list(tasks) == list(range(values.shape[-1])):
        return values
    return torch.stack([values[..., task] for task in tasks], dim=-1)


def _per_task(tasks: Sequence[str], stated: Mapping[str, float], what: str) -> list[float]:
    """Return the stated numbers of the tasks, 1 for a task without one."""
    unknown = sorted(stated.keys() - set(tasks))
    if unknown:
        raise SettingError(f"{what}: expected tasks out of {', '.join(tasks)}; found {', '.join(unknown)}.")
    wrong = [f"{task}={factor}" for task, factor in stated.items() if not 0 < factor < float("inf")]
    if wrong:
        raise SettingError(f"{what} must be positive and finite, found {', '.join(wrong)}.")
    return [float(stated.get(task, 1.0)) for task in tasks]
