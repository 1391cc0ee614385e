"""A torch.optim.Optimizer that stands in front of another one and shows that one's groups and state as its
own.
"""

from __future__ import annotations

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
    """Delegates everything but ``step`` to ``self.optimizer``, which may be a wrapper itself.

    Learning rate schedulers, ``GradScaler`` and checkpoints read ``param_groups`` and ``state``; these are
    the wrapped optimizer's own objects, also after ``load_state_dict`` has replaced them. A subclass keeps
    what it must remember in ``_own_state`` and ``_load_own_state``, under ``_key`` in the state dict.
    """

    _key: str | None = None

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
        """The wrapped optimizer's ``zero_grad``."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict, with what this one must remember under a key of its own."""
        state = self.optimizer.state_dict()
        if self._key is not None:
            state[self._key] = self._own_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what ``state_dict`` returned; training then goes on exactly as it would have.

        Raises:
            ValueError: the state dict was saved by another kind of optimizer.
        """
        if self._key is not None and self._key not in state_dict:
            raise ValueError(
                f"Expected a state dict saved by {type(self).__name__} (with the key {self._key!r}), found the keys "
                f"{sorted(map(str, state_dict))}. To start {type(self).__name__} from another optimizer's state, load "
                "it into the wrapped optimizer (the attribute `optimizer`)."
            )
        self.optimizer.load_state_dict(state_dict)
        if self._key is not None:
            self._load_own_state(state_dict[self._key])

    def _own_state(self) -> dict[str, Any]:
        raise NotImplementedError

    def _load_own_state(self, state: dict[str, Any]) -> None:
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
        return f"{type(self).__name__}({self.optimizer!r})"

    @staticmethod
    def _evaluate(closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()
