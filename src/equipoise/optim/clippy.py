"""Clippy: shrinks the update of each tensor until no element changes by much against its own size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from equipoise.optim.rules import rule_of
from equipoise.optim.wrapper import Wrapper

__all__ = ["Clippy"]


class Clippy(Wrapper):
    """Shrinks the update of each tensor by one factor (Tang et al., arXiv 2302.09178, algorithm 1).

    With ``w`` a tensor of parameters and ``u`` its update, the step becomes ``σ lr u`` with

        σ = min(1, min_j (relative · |w_j| + absolute) / |lr u_j|),    0/0 → 1.

    Decoupled weight decay is not part of u and is not shrunk. The optimizer's state is not affected.
    The original code, for Adagrad, has ``relative=0.1, absolute=1e-7``, which holds back a tensor that
    contains a single zero (a fresh bias) almost entirely; the defaults are those that PUB's authors use
    with Adam.

    Alone it is an ordinary optimizer: ``loss.backward(); optimizer.step()``. Inside PUB or AdaTask it
    shrinks the joint update, after balancing: ``PUB(Clippy(Adam(...)), shared=...)``. Under FSDP2 the minimum
    is over all parts of a tensor, for which all tensors together take one collective.

    Args:
        optimizer: a ``torch.optim`` SGD, Adam, AdamW, Adagrad or RMSprop.
        relative: λ_rel, at least 0.
        absolute: λ_abs, at least 0, in units of the parameters.

    Raises:
        TypeError: ``optimizer`` is none of these.
        ValueError: a limit is negative.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = Clippy(torch.optim.SGD([weight], lr=1.0), relative=0.1, absolute=0.0)
        >>> (4 * weight.sum()).backward()
        >>> optimizer.step()
        >>> weight.data
        tensor([0.9000, 1.9000])
    """

    def __init__(self, optimizer: Optimizer, *, relative: float = 0.5, absolute: float = 0.01) -> None:
        self._rule = rule_of(optimizer)
        for name, limit in (("relative", relative), ("absolute", absolute)):
            if not limit >= 0:
                raise ValueError(f"{name} must be at least 0, found {limit}.")
        super().__init__(optimizer)
        self.relative = relative
        self.absolute = absolute

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make the wrapped optimizer's step, then shrink it."""
        result = self._evaluate(closure)
        before = self.remember()
        self.optimizer.step()
        self.shrink(before)
        return result

    def remember(self) -> list[Tensor]:
        """Return copies of the parameters with a gradient for :meth:`shrink`; of sharded ones this rank's part."""
        return [_local(p).clone() for _, p in self._moving()]

    def shrink(self, before: list[Tensor]) -> None:
        """Shrink the step made since :meth:`remember` to the limits."""
        moving = self._moving()
        tightest = []
        for (options, p), old in zip(moving, before, strict=True):
            limit = old.abs().mul_(self.relative).add_(self.absolute)
            if decay := self._rule.decoupled_decay(options):
                old.mul_(1 - options["lr"] * decay)
            share = limit.div_((_local(p) - old).abs_())  # x/0 = ∞ and 0/0 = NaN, neither of which is under 1
            tightest.append(share.nan_to_num_(nan=1.0).amin() if share.numel() else share.new_ones(()))
        factors = _over_shards([p for _, p in moving], tightest)
        for (_, p), old, factor in zip(moving, before, factors, strict=True):
            # lerp gives back p itself, to the last bit, where the factor is 1
            _local(p).copy_(torch.lerp(old, _local(p), factor.clamp(max=1)))

    def _moving(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]

    def __repr__(self) -> str:
        return f"Clippy({self._inner_repr()}, relative={self.relative}, absolute={self.absolute})"


def _local(p: Any) -> Tensor:
    """Return this rank's part of a DTensor (FSDP2, whose module is slow to import), or any other tensor itself."""
    part: Tensor = p.detach().to_local() if hasattr(p, "placements") else p.detach()
    return part


def _over_shards(parameters: list[Any], tightest: list[Tensor]) -> list[Tensor]:
    """Return each parameter's smallest factor over the ranks that hold a part of it, by one collective."""
    meshes: dict[Any, list[int]] = {}
    for place, p in enumerate(parameters):
        if hasattr(p, "placements"):
            meshes.setdefault(p.device_mesh, []).append(place)
    found = list(tightest)
    for mesh, places in meshes.items():
        together = torch.stack([tightest[place].double() for place in places])
        for dimension in range(mesh.ndim):
            dist.all_reduce(together, dist.ReduceOp.MIN, group=mesh.get_group(dimension))
        for place, share in zip(places, together.unbind(), strict=True):
            found[place] = share.to(tightest[place].dtype)
    return found
