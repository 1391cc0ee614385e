"""Every setting once: its type, default, check and one sentence about it.

The command line, settings files, :func:`equipoise.training.train`, the identity of checkpoints and the report derive
from the fields below.
"""

from __future__ import annotations

import json
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from equipoise.errors import SettingError, did_you_mean
from equipoise.scalars import Value, parse_value, spell_value

__all__ = [
    "DEFAULT_METHODS",
    "SEED_LIMIT",
    "About",
    "Command",
    "NonFinite",
    "OptimizerName",
    "Precision",
    "Schedule",
    "Settings",
    "Sharding",
    "TableOptimizer",
    "TrainingSettings",
    "about",
    "command_line",
    "command_words",
    "parse_pairs",
    "settings_table",
    "split_methods",
]

SEED_LIMIT: Final = 2**43
"""Seeds of epochs are made of a seed, and must fit 64 bits."""

DEFAULT_METHODS: Final = ("single-task", "equal", "multibalance", "pub")
"""Methods that ``equipoise compare`` compares by default."""

Command = Literal["train", "compare", "audit"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _option_value(value: Any) -> Any:
    widths = isinstance(value, list) and all(type(width) is int for width in value)
    if not widths and type(value) not in {bool, int, float, str}:
        raise ValueError("should be a number, a word, true, false, or a list of whole numbers")
    return value


OptionValue = Annotated[Any, AfterValidator(_option_value)]
"""A value of an option of a model or data set; the model or loader checks the rest."""

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Schedule = Literal["linear", "constant", "cosine"]
"""linear: the learning rate falls to 0 over the training; constant: it stays; cosine: it falls along half a cosine."""

OptimizerName = Literal["adam", "adamw", "sgd", "adagrad", "rmsprop"]
"""An optimizer of torch.optim."""

TableOptimizer = Literal["same", "rowwise-adagrad"]
"""same: the optimizer steps the embedding tables too; rowwise-adagrad: Adagrad with one number of state per row."""

NonFinite = Literal["raise", "skip-task", "skip-step"]
"""raise: end with an error; skip-task: leave the task out of that step; skip-step: leave the step out."""

Precision = Literal["float32", "bfloat16"]
"""bfloat16: layers compute in bfloat16 where PyTorch's autocast deems it safe; losses are float32."""

Sharding = Literal[
    "ddp", "fsdp", "table-wise", "row-wise", "column-wise", "data-parallel", "planner",
    "table-wise+fsdp", "row-wise+fsdp", "column-wise+fsdp", "planner+fsdp",
]  # fmt: skip
"""ddp: every rank holds everything; fsdp: FSDP2 shards the parameters; the others: TorchRec shards the tables so, and
the dense parameters lie whole on every rank, or are sharded by FSDP2."""


@dataclass(frozen=True)
class About:
    """Facts about a setting besides its type and default.

    Attributes:
        commands: the commands that take it.
        decides_numbers: whether another value changes the results; checkpoints and result folders then record it.
        may_change: whether a training may resume from a checkpoint under another value.
        option: its name on the command line; ``--name-of-the-field`` if empty.
        metavar: how the help shows its value.
    """

    commands: tuple[Command, ...] = ("train", "compare", "audit")
    decides_numbers: bool = True
    may_change: bool = False
    option: str = ""
    metavar: str | None = None


_TRAIN: Final = About(commands=("train",))
_COMPARE: Final = About(commands=("compare",), decides_numbers=False)


class _SuitedTo(Protocol):
    """A data set that states how many epochs and which batch size suit it."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


class TrainingSettings(BaseModel):
    """All settings of one training: the same settings give the same numbers on the same machine.

    Every field can be given to :func:`equipoise.training.train` by keyword.

    Raises:
        SettingError: from :meth:`of`, if a setting is unknown, of another type, or out of range.

    Example:
        >>> TrainingSettings.of(lr=1e-2, epochs=2).schedule
        'linear'
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Annotated[str, About()] = Field(
        "shared-bottom", description="Model: a registered name, or package.module:attribute."
    )
    model_options: Annotated[dict[str, OptionValue], About(option="--model-option", metavar="KEY=VALUE")] = Field(
        default_factory=dict, description="An option of the model."
    )
    lr: Annotated[Positive, _TRAIN] = Field(
        3e-3,
        description="Learning rate; in a file also for compare and audit. Commands default to the tuned one.",
    )
    table_decay: Annotated[NotNegative, _TRAIN] = Field(
        0.0,
        description="Decoupled weight decay of the embedding tables; in a file also for compare and audit. Commands "
        "default to the tuned one.",
    )
    optimizer: Annotated[OptimizerName, About()] = Field("adam", description="Optimizer of all parameters.")
    optimizer_options: Annotated[dict[str, OptionValue], About(option="--optimizer-option", metavar="KEY=VALUE")] = (
        Field(default_factory=dict, description="An option of the optimizer, such as momentum, beta2 or eps.")
    )
    weight_decay: Annotated[NotNegative, About()] = Field(
        0.0,
        description="Weight decay of all but the embedding tables: decoupled with adamw, else added to the gradient.",
    )
    table_optimizer: Annotated[TableOptimizer, About()] = Field(
        "same", description="Optimizer of the embedding tables: the same, or Adagrad with one number of state per row."
    )
    table_lr: Annotated[Positive | None, About()] = Field(
        None, description="Learning rate of the embedding tables. Default: lr; 0.3 with rowwise-adagrad."
    )
    schedule: Annotated[Schedule, About()] = Field(
        "linear",
        description="Learning rate schedule: falls to 0 over the training, linearly or along half a cosine, or stays.",
    )
    warmup: Annotated[Annotated[float, Field(ge=0, lt=1)], About()] = Field(
        0.0, description="Share of the training's steps over which the learning rates rise linearly from 0."
    )
    clip_norm: Annotated[Positive | None, About()] = Field(
        None, description="Norm to which a longer gradient of all but the embedding tables is shortened. Default: none."
    )
    ema: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, About()] = Field(
        None,
        description="Decay of a moving average of the weights, such as 0.999, which is then evaluated and exported. "
        "Default: none.",
    )
    stop_on: Annotated[str | None, About(metavar="METRIC")] = Field(
        None,
        description="Metric of the learning curve, as ne, auc, gauc, log_loss, rmse (mean over tasks), or TASK:METRIC: "
        "keep the weights of its best point, and stop early. Default: none.",
    )
    patience: Annotated[Annotated[int, Field(ge=1)], About()] = Field(
        3, description="Points of the learning curve without a better one after which stop_on ends the training."
    )
    epochs: Annotated[Annotated[int, Field(ge=1)] | None, About()] = Field(
        None, description="Passes over the training rows. Default: as the data set states."
    )
    batch_size: Annotated[Annotated[int, Field(ge=1)] | None, About()] = Field(
        None, description="Examples per step, of all processes together. Default: as the data set states."
    )
    seed: Annotated[Annotated[int, Field(ge=0, le=SEED_LIMIT)], _TRAIN] = Field(
        0, description="Seed of the initial weights and of the order of the batches."
    )
    loss_scale: Annotated[dict[str, Positive], About(metavar="TASK=FACTOR")] = Field(
        default_factory=dict, description="Multiply one task's loss, to test robustness; reported losses are unscaled."
    )
    task_weights: Annotated[
        dict[str, Positive], About(commands=("train", "compare"), option="--task-weight", metavar="TASK=W")
    ] = Field(
        default_factory=dict,
        description="Preferences: next to a task of weight 1, a task of weight 9 has 9 times the say. Default: 1 each.",
    )
    sharding: Annotated[Sharding, About(commands=("train",), metavar="HOW")] = Field(
        "ddp", description="How the processes of torchrun share the model."
    )
    non_finite: Annotated[NonFinite, About(may_change=True)] = Field(
        "raise", description="What to do about a loss or gradient that is not finite."
    )
    precision: Annotated[Precision, About()] = Field(
        "float32", description="Precision of the forward and backward pass; weights and updates are always float32."
    )
    evaluations: Annotated[Annotated[int, Field(ge=1)], About()] = Field(
        8, description="Points of the learning curve; `train` writes a checkpoint at each."
    )
    evaluation_rows: Annotated[Annotated[int, Field(ge=1)], About()] = Field(
        20_000, description="Validation rows used for the learning curve; the last point takes all."
    )
    monitor_reads: Annotated[Annotated[int, Field(ge=1)], About()] = Field(
        50, description="Approximate number of monitor readings over the training."
    )
    checkpoint_every: Annotated[
        Annotated[int, Field(ge=1)] | None, About(commands=("train",), decides_numbers=False)
    ] = Field(None, description="Steps between checkpoints, besides those of the learning curve.")
    device: Annotated[str, About(decides_numbers=False)] = Field("cpu", description="Where to train: cpu, cuda, ...")

    @classmethod
    def of(cls, config: Path | None = None, /, **stated: Any) -> Self:
        """Return the settings of a YAML file, overridden by those stated; the rest have their defaults.

        Raises:
            SettingError: the file cannot be read, or a setting is unknown, of another type, or out of range.
        """
        origin, found = "The settings", dict[str, Any]()
        if config is not None:
            from equipoise.settings_file import read_settings  # noqa: PLC0415 - PyYAML is an optional dependency

            origin, found = f"The settings in {config}", dict(read_settings(config))
        try:
            return cls.model_validate({**found, **stated})
        except ValidationError as error:
            raise SettingError(f"{origin} cannot be used.\n{_explain(error, cls)}") from error

    def suited_to(self, dataset: _SuitedTo, /) -> Self:
        """Return the same settings, with the data set's epochs and batch size where none are stated."""
        missing = {name: getattr(dataset, name) for name in ("epochs", "batch_size") if getattr(self, name) is None}
        return self.model_copy(update=missing) if missing else self

    @property
    def steps_per(self) -> tuple[int, int]:
        """Epochs and batch size, once :meth:`suited_to` has filled them in.

        Raises:
            SettingError: they are not known.
        """
        if self.epochs is None or self.batch_size is None:
            raise SettingError("Expected epochs and batch_size, found none: state them, or name a data set.")
        return self.epochs, self.batch_size

    def deciding(self) -> dict[str, Any]:
        """Return the settings that change a training's results, by name, as JSON holds them."""
        found = self.model_dump(mode="json")
        return {name: found[name] for name in TrainingSettings.model_fields if about(name).decides_numbers}

    def identity(self) -> dict[str, str]:
        """Return the settings that change a training's results, by name, as a checkpoint keeps them."""
        return {
            name: _as_text(getattr(self, name))
            for name in TrainingSettings.model_fields
            if about(name).decides_numbers and not about(name).may_change
        }


