"""The update rules of torch.optim as pure functions: (gradients, state) → update without the learning rate.

torch.optim applies a rule in place and to one gradient; balancing needs the update of every task's gradient from one
state before anything moves. Rows of a matrix are gradients (tasks, or their weighted sum), columns are parameters.
State is kept under torch's own names, so that a wrapped optimizer can continue from a wrapper's state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

__all__ = ["Count", "Options", "Rule", "State", "rule_of"]

Options = dict[str, Any]
"""A group of ``optimizer.param_groups``."""

State = dict[str, Tensor]
"""Tensors of n columns and one row, or one row per gradient; by torch's names."""

Count = float | Tensor
"""How many steps there have been, this one included; a tensor, with one row per gradient, where rows differ."""


class Rule(ABC):
    """The update rule of one kind of optimizer."""

    affine: bool = False
    """Whether the update is affine in the gradient: then a weighted sum of updates needs only that of gradients."""

    def is_identity(self, options: Options, /) -> bool:
        """Tell whether the update is the gradient itself."""
        return False

    @abstractmethod
    def names(self, options: Options, /) -> tuple[str, ...]:
        """Return the names of the state tensors that have the parameter's shape."""

    @abstractmethod
    def advance(
        self, g: Tensor, theta: Tensor, state: State, count: Count, options: Options, /
    ) -> tuple[Tensor, State]:
        """Return the update and the state after it for each row of ``g``, [R, n], had this gradient come alone.

        ``theta`` [n] is needed for weight decay that is part of the gradient; decoupled decay is not applied.
        """

    @abstractmethod
    def precondition(self, g: Tensor, state: State, count: Count, options: Options, /) -> Tensor:
        """Return each row of ``g`` as the rule scales it, without momentum and with one scale for all rows.

        The scale is the state's second moment advanced by the sum of the rows' squares, which is never smaller than
        one row's own part: a parameter that has had no gradient before gives finite, moderate values.
        """

    def initial(self, p: Tensor, options: Options, /) -> State:
        """Return the state before the first step, as torch creates it."""
        on_device = options.get("fused") or options.get("capturable")
        state = {"step": torch.zeros((), dtype=torch.float32, device=p.device if on_device else "cpu")}
        return state | {name: torch.zeros_like(p) for name in self.names(options)}

    def decoupled_decay(self, options: Options, /) -> float:
        """Return the weight decay that is applied to the parameters beside the update."""
        return 0.0


def _with_decay(g: Tensor, theta: Tensor, options: Options) -> Tensor:
    """Return the gradient of the loss to be minimised (``maximize`` flips its sign), with coupled weight decay."""
    if options["maximize"]:
        g = -g
    if options["weight_decay"]:
        g = torch.add(g, theta, alpha=options["weight_decay"])
    return g


class _SGD(Rule):
    affine = True

    def is_identity(self, options: Options, /) -> bool:
        return not options["momentum"] and not options["weight_decay"]

    def names(self, options: Options, /) -> tuple[str, ...]:
        return ("momentum_buffer",) if options["momentum"] else ()

    def initial(self, p: Tensor, options: Options, /) -> State:
        return {name: torch.zeros_like(p) for name in self.names(options)}

    def advance(
        self, g: Tensor, theta: Tensor, state: State, count: Count, options: Options, /
    ) -> tuple[Tensor, State]:
        g = _with_decay(g, theta, options)
        momentum = options["momentum"]
        if not momentum:
            return g, {}
        share = 1 if count == 1 else 1 - options["dampening"]  # torch does not dampen the first gradient
        buffer = torch.add(state["momentum_buffer"] * momentum, g, alpha=share)
        update = torch.add(g, buffer, alpha=momentum) if options["nesterov"] else buffer
        return update, {"momentum_buffer": buffer}

    def precondition(self, g: Tensor, state: State, count: Count, options: Options, /) -> Tensor:
        return g


