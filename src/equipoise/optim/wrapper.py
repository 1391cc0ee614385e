"""A torch.optim.Optimizer around another one, whose groups and state it shows as its own."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Wrapper"]

_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Wrapper(Optimizer):
    """Delegates all but ``step`` to ``self.optimizer``, which may be a wrapper itself.

    Learning rate schedulers, ``GradScaler`` and checkpoints read ``param_groups`` and ``state``; these are
    the wrapped optimizer's own objects, also after ``load_state_dict`` has replaced them.

    A subclass keeps further state in the dict ``_memory``. It is stored in the first of the ``param_groups`` under
    ``_key``, so that it survives tools that save and load nothing but ``state`` and ``param_groups``, such as
    ``torch.distributed.checkpoint.state_dict``; ``state_dict()`` shows it under the same key, too.
    """

    _key: str | None = None
    _memory: dict[str, Any]

    def __init__(self, optimizer: Optimizer) -> None:
        # Not Optimizer.__init__, which would set up groups of its own.
        self.optimizer = optimizer
        self._set_up_hooks()

    def _set_up_hooks(self) -> None:
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        for hooks in _HOOKS:  # those on state dicts run in the wrapped optimizer, which makes and reads them
            setattr(self, hooks, getattr(self.optimizer, hooks))
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = value

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        self.optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.optimizer.defaults = value

    @property
    def torch_optimizer(self) -> Optimizer:
        """The optimizer from torch.optim at the bottom of the wrappers."""
        inner = self.optimizer
        return inner.torch_optimizer if isinstance(inner, Wrapper) else inner

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Call the wrapped optimizer's ``zero_grad``."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict, with this wrapper's own state in its first group."""
        state = self.optimizer.state_dict()
        if self._key is not None:
            # A copy, so that the next steps do not change what has been saved.
            state[self._key] = state["param_groups"][0][self._key] = dict(self._memory)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned; training then continues as if it had not stopped.

        Raises:
            ValueError: the state dict was saved by another kind of optimizer.
        """
        if self._key is not None and self._key not in state_dict["param_groups"][0]:
            name, found = type(self).__name__, sorted(map(str, state_dict["param_groups"][0]))
            raise ValueError(
                f"Expected a state dict saved by {name} (with the key {self._key!r} in its first group), found the "
                f"keys {found}. To start {name} from another optimizer's state, load it into the wrapped optimizer "
                "(the attribute `optimizer`)."
            )
        self.optimizer.load_state_dict(state_dict)
        if self._key is not None:
            self._recall(state_dict["param_groups"][0][self._key])

    def _remember(self, memory: dict[str, Any]) -> None:
        """Set the own state, also in the first group."""
        self._memory = memory
        if self._key is not None:
            self.param_groups[0][self._key] = memory

    def _recall(self, saved: dict[str, Any]) -> None:
        """Restore the own state from a loaded first group."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler replaces `step` by a bound function of its own; hooks are left behind as in torch.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name != "step" and not name.startswith("_optimizer_")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up_hooks()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner_repr()})"

    def _inner_repr(self) -> str:
        """Return the ``repr`` of the wrapped optimizer without the wrappers' own state in its groups."""
        if isinstance(self.optimizer, Wrapper):
            return repr(self.optimizer)
        plain = copy.copy(self.optimizer)
        plain.param_groups = [
            {name: value for name, value in group.items() if not isinstance(value, dict)}
            for group in self.optimizer.param_groups
        ]
        return repr(plain)

    @staticmethod
    def _evaluate(closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()