class Settings(TrainingSettings):
    """All settings of the commands `equipoise train` and `equipoise compare`.

    Example:
        >>> Settings.of(data="census-income", methods=["equal", "multibalance"]).data
        'census-income'
        >>> Settings.of(data="census-income", epochs="two")
        Traceback (most recent call last):
        equipoise.errors.SettingError: The settings cannot be used.
          epochs: input should be a valid integer; found 'two'
    """

    data: Annotated[str | dict[str, Any], About()] = Field(
        "complete-journey",
        description="Data set: a registered name, package.module:attribute, a folder of `equipoise data prepare`, or "
        "in a settings file the description of own tables.",
    )
    data_options: Annotated[dict[str, OptionValue], About(option="--data-option", metavar="KEY=VALUE")] = Field(
        default_factory=dict, description="An option of the data set's loader."
    )
    method: Annotated[str, About(commands=("train",), decides_numbers=False)] = Field(
        "multibalance", description="Method to train with, out of `equipoise methods`; options behind a colon."
    )
    methods: Annotated[Annotated[list[str], Field(min_length=1)], _COMPARE] = Field(
        list(DEFAULT_METHODS),
        description="Methods to compare, comma-separated; `all` for all methods. By default with static weights, too, "
        "where they were searched under the same settings.",
    )
    seeds: Annotated[Annotated[int, Field(ge=1)], _COMPARE] = Field(
        10, description="Number of seeds (0, 1, 2, ...), the same for every method."
    )
    tune: Annotated[bool, _COMPARE] = Field(
        False, description="Choose each method's rate and table decay on validation data, with equal budget."
    )
    tune_seeds: Annotated[Annotated[int, Field(ge=1)], _COMPARE] = Field(
        1, description="Seeds per method and grid point when tuning, different from those of the comparison."
    )
    tune_trials: Annotated[Annotated[int, Field(ge=1)] | None, _COMPARE] = Field(
        None,
        description="Rates and decays, with values of its main option, that tuning tries per method: two thirds the "
        "same for all methods, the rest by optuna's TPE. Default: every point of the grids, at the default option.",
    )
    tune_finalists: Annotated[Annotated[int, Field(ge=0)], _COMPARE] = Field(
        0,
        description="Number of a method's best rates that are trained with two more tuning seeds; the mean over all "
        "seeds then decides, because the best of one seed may be so by luck.",
    )
    trials: Annotated[
        dict[str, Annotated[int, Field(ge=1)]],
        About(_COMPARE.commands, False, option="--trials", metavar="METHOD=N"),
    ] = Field(default_factory=dict, description="Number of trials of one method, instead of tune_trials.")
    grid: Annotated[Annotated[list[Positive], Field(min_length=1)], _COMPARE] = Field(
        [1e-3, 3e-3, 1e-2, 3e-2], description="Learning rates that tuning tries."
    )
    decay_grid: Annotated[Annotated[list[NotNegative], Field(min_length=1)], _COMPARE] = Field(
        [0.0, 0.3, 1.0, 3.0], description="Decays of the embedding tables that tuning tries with each rate."
    )
    rates: Annotated[dict[str, Positive], About(_COMPARE.commands, False, option="--rate", metavar="METHOD=LR")] = (
        Field(default_factory=dict, description="A method's learning rate, instead of the tuned one.")
    )
    decays: Annotated[dict[str, NotNegative], About(_COMPARE.commands, False, option="--decay", metavar="METHOD=D")] = (
        Field(default_factory=dict, description="A method's table decay, instead of the tuned one.")
    )
    rates_from: Annotated[str | None, About(("train", "compare"), False, metavar="FOLDER")] = Field(
        None,
        description="A folder that `equipoise compare --tune` wrote: its rates, table decays and options of methods "
        "take the place of those that come with equipoise.",
    )

    @property
    def data_name(self) -> str:
        """The name of the data set."""
        return self.data if isinstance(self.data, str) else str(self.data.get("name", "own data"))

    def searches(self, method: str, /) -> bool:
        """Return whether tuning searches between the ends of the grids for a method, instead of trying every point."""
        return self.trials.get(method, self.tune_trials) is not None

    def training(self, **stated: Any) -> TrainingSettings:
        """Return the settings of one training, with some of them replaced."""
        shared = {name: getattr(self, name) for name in TrainingSettings.model_fields}
        return TrainingSettings.of(**{**shared, **stated})

    def for_methods(self, methods: Sequence[str], /) -> Self:
        """Return the settings with a stated lr and table_decay as those of each of the methods that has none stated.

        Example:
            >>> Settings.of(lr=0.01, rates={"pub": 0.1}).for_methods(["equal", "pub"]).rates
            {'equal': 0.01, 'pub': 0.1}
        """
        changes = {}
        for one, each in (("lr", "rates"), ("table_decay", "decays")):
            if one in self.model_fields_set:
                changes[each] = dict.fromkeys(methods, getattr(self, one)) | getattr(self, each)
        return self.model_copy(update=changes)

    def of_comparison(self) -> dict[str, Any]:
        """Return the settings that all runs share and that change the results, by name, as JSON holds them.

        The device is one of them: it rounds in its own way, which is nothing beside a seed, but runs of a comparison
        are to differ in nothing but the method.
        """
        found = self.model_dump(mode="json")
        return {
            name: found[name]
            for name in found
            if (about(name).decides_numbers or name == "device") and "compare" in about(name).commands
        }


