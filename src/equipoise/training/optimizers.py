"""The optimizer and the learning rate schedule that the settings of a training describe."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler

from equipoise.errors import SettingError
from equipoise.optim.wrapper import Wrapper
from equipoise.schema import Schema
from equipoise.settings import OptimizerName, TrainingSettings
from equipoise.training.row_wise_adagrad import RowWiseAdagrad

__all__ = [
    "ROW_WISE_RATE",
    "WithRowWiseTables",
    "build_optimizer",
    "build_schedule",
    "embedding_tables",
    "fused_table_optimizer",
    "note_on_large_tables",
    "table_rate",
]

ROW_WISE_RATE: Final = 0.3
"""The rate of row-wise Adagrad where the settings state none: the best of `benchmarks/recipes.py`."""

_KINDS: Final[Mapping[OptimizerName, tuple[type[Optimizer], Mapping[str, Any]]]] = {
    "adam": (Adam, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "fused": True}),
    "adamw": (AdamW, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "fused": True}),
    "sgd": (SGD, {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "fused": False}),
    "adagrad": (Adagrad, {"lr_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10, "fused": False}),
    "rmsprop": (RMSprop, {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False}),
}
"""Of each optimizer: its class, and the options that a user may set, with their defaults."""


class WithRowWiseTables(Wrapper):
    """A torch.optim optimizer of the dense parameters, and a row-wise Adagrad of the tables, as one optimizer.

    Its groups are those of the first, then those of the second; its state dict is that of one optimizer with all of
    these groups.

    Attributes:
        row_wise: the optimizer of the tables.
    """

    def __init__(self, dense: Optimizer, row_wise: RowWiseAdagrad) -> None:
        self.row_wise = row_wise
        super().__init__(dense)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [*self.optimizer.param_groups, *self.row_wise.param_groups]

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        first = len(self.optimizer.param_groups)
        self.optimizer.param_groups, self.row_wise.param_groups = value[:first], value[first:]

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The state of both."""
        return defaultdict(dict, {**self.optimizer.state, **self.row_wise.state})

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        tables = {p for group in self.row_wise.param_groups for p in group["params"]}
        self.optimizer.state = defaultdict(dict, {p: found for p, found in value.items() if p not in tables})
        self.row_wise.state = defaultdict(dict, {p: found for p, found in value.items() if p in tables})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad(set_to_none)
        self.row_wise.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters."""
        result = self._evaluate(closure)
        self.optimizer.step()
        self.row_wise.step()
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both as that of one optimizer."""
        dense, tables = self.optimizer.state_dict(), self.row_wise.state_dict()
        shift = self._dense_count
        return {
            **dense,
            "state": dense["state"] | {place + shift: found for place, found in tables["state"].items()},
            "param_groups": dense["param_groups"] + _shifted(tables["param_groups"], shift),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        groups, shift = state_dict["param_groups"], self._dense_count
        first, state = len(self.optimizer.param_groups), state_dict["state"]
        self.optimizer.load_state_dict(
            {
                **state_dict,
                "state": {place: found for place, found in state.items() if place < shift},
                "param_groups": groups[:first],
            }
        )
        self.row_wise.load_state_dict(
            {
                "state": {place - shift: found for place, found in state.items() if place >= shift},
                "param_groups": _shifted(groups[first:], -shift),
            }
        )

    @property
    def _dense_count(self) -> int:
        return sum(len(group["params"]) for group in self.optimizer.param_groups)

    def __repr__(self) -> str:
        return f"WithRowWiseTables({self.optimizer!r}, {self.row_wise!r})"


def build_optimizer(module: nn.Module, parameters: Sequence[nn.Parameter], settings: TrainingSettings, /) -> Optimizer:
    """Build the optimizer of a model's parameters.

    ``weight_decay`` is that of the optimizer, decoupled in AdamW alone, and spares the embedding tables;
    ``table_decay`` is decoupled and theirs alone.

    Args:
        module: holds the tables: ``nn.Embedding`` and ``nn.EmbeddingBag``.
        parameters: those to step.

    Raises:
        SettingError: an option is not known, or out of range.
    """
    lr, decay = settings.lr, settings.weight_decay
    kind, options = _kind_and_options(settings)
    build = partial(kind, lr=lr, weight_decay=decay, **options)
    known = {id(table) for table in embedding_tables(module)}
    tables = [p for p in parameters if id(p) in known]
    dense = [p for p in parameters if id(p) not in known]
    try:
        if settings.table_optimizer == "rowwise-adagrad" and tables:
            rate = table_rate(settings)
            row_wise = RowWiseAdagrad(tables, rate, weight_decay=settings.table_decay)
            return WithRowWiseTables(build(dense), row_wise)
        if not tables or (table_rate(settings) == lr and settings.table_decay == decay == 0):
            return build(parameters)
        of_tables: dict[str, Any] = {"params": tables, "lr": table_rate(settings), "weight_decay": settings.table_decay}
        if settings.optimizer in {"adam", "adamw"}:
            of_tables["decoupled_weight_decay"] = True
        return build([{"params": dense}, of_tables])
    except (ValueError, RuntimeError) as error:
        raise SettingError(f"optimizer_options of {settings.optimizer}: {error}") from error


def embedding_tables(module: nn.Module, /) -> list[nn.Parameter]:
    """Return the weights of the embeddings of a module."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return [p for part in module.modules() if isinstance(part, kinds) for p in part.parameters(recurse=False)]


def note_on_large_tables(schema: Schema, settings: TrainingSettings, /) -> str:
    """Return a sentence that names row-wise Adagrad where it makes steps on a CPU several times as fast; else "".

    The limit is that of ``benchmarks/tables.py``, whose steps take a third of the time with 512 rows for each row of a
    batch.
    """
    rows = sum(feature.cardinality for feature in schema.categorical if feature.table in {"", feature.name})
    looked_up = settings.batch_size * len(schema.categorical_columns) if settings.batch_size is not None else 0
    dense = settings.table_optimizer == "same" and settings.sharding in {"ddp", "fsdp"}
    if not dense or torch.device(settings.device).type != "cpu" or rows < 512 * (settings.batch_size or rows):
        return ""
    return (
        f"The embedding tables have {rows:,} rows, all of which {settings.optimizer} steps in every step; a batch "
        f"looks up at most {looked_up:,}. With --table-optimizer rowwise-adagrad a step takes those alone, see "
        "docs/recipes.md."
    )


def table_rate(settings: TrainingSettings, /) -> float:
    """Return the learning rate of the embedding tables.

    Example:
        >>> table_rate(TrainingSettings.of(lr=0.01)), table_rate(TrainingSettings.of(table_lr=0.3))
        (0.01, 0.3)
    """
    if settings.table_lr is not None:
        return settings.table_lr
    return ROW_WISE_RATE if settings.table_optimizer == "rowwise-adagrad" else settings.lr


def fused_table_optimizer(settings: TrainingSettings, /) -> tuple[type[Optimizer], dict[str, float]]:
    """Return class and options of the optimizer that TorchRec fuses into the backward pass of its tables."""
    if settings.table_optimizer == "same" or settings.sharding in {"ddp", "fsdp"}:  # which fuse nothing
        return Adagrad, {"lr": table_rate(settings), "eps": 1e-10}
    from torchrec.optim import RowWiseAdagrad as Fused  # noqa: PLC0415 - an optional dependency

    return Fused, {"lr": table_rate(settings), "eps": 1e-8}


def build_schedule(optimizer: Optimizer, settings: TrainingSettings, steps: int | None, /) -> LRScheduler | None:
    """Build the schedule of the learning rates over a training of so many steps; None if they stay.

    Over the first ``warmup`` of the steps the rates rise linearly to their full value. Over the others they fall to 0,
    linearly or along half a cosine, or stay.

    Args:
        optimizer: all of its groups change by the same factor.
        steps: the steps of the whole training; None: the rates stay.
    """
    warm = 0 if steps is None else round(settings.warmup * steps)
    if steps is None or (settings.schedule == "constant" and not warm):
        return None
    if settings.schedule == "linear" and not warm:
        # torch multiplies the rate of the step before, so its last digits differ from those of a closed form
        return LinearLR(optimizer, 1.0, 0.0, steps)
    return LambdaLR(optimizer, partial(_FALLS[settings.schedule], steps=steps, warm=warm))


def _factor(step: int, fall: Callable[[float], float], *, steps: int, warm: int) -> float:
    """Return the factor of the step after ``step`` others."""
    return (step + 1) / warm if step < warm else fall((step - warm) / max(1, steps - warm))


_FALLS: Final[Mapping[str, Callable[..., float]]] = {
    "linear": partial(_factor, fall=lambda share: 1 - share),
    "constant": partial(_factor, fall=lambda share: 1.0),  # noqa: ARG005 - it stays
    "cosine": partial(_factor, fall=lambda share: (1 + math.cos(math.pi * share)) / 2),
}


def _kind_and_options(settings: TrainingSettings) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    kind, known = _KINDS[settings.optimizer]
    stated = settings.optimizer_options
    if unknown := sorted(stated.keys() - known.keys()):
        raise SettingError(
            f"optimizer_options of {settings.optimizer}: expected options out of {', '.join(known)}; found "
            f"{', '.join(unknown)}."
        )
    for name, value in stated.items():
        expected = (bool,) if isinstance(known[name], bool) else (int, float)
        if type(value) not in expected:
            raise SettingError(
                f"optimizer_options of {settings.optimizer}: {name} must be "
                f"{'true or false' if expected == (bool,) else 'a number'}, found {value!r}."
            )
    options = {name: value for name, value in stated.items() if name not in {"beta1", "beta2"}}
    if stated.keys() & {"beta1", "beta2"}:
        options["betas"] = tuple(stated.get(name, known[name]) for name in ("beta1", "beta2"))
    if known.get("fused"):  # one pass over a parameter and its state, where the default of torch makes several
        options.setdefault("fused", True)
    return kind, options


def _shifted(groups: Sequence[dict[str, Any]], by: int) -> list[dict[str, Any]]:
    """Return the groups of a state dict, with other numbers for the parameters."""
    return [{**group, "params": [place + by for place in group["params"]]} for group in groups]
