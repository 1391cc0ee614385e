"""Average over the ranks all gradients that a step needs, in one large collective.

``DistributedDataParallel`` averages what one backward pass leaves behind, once per step. An optimizer that makes
several passes, or needs the tasks' gradients one by one, averages them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from equipoise.optim.entries import touched_rows

__all__ = ["Averaging", "averaging_of", "refuse_unaveraged", "refuse_unknown_ranks"]

_NONE, _SPARSE, _DENSE = range(3)  # kinds of gradient on a rank; the largest decides


class Averaging:
    """The ranks that a step's gradients are averaged over.

    Attributes:
        group: the ranks.
        modules: the modules whose own averaging is switched off.
        fused: whether parameters upstream are stepped by their own backward pass, as TorchRec's tables are.
    """

    def __init__(
        self, group: dist.ProcessGroup, modules: Sequence[DistributedDataParallel] = (), *, fused: bool = False
    ) -> None:
        self.group = group
        self.modules = modules
        self.fused = fused

    def __deepcopy__(self, memo: dict[int, Any]) -> Averaging:
        return self  # ranks are not copied

    def take_over(self) -> None:
        """Switch off the modules' own averaging from now on."""
        for module in self.modules:
            module.require_backward_grad_sync = False

    def average(
        self, parameters: Sequence[Parameter], gradients: Sequence[Tensor | None], present: Sequence[bool]
    ) -> tuple[list[Tensor | None], list[bool]]:
        """Return the mean of every gradient over the ranks, None counting as 0, and the tasks that any rank has.

        A small collective first finds which gradients exist on any rank; the others are not sent and stay None. This
        waits for the device once, as ``find_unused_parameters`` of DDP does. Then all are sent at once; of sparse
        gradients the rows that any rank touches.

        Args:
            parameters: the parameter of each gradient; one may occur several times.
            gradients: this rank's.
            present: whether this rank has a loss of a task.
        """
        device = parameters[0].device
        kinds = [_NONE if g is None else _SPARSE if g.is_sparse else _DENSE for g in gradients]
        found = torch.tensor([*kinds, *present], dtype=torch.int32, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        kinds, anywhere = found[: len(kinds)].tolist(), found[len(kinds) :].bool().tolist()
        rows, parts = self._of_sparse(parameters, gradients, kinds)
        for place, (p, g, kind) in enumerate(zip(parameters, gradients, kinds, strict=True)):
            if kind == _DENSE:
                parts[place] = torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
        self._average_flat(parts)
        for module in self.modules:
            module.require_forward_param_sync = True  # else it would stop broadcasting buffers, such as BatchNorm's
        averaged: list[Tensor | None] = []
        for place, p in enumerate(parameters):
            part = parts.get(place)
            if part is not None and place in rows:
                part = torch.sparse_coo_tensor(
                    rows[place].unsqueeze(0), part, p.shape, is_coalesced=True, check_invariants=False
                )
            averaged.append(part)
        return averaged, anywhere

    def _of_sparse(
        self, parameters: Sequence[Parameter], gradients: Sequence[Tensor | None], kinds: Sequence[int]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Return, by the place of each sparse gradient, the rows that any rank touches and this rank's values there."""
        places: dict[int, list[int]] = {}
        for place, (p, kind) in enumerate(zip(parameters, kinds, strict=True)):
            if kind == _SPARSE:
                places.setdefault(id(p), []).append(place)
        own = []
        for group in places.values():
            p = parameters[group[0]]
            if any(gradients[place] is not None for place in group):
                own.append(touched_rows(p, [gradients[place] for place in group]))
            else:
                own.append((torch.empty(0, dtype=torch.int64, device=p.device), [None for _ in group]))
        rows: dict[int, Tensor] = {}
        parts: dict[int, Tensor] = {}
        everywhere = self._union([touched for touched, _ in own]) if own else []
        for group, (touched, values), union in zip(places.values(), own, everywhere, strict=True):
            for place, value in zip(group, values, strict=True):
                p = parameters[place]
                wide = torch.zeros(len(union), *p.shape[1:], dtype=p.dtype, device=p.device)
                if value is not None:
                    wide.index_copy_(0, torch.searchsorted(union, touched), value.view(-1, *p.shape[1:]))
                rows[place], parts[place] = union, wide
        return rows, parts

    def _union(self, touched: Sequence[Tensor]) -> list[Tensor]:
        """Return the union over all ranks of each list of sorted row numbers."""
        world = dist.get_world_size(self.group)
        counts = torch.tensor([len(own) for own in touched], dtype=torch.int64, device=touched[0].device)
        of_ranks = [torch.empty_like(counts) for _ in range(world)]
        dist.all_gather(of_ranks, counts, group=self.group)
        lengths: list[list[int]] = torch.stack(of_ranks).tolist()
        padded = counts.new_zeros(max(sum(own) for own in lengths))
        mine = torch.cat(list(touched))
        padded[: len(mine)] = mine
        lists = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(lists, padded, group=self.group)
        split = [torch.split(entry[: sum(own)], own) for entry, own in zip(lists, lengths, strict=True)]
        return [torch.unique(torch.cat(of_one)) for of_one in zip(*split, strict=True)]

    def _average_flat(self, parts: dict[int, Tensor]) -> None:
        """Replace each part by its mean over the ranks; one collective for each dtype and device."""
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for place in sorted(parts):
            kinds.setdefault((parts[place].dtype, parts[place].device), []).append(place)
        for places in kinds.values():
            flat = torch.cat([parts[place].reshape(-1) for place in places])
            flat.div_(dist.get_world_size(self.group))  # before the sum, which may overflow float16
            dist.all_reduce(flat, group=self.group)
            pieces = torch.split(flat, [parts[place].numel() for place in places])
            for place, piece in zip(places, pieces, strict=True):
                # .data: a version counter of its own, by which a change of this gradient alone is noticed.
                parts[place] = piece.view(parts[place].shape).data


def refuse_unknown_ranks(name: str) -> None:
    """Refuse several ranks if the optimizer of this name was not told which of them train together.

    Raises:
        RuntimeError: there are several.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks > 1:
        raise RuntimeError(
            f"{name} needs the average of its tasks' gradients over the ranks, found {ranks} and nothing that says "
            "which of them train together. Pass data_parallel=<the DistributedDataParallel or DistributedModelParallel "
            "module>, or the process group, if its ranks start from equal parameters."
        )


def refuse_unaveraged(leaves: Sequence[Tensor], name: str) -> None:
    """Refuse parameters that the optimizer of this name lacks, if there are several ranks.

    Raises:
        RuntimeError: there is one.
    """
    found = [str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, Parameter)]
    if found:
        raise RuntimeError(
            f"{name} takes the averaging over the ranks over, found {len(found)} parameters in the losses' graph that "
            f"are not its own, and whose gradients nobody would average: {', '.join(found[:5])}. Give them to the "
            "optimizer, or freeze them (requires_grad_(False))."
        )


def averaging_of(
    data_parallel: nn.Module | dist.ProcessGroup | None, groups: Sequence[dict[str, Any]], name: str
) -> Averaging | None:
    """Return the averaging that ``data_parallel`` asks for; None for a single process.

    Raises:
        RuntimeError: there are several ranks, and nothing says that and how they train together.
        ValueError: the module holds no ``DistributedDataParallel``, or one with
            parameters that are not in ``groups``, or with a static graph; or ``groups`` hold TorchRec's data-parallel
            tables.
    """
    if data_parallel is None:
        refuse_unknown_ranks(name)
        return None
    if any("grad" in vars(type(p)) for group in groups for p in group["params"]):
        raise ValueError(
            f"{name} takes its tasks' gradients apart, found embedding tables that TorchRec holds data-parallel, which "
            "have one gradient for all tables. Shard them table-, row- or column-wise, or put the model with plain "
            "nn.Embedding tables under DistributedDataParallel."
        )
    if not isinstance(data_parallel, nn.Module):
        return Averaging(data_parallel)
    wrapped = [m for m in data_parallel.modules() if isinstance(m, DistributedDataParallel)]
    if not wrapped:
        raise ValueError(
            f"data_parallel must hold a DistributedDataParallel module, or be a process group; found "
            f"{type(data_parallel).__name__} without one. Wrap the model before the optimizer is made."
        )
    if any(m.static_graph for m in wrapped):
        raise ValueError(
            f"{name} takes the averaging over from DistributedDataParallel, found one with static_graph=True, which "
            "averages the first backward pass in any case. Make it with static_graph=False (TorchRec: "
            "data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False))."
        )
    known = {id(p) for group in groups for p in group["params"]}
    strange = [
        key
        for m in wrapped
        for key, p in m.module.named_parameters()
        if p.requires_grad and key not in m.parameters_to_ignore and id(p) not in known
    ]
    if strange:
        raise ValueError(
            f"{name} takes the averaging over from DistributedDataParallel, found parameters there that are not the "
            f"optimizer's and would drift apart: {', '.join(strange[:5])}. Give the optimizer all of them; shard "
            "embedding tables table-, row- or column-wise instead of data-parallel."
        )
    # Recognise TorchRec's DistributedModelParallel by its attributes, because this package imports torch alone. This
    # includes ranks without a table: all take part in the collectives of that backward pass.
    return Averaging(wrapped[0].process_group, wrapped, fused=hasattr(data_parallel, "fused_optimizer"))
