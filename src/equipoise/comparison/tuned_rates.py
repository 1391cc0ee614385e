"""Learning rates and table decays that tuning chose, for comparisons that do not tune.

They lie in ``tuned/``, one file for each recipe. ``equipoise compare --tune`` leaves such a file in its folder, which
the setting ``rates_from`` names.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from equipoise.errors import SettingError
from equipoise.scalars import spell_value
from equipoise.settings import Settings
from equipoise.training import Run

__all__ = [
    "DEFAULT_RATE",
    "TUNED_FILE",
    "Choice",
    "ChosenRate",
    "Rate",
    "chosen_rate",
    "rate_of",
    "rates_by_model",
    "rates_in",
    "source_commit",
    "tuned_choices",
]

TUNED_FILE: Final = "tuned.json"

_RECIPE: Final = (
    "data", "data_options", "model", "model_options", "schedule", "epochs", "batch_size", "loss_scale", "task_weights",
    "optimizer", "optimizer_options", "weight_decay", "table_optimizer", "table_lr", "warmup", "clip_norm", "ema",
    "stop_on",
)  # fmt: skip
"""The settings that a tuned rate belongs to; those that a file does not name had their defaults."""

_MUST_AGREE: Final = ("data", "model", "optimizer", "table_optimizer")
"""The settings without which a tuned rate says nothing."""


class Rate(NamedTuple):
    """A learning rate, the decoupled weight decay of the embedding tables, and options of the method chosen with them.

    The options are spelled as behind a method's name, such as ``"gamma=0.1"``.
    """

    lr: float
    table_decay: float = 0.0
    options: str = ""

    def __str__(self) -> str:
        decay = f", decay {self.table_decay:g}" if self.table_decay else ""
        return f"{self.lr:g}{decay}{', ' if self.options else ''}{self.options}"


def rate_of(run: Run, /) -> Rate:
    """Return the rate that a run was made with."""
    return Rate(run.lr, run.table_decay, run.options)


def rates_by_model(rates: Mapping[str, Rate], tasks: Sequence[str], /) -> str:
    """Return the options that give each task's own model its own rate, spelled as behind a method's name.

    Example:
        >>> rates_by_model({"click": Rate(0.01, 1.0), "like": Rate(0.003)}, ["click", "like"])
        'rates=0.01-0.003,decays=1-0'
    """
    lrs, decays = [float(rates[task].lr) for task in tasks], [float(rates[task].table_decay) for task in tasks]
    return f"rates={spell_value(lrs)},decays={spell_value(decays)}"


DEFAULT_RATE: Final = Rate(3e-3)
"""The rate of a method that was never tuned on that data set, model and optimizer."""


class ChosenRate(NamedTuple):
    """A rate, and why it may not suit: empty where it was tuned under the same recipe."""

    rate: Rate
    doubt: str


class Choice(BaseModel):
    """The rates that tuning chose: the content of ``tuned.json``.

    Attributes:
        recipe: the settings that the rates were chosen under.
        grid: the learning rates that were tried.
        decay_grid: the table decays that were tried with each.
        trials: how many pairs between the ends of the grids were tried in their place; None: every point of them.
        seeds: the seeds that each was tried with.
        chosen: method to its rate.
        command: the command that chose them.
        commit: the commit of equipoise that ran it; empty where it was not run from a checkout.
    """

    model_config = ConfigDict(frozen=True)

    recipe: dict[str, Any]
    grid: list[float]
    decay_grid: list[float]
    seeds: list[int]
    chosen: dict[str, Rate]
    command: str
    trials: int | None = None
    commit: str = ""

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], chosen: Mapping[str, Rate], *, seeds: Sequence[int], command: str
    ) -> Choice:
        """Return the choice of a tuning under these settings."""
        return cls(
            recipe=_recipe(settings), grid=settings["grid"], decay_grid=settings["decay_grid"], seeds=list(seeds),
            chosen=dict(chosen), command=command, commit=source_commit(), trials=settings.get("tune_trials"),
        )  # fmt: skip


def chosen_rate(settings: Mapping[str, Any], method: str, /) -> ChosenRate:
    """Return the rate that tuning chose for a method, and a sentence where it was chosen under another recipe.

    A method with options takes the rate of the method without them unless it was tuned itself. What ``rates_from``
    names comes first, under any recipe. A method that was never tuned on this data set and model with this optimizer
    takes :data:`DEFAULT_RATE`.

    Args:
        settings: those of the comparison, by name; those that are missing have their defaults.

    Raises:
        SettingError: as by :func:`rates_in`.

    Example:
        >>> chosen_rate({"data": "my-data", "model": "shared-bottom"}, "equal")
        ChosenRate(rate=Rate(lr=0.003, table_decay=0.0, options=''), doubt='never tuned on this data set, model and \
optimizer')
    """
    recipe = _recipe(settings)
    agreeing = [
        choice for choice in tuned_choices() if all(_recipe(choice.recipe)[key] == recipe[key] for key in _MUST_AGREE)
    ]
    named = [rates_in(settings["rates_from"])] if settings.get("rates_from") else []
    for choices in (named, agreeing):
        for name in dict.fromkeys([method, method.partition(":")[0]]):
            known = [choice for choice in choices if name in choice.chosen]
            if known:
                nearest = min(known, key=lambda choice: (len(_differing(choice, recipe)), len(choice.decay_grid) == 1))
                rate = nearest.chosen[name]
                return ChosenRate(rate if name == method else rate._replace(options=""), _doubt(nearest, recipe))
    return ChosenRate(DEFAULT_RATE, "never tuned on this data set, model and optimizer")


def rates_in(folder: Path | str, /) -> Choice:
    """Return the choice that ``equipoise compare --tune`` has left in its folder.

    Raises:
        SettingError: there is none, or it cannot be read.
    """
    file = Path(folder) / TUNED_FILE
    try:
        return Choice.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SettingError(
            f"rates_from: expected a folder that `equipoise compare --tune` wrote, with a {file.name} in it, found "
            f"none in {folder}: name another."
        ) from error
    except ValidationError as error:
        raise SettingError(f"rates_from: {file} is damaged: tune again into another folder.") from error


@cache
def tuned_choices() -> tuple[Choice, ...]:
    """Return the choices that come with equipoise."""
    folder = files("equipoise.comparison").joinpath("tuned")
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return tuple(Choice.model_validate_json(file.read_bytes()) for file in found)


def source_commit() -> str:
    """Return the commit of the checkout that equipoise runs from; empty where it does not run from one."""
    here = Path(__file__)
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    defaults = Settings.of().model_dump(mode="json")
    return {name: settings.get(name, defaults[name]) for name in _RECIPE}


def _differing(choice: Choice, recipe: Mapping[str, Any]) -> list[str]:
    there = _recipe(choice.recipe)
    return [
        f"{name} {_spelled(there[name])} (here {_spelled(recipe[name])})"
        for name in _RECIPE
        if there[name] != recipe[name]
    ]


def _spelled(value: Any) -> str:
    """Spell a value of a recipe; of the description of own tables, only their name."""
    return str(value["name"]) if isinstance(value, Mapping) and "name" in value else str(value)


def _doubt(choice: Choice, recipe: Mapping[str, Any]) -> str:
    """Why what was chosen may not suit this recipe."""
    differing = _differing(choice, recipe)
    doubts = [f"tuned with {', '.join(differing)}"] if differing else []
    if len(choice.decay_grid) == 1:
        doubts.append("tuned without a decay of the embedding tables")
    return "; ".join(doubts)
