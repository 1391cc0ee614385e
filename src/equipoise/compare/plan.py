"""What a comparison is to do: data, model, methods, seeds, rates; from the command line or a YAML file."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from equipoise.compare.settings_file import PlanError, read_settings
from equipoise.compare.tuned_rates import GRID, rate
from equipoise.methods import parse_scalar
from equipoise.training import METHODS, NonFinite, Schedule, Sharding

__all__ = ["Plan", "PlanError", "parse_pairs", "split_methods"]

Scalar = bool | int | float | str
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Defaults(BaseModel):
    """What suits a data set, where the user says nothing."""

    epochs: int
    batch_size: int


_DEFAULTS: Final = {
    "complete-journey": _Defaults(epochs=2, batch_size=2048),
    "census-income": _Defaults(epochs=3, batch_size=1024),
    "census-income-full": _Defaults(epochs=3, batch_size=1024),
    "funnel": _Defaults(epochs=1, batch_size=2048),
}
_OTHERWISE: Final = _Defaults(epochs=1, batch_size=2048)


class Plan(BaseModel):
    """A comparison, complete: the same plan gives the same numbers on the same machine.

    Attributes:
        data: a name that :func:`equipoise.data.load` knows, called with ``data_options``.
        model: a name that :func:`equipoise.ranking.models.build_model` knows, called with ``model_options``.
        methods: names out of the registry, options behind a colon (``"multibalance:beta=0.3"``).
        schedule: what the learning rate does over a training, see :func:`equipoise.training.train`.
        sharding: how `equipoise train` spreads the model over the processes of torchrun, see
            :func:`equipoise.training.parallelize`.
        non_finite: what a loss that is not finite leads to, see :func:`equipoise.training.train`; a comparison goes on
            with the next run after "raise".
        checkpoint_every: after how many steps `equipoise train` writes a checkpoint, besides those at its eight
            evaluation points.
        seeds: how many; they are 0, 1, 2, ...
        tune: choose each method's rate out of ``grid`` by its mean validation NE over ``tune_seeds`` seeds,
            which are others than those of the comparison.
        rates: method -> learning rate, instead of the tuned one or the committed one.
        loss_scale: task -> factor on its loss.

    Example:
        >>> Plan.of(data="census-income", methods=["equal", "multibalance"]).batch_size
        1024
        >>> Plan.of(data="census-income", epochs="two")
        Traceback (most recent call last):
        equipoise.compare.settings_file.PlanError: The settings cannot be used.
          epochs: input should be a valid integer; found 'two'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    data: str = "complete-journey"
    data_options: dict[str, Scalar] = Field(default_factory=dict)
    model: str = "shared-bottom"
    model_options: dict[str, Scalar | list[int]] = Field(default_factory=dict)
    methods: list[str] = Field(default=list(METHODS), min_length=1)
    seeds: int = Field(default=2, ge=1)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    schedule: Schedule = "linear"
    sharding: Sharding = "ddp"
    non_finite: NonFinite = "raise"
    checkpoint_every: int | None = Field(default=None, ge=1)
    tune: bool = False
    tune_seeds: int = Field(default=1, ge=1)
    grid: list[Positive] = Field(default=list(GRID), min_length=1)
    rates: dict[str, Positive] = Field(default_factory=dict)
    loss_scale: dict[str, Positive] = Field(default_factory=dict)

    @classmethod
    def of(cls, config: Path | None = None, /, **settings: Any) -> Self:
        """A plan from a YAML file and settings, which win; what neither says is what suits the data set.

        Raises:
            PlanError: the file cannot be read, or a setting is unknown or of the wrong type.
        """
        stated = {**(read_settings(config) if config else {}), **settings}
        origin = f"The settings in {config}" if config else "The settings"
        data = stated.get("data", cls.model_fields["data"].default)
        defaults = _DEFAULTS.get(data, _OTHERWISE) if isinstance(data, str) else _OTHERWISE
        try:
            return cls.model_validate({**defaults.model_dump(), **stated})
        except ValidationError as error:
            raise PlanError(f"{origin} cannot be used.\n{_explain(error)}") from error

    def rate(self, method: str) -> float:
        """The learning rate of a method where it is not tuned."""
        return self.rates.get(method, rate(self.data, self.model, method))


def _explain(error: ValidationError) -> str:
    lines = []
    for entry in error.errors():
        where = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            lines.append(f"  {where}: there is no such setting; there are {', '.join(Plan.model_fields)}")
        else:
            lines.append(
                f"  {where}: {entry['msg'][0].lower()}{entry['msg'][1:]}; found {reprlib.repr(entry['input'])}"
            )
    return "\n".join(lines)


_WIDTHS = re.compile(r"\d+(-\d+)+")


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, Scalar | list[int]]:
    """``KEY=VALUE`` words of the command line as a mapping; ``128-64`` is a list of numbers.

    Raises:
        PlanError: a word has another form.

    Example:
        >>> parse_pairs(["click=23", "like=0.5"], "--loss-scale")
        {'click': 23, 'like': 0.5}
        >>> parse_pairs(["bottom=128-64"], "--model-option")
        {'bottom': [128, 64]}
    """
    found: dict[str, Scalar | list[int]] = {}
    for pair in pairs:
        key, equals, value = pair.rpartition("=")  # a method's name may hold an equals sign of its own
        if not equals or not key:
            raise PlanError(f"{option}: expected KEY=VALUE, found {pair!r}.")
        found[key] = [int(n) for n in value.split("-")] if _WIDTHS.fullmatch(value) else parse_scalar(value)
    return found


def split_methods(text: str) -> list[str]:
    """The methods of a comma-separated list; options of a method have commas between them too.

    Example:
        >>> split_methods("equal,multibalance:beta=0.1,direction=gram,pub")
        ['equal', 'multibalance:beta=0.1,direction=gram', 'pub']
    """
    found: list[str] = []
    for word in text.split(","):
        if found and "=" in word and ":" not in word:
            found[-1] += f",{word}"
        else:
            found.append(word.strip())
    return found
