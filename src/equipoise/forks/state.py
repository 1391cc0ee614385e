"""State that belongs to tasks: saved with their names, matched by them, and never narrower than float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from equipoise.forks.names import by_name, encode_names, names_key, task_names

__all__ = ["TaskState"]


class TaskState(nn.Module):
    """A module whose buffers belong to tasks; the base of :class:`Fork`.

    Its state stays in float32 (or wider), also in a model converted to half precision. It is saved with the tasks'
    names and matched by them: the order may differ, a task that was not saved starts fresh, and a saved task that no
    longer exists is an unexpected key, named in the error. A state dict from before the model had the module loads too
    and leaves it in its reset state. Tensors that it keeps as plain attributes move with it as buffers do, and
    are not saved.

    Args:
        tasks: the tasks' names, or how many there are (their names are then "0", "1", …).

    Attributes:
        tasks: the tasks' names.
        task_dims: for each persistent buffer its dimensions over tasks; a subclass with state extends it.
        optional_state: buffers that only some options make; a module without these options ignores saved ones.

    Raises:
        ValueError: there is no task, or a name is empty or occurs twice.
    """

    task_dims: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    optional_state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tasks: int | Sequence[str]) -> None:
        super().__init__()
        self.tasks = task_names(tasks)

    def reset_parameters(self) -> None:
        """Go back to the state before the first step, as a module made on the meta device must after ``to_empty``."""
        raise NotImplementedError(f"{type(self).__name__} must define reset_parameters().")

    def tasks_changed(self) -> None:
        """Restore relations between tasks; called after loading a state that was saved for other tasks."""

    def settle(self) -> None:
        """Write what is still under way into the buffers; called before they are read, moved or replaced."""

    def get_extra_state(self) -> Tensor:
        """Return the tasks' names as bytes."""
        return encode_names(self.tasks)

    def set_extra_state(self, state: object) -> None:
        """Do nothing: the names have been compared while the rest of the state was loaded."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.settle()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self._modules and not any(name.startswith(prefix) for name in destination.keys() - {names_key(prefix)}):
            del destination[names_key(prefix)]  # a module without state saves nothing

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        _, strict, _, unexpected_keys, error_msgs = rest
        self.settle()
        own = {
            name: value
            for name, value in self._buffers.items()
            if value is not None and name not in self._non_persistent_buffers_set
        }
        # Cloned, because they may be this fork's own, and what was not saved starts afresh.
        mine = {prefix + name for name in own}
        state_dict = {
            key: value.clone() if key in mine and isinstance(value, Tensor) else value
            for key, value in state_dict.items()
        }
        self.reset_parameters()
        try:
            saved, tasks = by_name(state_dict, prefix, own, self.tasks, self.task_dims, modules=list(self._modules))
        except ValueError as error:
            error_msgs.append(f"Fork {prefix.removesuffix('.')!r}: {error}.")
            return
        # A module without these options ignores the entries of one with them.
        others = {
            key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in self.optional_state
        }
        super()._load_from_state_dict(
            others | {prefix + name: saved.get(name, value) for name, value in own.items()} | {names_key(prefix): None},
            prefix, *rest,
        )  # fmt: skip
        if strict:
            unexpected_keys += [
                f"{prefix}tasks: the saved task {task!r} is none of {', '.join(self.tasks)}"
                for task in tasks
                if task not in self.tasks
            ]
        if set(tasks) != set(self.tasks):
            self.tasks_changed()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.settle()
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None:
                self._buffers[name] = _no_narrower(after, buffer)
        self._apply_to_attributes(fn)
        return self

    def _apply_to_attributes(self, fn: Callable[[Tensor], Tensor]) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, _no_narrower(fn(value), value))


def _no_narrower(tensor: Tensor, before: Tensor) -> Tensor:
    """Return the tensor on the new device, in its old dtype if the new one has fewer bits."""
    return tensor if tensor.dtype.itemsize >= before.dtype.itemsize else before.to(tensor.device)
