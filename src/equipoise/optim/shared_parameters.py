"""Parameters that the tasks share, found in the graph of their losses, and warnings about a list that differs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from equipoise.errors import MisplacedForkWarning
from equipoise.reachability import Reach, kind_of, reach_of, shared_leaves

__all__ = ["find_shared", "warn_about_shared"]


def find_shared(
    losses: Sequence[Tensor | None],
    groups: Sequence[dict[str, Any]],
    name: str,
    ranks: dist.ProcessGroup | None,
) -> list[Parameter]:
    """Return the optimizer's parameters that at least two of the losses reach, in the order of its groups.

    Args:
        losses: one scalar per task.
        groups: the optimizer's.
        name: the optimizer's, for the messages.
        ranks: those that train together; what is shared on one of them is shared.

    Raises:
        RuntimeError: there is no such parameter, or the graph does not say.
    """
    own = [p for group in groups for p in group["params"]]
    if _through_one_compiled_graph(reach_of(losses)):
        raise RuntimeError(
            f'{name}(shared="auto") cannot see into a graph that torch.compile made for several tasks: it does not say '
            "which parameters each task reaches. Pass shared=[...]."
        )
    found = {id(leaf) for leaf in shared_leaves(losses)}
    here = torch.tensor([id(p) in found for p in own], dtype=torch.int32, device=own[0].device)
    if ranks is not None:
        dist.all_reduce(here, dist.ReduceOp.MAX, group=ranks)
    shared = [p for p, several in zip(own, here.tolist(), strict=True) if several]
    if not shared and len(losses) > 1:
        count = sum(loss is not None for loss in losses)
        raise RuntimeError(
            f'{name}(shared="auto") takes the parameters that at least two tasks reach, found none in the graph of '
            f"{count} losses. Let at least two tasks be present in the first step, and give the optimizer the "
            "parameters below the towers; or pass shared=[...]."
        )
    return shared


def warn_about_shared(
    losses: Sequence[Tensor | None],
    shared: Sequence[Parameter],
    groups: Sequence[dict[str, Any]],
    tasks: Sequence[str],
    name: str,
) -> None:
    """Warn if ``shared`` differs from the parameters that tasks share, or if a fork in the model balances too.

    Does not warn if a task is absent or if the graph hides parameters.
    """
    reach = reach_of(losses)
    if forks := _forks(reach):
        warnings.warn(
            f"{name} balances the tasks' updates, and the model balances their gradients already, at "
            f"{' and '.join(forks)}. Take out one of them.",
            MisplacedForkWarning,
            stacklevel=4,
        )
    if reach.unseen or _through_one_compiled_graph(reach) or any(loss is None for loss in losses) or len(losses) < 2:
        return
    known = {id(p) for p in shared}
    own = {id(p) for group in groups for p in group["params"]}
    alone = [leaf for leaf in reach.leaves if id(leaf.tensor) in known and leaf.tasks.bit_count() == 1]
    missing = [leaf for leaf in reach.leaves if leaf.shared and id(leaf.tensor) in own - known]
    if alone:
        of = ", ".join(dict.fromkeys(tasks[leaf.tasks.bit_length() - 1] for leaf in alone))
        warnings.warn(
            f"{name}: shared holds {len(alone)} parameters that one task alone reaches, a tower's: "
            f"{_shapes([leaf.tensor for leaf in alone])} (of {of}). They belong to the optimizer, "
            "but not into shared. equipoise.check names them.",
            MisplacedForkWarning,
            stacklevel=4,
        )
    if missing:
        warnings.warn(
            f"{name}: shared leaves out {len(missing)} parameters that several tasks reach: "
            f"{_shapes([leaf.tensor for leaf in missing])}. They get the plain sum of the tasks' gradients. Pass "
            'shared="auto" to balance all that the tasks share; equipoise.check names them.',
            MisplacedForkWarning,
            stacklevel=4,
        )


def _through_one_compiled_graph(reach: Reach) -> bool:
    """Tell whether several tasks reach one compiled graph, which hides what each of them reaches behind it."""
    return any(
        kind_of(node) == "CompiledFunction" and any(tasks.bit_count() > 1 for tasks in outputs.values())
        for node, outputs in reach.nodes.items()
    )


def _forks(reach: Reach) -> list[str]:
    """Return the forks in the graph, by their class."""
    found = [node for node in reach.nodes if kind_of(node) == "Meeting"]
    return [f"a {type(node.fork).__name__} over {', '.join(node.fork.tasks)}" for node in found]  # type: ignore[attr-defined]


def _shapes(parameters: Sequence[Tensor], most: int = 5) -> str:
    shown = ", ".join(str(tuple(p.shape)) for p in parameters[:most])
    return shown + (", …" if len(parameters) > most else "")