def about(name: str, /) -> About:
    """Return the facts about the setting of that name."""
    return next(entry for entry in Settings.model_fields[name].metadata if isinstance(entry, About))


def command_words(command: Command, stated: Mapping[str, Any], /) -> list[str]:
    """Return the command-line options that state these settings.

    Example:
        >>> command_words("compare", {"data": "funnel", "rates": {"equal": 0.01}, "tune": True, "model_options": {}})
        ['--data', 'funnel', '--tune', '--rate', 'equal=0.01']
    """
    words: list[str] = []
    for name in Settings.model_fields:
        if name not in stated or command not in about(name).commands:
            continue
        option, value = about(name).option or f"--{name.replace('_', '-')}", stated[name]
        if isinstance(value, bool):
            words += [option] if value else []
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                words += [option, f"{key}={spell_value(entry)}"]
        elif isinstance(value, list):
            words += [option, ",".join(map(str, value))]
        elif value is not None:
            words += [option, str(value)]
    return words


def command_line(command: Command, stated: Mapping[str, Any], /) -> str:
    """Return what to type into a shell to use these settings; own tables are put into a settings file first.

    Example:
        >>> print(command_line("compare", {"data": {"files": "logs.csv", "tasks": {"visit": "visit"}}, "seeds": 3}))
        cat > settings.yaml <<'END'
        data:
          files: "logs.csv"
          tasks: {"visit": "visit"}
        END
        equipoise compare settings.yaml --seeds 3
    """
    data = stated.get("data")
    if not isinstance(data, Mapping):
        return shlex.join(["equipoise", command, *command_words(command, stated)])
    words = command_words(command, {name: value for name, value in stated.items() if name != "data"})
    keys = [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in data.items()]  # JSON is YAML
    line = shlex.join(["equipoise", command, "settings.yaml", *words])
    return "\n".join(["cat > settings.yaml <<'END'", "data:", *keys, "END", line])