class _Adam(Rule):
    def __init__(self, decoupled: bool) -> None:
        self._decoupled = decoupled

    def names(self, options: Options, /) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if options["amsgrad"] else 2]

    def decoupled_decay(self, options: Options, /) -> float:
        decoupled = options.get("decoupled_weight_decay", self._decoupled)  # an option of Adam since torch 2.7
        return float(options["weight_decay"]) if decoupled else 0.0

    def advance(
        self, g: Tensor, theta: Tensor, state: State, count: Count, options: Options, /
    ) -> tuple[Tensor, State]:
        decoupled = self.decoupled_decay(options)
        g = _with_decay(g, theta, options | {"weight_decay": 0} if decoupled else options)
        beta1, beta2 = options["betas"]
        after = {
            "exp_avg": torch.lerp(state["exp_avg"], g, 1 - beta1),
            "exp_avg_sq": torch.addcmul(state["exp_avg_sq"] * beta2, g, g, value=1 - beta2),
        }
        second = after["exp_avg_sq"]
        if options["amsgrad"]:
            second = after["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], second)
        bias1, bias2 = 1 - beta1**count, 1 - beta2**count
        # m̂ / (√v̂ + ε) with both bias corrections moved into the denominator. Beside √v this ε is smallest in the first
        # step.
        root = _root(second, options["eps"] * (1 - beta2) ** 0.5)
        denominator = root.mul_(bias1 / bias2**0.5).add_(options["eps"] * bias1)
        return after["exp_avg"] / denominator, after

    def precondition(self, g: Tensor, state: State, count: Count, options: Options, /) -> Tensor:
        beta2 = options["betas"][1]
        second = torch.add(state["exp_avg_sq"] * beta2, g.square().sum(0), alpha=1 - beta2)
        if options["amsgrad"]:
            second = torch.maximum(state["max_exp_avg_sq"], second)
        return g / _root(second.div_(1 - beta2**count), options["eps"]).add_(options["eps"])


class _Adagrad(Rule):
    def names(self, options: Options, /) -> tuple[str, ...]:
        return ("sum",)

    def initial(self, p: Tensor, options: Options, /) -> State:
        state = super().initial(p, options)
        state["sum"].fill_(options["initial_accumulator_value"])
        return state

    def advance(
        self, g: Tensor, theta: Tensor, state: State, count: Count, options: Options, /
    ) -> tuple[Tensor, State]:
        g = _with_decay(g, theta, options)
        total = torch.addcmul(state["sum"], g, g)
        update = g / _root(total, options["eps"]).add_(options["eps"])
        if options["lr_decay"]:
            update = update / (1 + (count - 1) * options["lr_decay"])
        return update, {"sum": total}

    def precondition(self, g: Tensor, state: State, count: Count, options: Options, /) -> Tensor:
        return g / _root(state["sum"] + g.square().sum(0), options["eps"]).add_(options["eps"])


class _RMSprop(Rule):
    def names(self, options: Options, /) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if options["momentum"] > 0 else ()
        centered = ("grad_avg",) if options["centered"] else ()
        return ("square_avg", *momentum, *centered)

    def advance(
        self,
        g: Tensor,
        theta: Tensor,
        state: State,
        count: Count,
        options: Options,
        /,
    ) -> tuple[Tensor, State]:
        g = _with_decay(g, theta, options)
        alpha = options["alpha"]
        after = {"square_avg": torch.addcmul(state["square_avg"] * alpha, g, g, value=1 - alpha)}
        variance = after["square_avg"]
        if options["centered"]:
            mean = after["grad_avg"] = torch.lerp(state["grad_avg"], g, 1 - alpha)
            variance = torch.addcmul(variance, mean, mean, value=-1).clamp_(min=0)  # rounding may leave it under 0
        update = g / _root(variance, options["eps"]).add_(options["eps"])
        if options["momentum"] > 0:
            update = after["momentum_buffer"] = state["momentum_buffer"] * options["momentum"] + update
        return update, after

    def precondition(self, g: Tensor, state: State, count: Count, options: Options, /) -> Tensor:
        alpha, variance = options["alpha"], state["square_avg"]
        if options["centered"]:
            variance = (variance - state["grad_avg"].square()).clamp_(min=0)
        second = torch.add(variance * alpha, g.square().sum(0), alpha=1 - alpha)
        return g / _root(second, options["eps"]).add_(options["eps"])


def _root(squares: Tensor, least: float) -> Tensor:
    """Return the square roots of numbers, to each of which at least ``least`` is going to be added.

    MKL takes several times as long for zeros, such as the moments of the rows of a table that no batch has met, and far
    longer for numbers below the smallest normal one. So on a CPU both become the smallest normal number, if its root
    vanishes beside ``least``.
    """
    kind = torch.finfo(squares.dtype)
    if squares.is_cpu and 4 * kind.tiny**0.5 < kind.eps * least:
        squares = squares.clamp(min=kind.tiny)
    return squares.sqrt()


# By exact type: a subclass may step in another way.
_RULES: dict[type[Optimizer], Rule] = {
    SGD: _SGD(),
    Adam: _Adam(decoupled=False),
    AdamW: _Adam(decoupled=True),
    Adagrad: _Adagrad(),
    RMSprop: _RMSprop(),
}


def rule_of(optimizer: object, /) -> Rule:
    """Return the rule of a torch.optim optimizer.

    Raises:
        TypeError: it is none of SGD, Adam, AdamW, Adagrad, RMSprop.
    """
    rule = _RULES.get(type(optimizer))  # type: ignore[arg-type]
    if rule is None:
        known = ", ".join(f"torch.optim.{kind.__name__}" for kind in _RULES)
        raise TypeError(f"Expected an instance of one of {known}, found {type(optimizer).__qualname__}.")
    return rule
