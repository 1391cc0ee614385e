"""The monitor: norms, weights and cosines at a model's forks and in PUB, as named scalars for any logger."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from equipoise.forks.fork import Fork
from equipoise.solvers import min_norm_weights

__all__ = ["Monitor", "Reading"]


@runtime_checkable
class _Balancing(Protocol):
    """An optimizer that weighs the tasks' updates, such as PUB; it may not know its tasks before its first step."""

    tasks: tuple[str, ...]
    last_gram: Tensor
    last_weights: Tensor
    last_present: Tensor


class _LossWeighting(Protocol):
    """Weights of the tasks' losses, such as :class:`equipoise.loss_weighting.LossWeighting`."""

    tasks: tuple[str, ...]
    last_present: Tensor

    def monitored(self) -> Mapping[str, Tensor]: ...


class _ScalarWriter(Protocol):
    """The one method of TensorBoard's ``SummaryWriter`` that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


@dataclass(frozen=True)
class _Record:
    prefix: str
    tasks: tuple[str, ...]
    gram: Tensor | None
    present: Tensor
    per_task: Mapping[str, Tensor]


class Reading:
    """The values that a :class:`Monitor` read in one step, on the device; scalars are computed when asked for."""

    def __init__(self, records: list[_Record]) -> None:
        self._records = records

    def scalars(self) -> dict[str, float]:
        """Return every value under its name, as a plain dict; this waits for the device.

        Values of tasks that were not present in the step are left out, and so is the average magnitude of a task not
        seen so far.
        """
        found: dict[str, float] = {}
        for record in self._records:
            found.update(_scalars(record))
        return found

    def write(self, writer: _ScalarWriter, step: int) -> None:
        """Write every value to TensorBoard's ``SummaryWriter``, or to any object with its ``add_scalar``."""
        for name, value in self.scalars().items():
            writer.add_scalar(name, value, step)


class Monitor:
    """Reads every fork in a model and, where there is one, the optimizer that balances updates.

    The names are stable: ``fork/<name>/<quantity>/<task>`` with the fork's place in the model as its name (its
    prefixes from DDP and ``torch.compile`` taken off; ``root`` for a fork that is the model itself), and
    ``pub/<quantity>/<task>``, and ``loss/weight/<task>`` for the weight of a task's loss. Quantities:

    - ``norm``: length of the task's gradient (PUB: update) in the last step, over all ranks, in unscaled units;
    - ``weight``: the weight with which it went on; not of forks that combine element by element;
    - ``cosine/<task>/<other>``: of each pair of tasks, −1 to 1;
    - ``stationarity`` (no task): length of the shortest convex combination of the tasks' unit gradients, 0 (Pareto
      stationary: no direction helps all) to 1 (all agree);
    - ``magnitude`` (MultiBalance): the bias-corrected moving average û of the norm;
    - ``balance`` (MultiBalance): λ, which sums to 1 over the tasks.

    Args:
        model: a module that holds forks, itself one, or wrapped by DDP or ``torch.compile``.
        optimizer: the training's optimizer; read if it balances updates.
        loss_weighting: the weighting of the tasks' losses, see :class:`equipoise.loss_weighting.LossWeighting`.

    Raises:
        ValueError: there is nothing to read.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), Fork(["click", "like"]))
        >>> monitor = Monitor(model)
        >>> for_click, for_like = model(torch.ones(4, 2))
        >>> (for_click.mean() + for_like.mean()).backward()
        >>> scalars = monitor.read().scalars()
        >>> sorted(scalars)[:2], scalars["fork/1/weight/like"]
        (['fork/1/cosine/click/like', 'fork/1/norm/click'], 1.0)
    """

    def __init__(
        self, model: nn.Module, optimizer: object | None = None, loss_weighting: _LossWeighting | None = None
    ) -> None:
        self._forks = [
            (f"fork/{_plain_name(name)}", module) for name, module in model.named_modules() if isinstance(module, Fork)
        ]
        self._optimizer = optimizer if isinstance(optimizer, _Balancing) else None
        self._loss_weighting = loss_weighting
        if not self._forks and self._optimizer is None and loss_weighting is None:
            raise ValueError(
                "A monitor needs something to read: found no Fork in the model and no balancing optimizer "
                f"(optimizer: {type(optimizer).__name__}). Put a fork between the shared layers and the towers."
            )

    def read(self) -> Reading:
        """Copy the last step's values, a few M×M tensors, on the device; does not wait for it."""
        records = [_record(prefix, fork, fork.monitored()) for prefix, fork in self._forks]
        if self._optimizer is not None and self._optimizer.tasks:
            weights = {"weight": self._optimizer.last_weights.clone()}
            records.append(_record("pub", self._optimizer, weights))
        if (weighting := self._loss_weighting) is not None:
            present = weighting.last_present.clone()
            records.append(_Record("loss", weighting.tasks, None, present, weighting.monitored()))
        return Reading(records)


def _record(prefix: str, source: Fork | _Balancing, per_task: Mapping[str, Tensor]) -> _Record:
    return _Record(prefix, source.tasks, source.last_gram.clone(), source.last_present.clone(), per_task)


def _scalars(record: _Record) -> dict[str, float]:
    tasks, prefix, present = record.tasks, record.prefix, record.present.tolist()
    norms = {} if record.gram is None else {"norm": record.gram.diagonal().sqrt()}
    found = {
        f"{prefix}/{quantity}/{task}": value
        for quantity, values in (norms | dict(record.per_task)).items()
        for task, value, here in zip(tasks, values.tolist(), present, strict=True)
        if here
    }
    return found if record.gram is None else found | _of_pairs(record, record.gram.cpu())


def _of_pairs(record: _Record, gram: Tensor) -> dict[str, float]:
    """Return the cosines of all pairs of present tasks, and stationarity."""
    tasks, prefix, present = record.tasks, record.prefix, record.present.tolist()
    norms = gram.diagonal().sqrt()
    cosines = gram / (norms * norms.unsqueeze(1))
    found: dict[str, float] = {}
    rows = cosines.tolist()
    for first, second in itertools.combinations([place for place, here in enumerate(present) if here], 2):
        found[f"{prefix}/cosine/{tasks[first]}/{tasks[second]}"] = rows[first][second]
    if any(present):
        units = torch.where(record.present.cpu() & record.present.cpu().unsqueeze(1), cosines, 0.0).double()
        weights = min_norm_weights(units, record.present.cpu())
        found[f"{prefix}/stationarity"] = float(torch.dot(weights, units @ weights).clamp(min=0).sqrt())
    return found


def _plain_name(name: str) -> str:
    parts = [part for part in name.split(".") if part not in {"_orig_mod", "module"}]
    return ".".join(parts) or "root"