def settings_table() -> str:
    """Return a table of all settings in Markdown, for ``docs/settings.md``.

    Example:
        >>> settings_table().splitlines()[0]
        '| setting | meaning | default | option | commands |'
    """
    lines = ["| setting | meaning | default | option | commands |", "|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "" if default is None or default == {} else f"`{json.dumps(default)}`"
        option = about(name).option or f"--{name.replace('_', '-')}"
        meaning = (field.description or "").replace("|", "\\|")
        if get_origin(field.annotation) is Literal:
            meaning += f" One of {', '.join(f'`{choice}`' for choice in get_args(field.annotation))}."
        lines.append(f"| `{name}` | {meaning} | {shown} | `{option}` | {', '.join(about(name).commands)} |")
    return "\n".join(lines) + "\n"


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, Value]:
    """Return ``KEY=VALUE`` words of the command line as a mapping; ``128-64`` becomes a list of numbers.

    Raises:
        SettingError: a word has another form.

    Example:
        >>> parse_pairs(["click=23", "like=0.5"], "--loss-scale")
        {'click': 23, 'like': 0.5}
        >>> parse_pairs(["bottom=128-64"], "--model-option")
        {'bottom': [128, 64]}
    """
    found: dict[str, Value] = {}
    for pair in pairs:
        key, equals, value = pair.rpartition("=")  # a method's name may hold an equals sign of its own
        if not equals or not key:
            raise SettingError(f"{option}: expected KEY=VALUE, found {pair!r}.")
        found[key] = parse_value(value)
    return found


def split_methods(text: str) -> list[str]:
    """Split a comma-separated list of methods, whose options are separated by commas too.

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


def _explain(error: ValidationError, settings: type[TrainingSettings]) -> str:
    lines = []
    for entry in error.errors():
        where = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            names = settings.model_fields
            guess = did_you_mean(where, names)
            lines.append(f"  {where}: there is no such setting; there are {', '.join(names)}{guess}")
        else:
            said = entry["msg"].removeprefix("Value error, ")
            lines.append(f"  {where}: {said[0].lower()}{said[1:]}; found {reprlib.repr(entry['input'])}")
    return "\n".join(lines)


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)
