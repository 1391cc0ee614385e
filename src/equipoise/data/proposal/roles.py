"""Guesses at the roles of columns: time, user, tasks, features, and what to leave out; each with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from equipoise.data.proposal.columns import Column, look_at, words_of
from equipoise.data.tables.labels import sql_name

__all__ = ["Proposal", "Remarked", "propose"]

_USER: Final = re.compile(
    r"(^|_)(user|customer|member|household|visitor|client|uid|account|person)(_?(id|key|no))?$", re.I
)
_ID: Final = re.compile(
    r"(^|_)(id|ids|uuid|key|code|type|cat|category|categorical|zip|zipcode|tag|brand|group|segment|level)($|_)", re.I
)
_LABEL: Final = re.compile(
    r"(^|_)(click|clicked|like|liked|hate|dislike|follow|followed|share|shared|forward|comment|view|viewed|visit|visited|"
    r"enter|conversion|converted|convert|purchase|purchased|buy|bought|order|ordered|paid|pay|cart|fav|favorite|favourite|"
    r"install|installed|subscribe|subscribed|signup|register|registered|finish|finished|complete|completed|read|open|"
    r"opened|reply|replied|return|returned|churn|churned|label|target|response|ctr|cvr|y)($|_)",
    re.I,
)
_OUTCOME: Final = re.compile(
    r"(^|_)(spend|spent|revenue|sales|gmv|play_time|playtime|watch_time|watch|watched|dwell|stay|rating|stars)($|_)",
    re.I,
)
_SPLITS: Final = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing"},
}
_DAY_OR_MONTH_FIRST: Final = {
    "%m/%d": "the month is read before the day",
    "%d/%m": "the day is read before the month",
}
_FEW_VALUES: Final = 10  # whole numbers of so few values are read as categories
_ALMOST: Final = 0.95
_FEW_POSITIVES: Final = 100
_LARGE: Final = 1_000  # values of a category whose rows a second epoch would learn by heart


@dataclass(frozen=True)
class Remarked:
    """A proposed entry of the settings file, and the remark that stands behind it."""

    value: Any
    remark: str = ""


@dataclass
class Proposal:
    """The roles of all columns.

    Attributes:
        time: the value of ``time``; None if there is no such column.
        user: the user's column; empty if there is none.
        features, tasks: entries by name.
        left_out: column -> the reason.
        split: the value of ``split``.
        epochs, batch_size: the recipe that suits so many rows.
    """

    time: Remarked | None = None
    user: Remarked | None = None
    features: dict[str, Remarked] = field(default_factory=dict)
    tasks: dict[str, Remarked] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    split: Remarked = field(default_factory=lambda: Remarked({}))
    epochs: Remarked = field(default_factory=lambda: Remarked(1))
    batch_size: Remarked = field(default_factory=lambda: Remarked(1024))


def propose(sample: pl.DataFrame, rows: int, /) -> Proposal:
    """Guess the roles of the columns of ``sample``, which is a part of ``rows`` rows.

    Example:
        >>> sample = pl.DataFrame({"zip": ["a", "b", "a", "c"], "click": [1, 0, 1, 0], "buy": [1, 0, 0, 0]})
        >>> found = propose(sample, 4)
        >>> {name: entry.value for name, entry in found.tasks.items()}
        {'click': 'click', 'buy': {'label': 'buy', 'after': 'click'}}
    """
    found = Proposal()
    columns = {column.name: column for column in look_at(sample)}
    _leave_out_empty(found, columns)
    time_parts = _choose_time(found, columns)
    labels = _labels(columns)
    _choose_tasks(found, sample, labels)
    for column in labels:
        del columns[column.name]
    _choose_outcomes(found, sample, columns, labels)
    _leave_out_decimal_commas(found, columns)
    _choose_user(found, columns)
    _choose_split(found, sample, columns)
    _choose_features(found, columns)
    found.features |= time_parts
    _choose_recipe(found, columns, rows)
    return found


def _leave_out_empty(found: Proposal, columns: dict[str, Column]) -> None:
    for column in [column for column in columns.values() if column.nature == "constant"]:
        found.left_out[column.name] = "the same value in all rows" if column.distinct else "no value in any row"
        del columns[column.name]


def _leave_out_decimal_commas(found: Proposal, columns: dict[str, Column]) -> None:
    for column in [column for column in columns.values() if column.decimal_comma]:
        found.left_out[column.name] = (
            "numbers with a decimal comma: write a point in the file; if they are lists: "
            f"{column.name}: {{kind: categories, separator: ','}}"
        )
        del columns[column.name]


def _choose_time(found: Proposal, columns: dict[str, Column]) -> dict[str, Remarked]:
    """Choose the finest time, and return the features that are made of it."""
    times = [column for column in columns.values() if column.nature == "time"]
    if not times:
        return {}
    chosen = max(times, key=lambda column: (column.distinct, column.time is not None and not column.time.format))
    form = chosen.time
    assert form is not None
    stated = {key: value for key, value in (("unit", form.unit), ("format", form.format)) if value}
    remarks = [] if len(times) == 1 else [f"the finest of {', '.join(column.name for column in times)}"]
    remarks += [said for part, said in _DAY_OR_MONTH_FIRST.items() if form.format.startswith(part)]
    found.time = Remarked({"column": chosen.name, **stated} if stated else chosen.name, "; ".join(remarks))
    for column in times:
        if column is not chosen:
            found.left_out[column.name] = f"a time, as {chosen.name} is"
        del columns[column.name]
    parts = ("weekday",) if form.whole_days else ("hour", "weekday")
    return {
        f"{part}_of_{chosen.name}": Remarked({"kind": "time", "column": chosen.name, "part": part}) for part in parts
    }


def _labels(columns: dict[str, Column]) -> list[Column]:
    binary = [column for column in columns.values() if column.nature == "binary"]
    signed = [column for column in columns.values() if _is_signed(column)]
    named = [column for column in [*binary, *signed] if _LABEL.search(words_of(column.name))]
    return named or [column for column in binary if not column.yes][-1:] or binary[-1:]


def _is_signed(column: Column) -> bool:
    """Return True for labels of -1 and 1, or of -1, 0 and 1."""
    return column.nature == "whole" and (column.low, column.high) == (-1, 1)


def _signed_label(column: Column) -> tuple[str, str]:
    """Return the SQL expression that turns -1 and 1, or -1, 0 and 1, into a label, and what it takes -1 for."""
    if column.distinct == 2:
        return f"{sql_name(column.name)} = 1", "-1 is taken for a negative label"
    return f"NULLIF({sql_name(column.name)}, -1)", "-1 is taken for a missing label"


def _positive_rows(sample: pl.DataFrame, column: Column) -> pl.Series:
    """Return which rows of a label are positive; a missing label is not."""
    values = sample[column.name]
    return (values == column.yes if column.yes else values.cast(pl.Float64) == 1).fill_null(value=False)


def _choose_tasks(found: Proposal, sample: pl.DataFrame, labels: Sequence[Column]) -> None:
    positive = {column.name: _positive_rows(sample, column) for column in labels}
    counts = {name: int(rows.sum()) for name, rows in positive.items()}
    named = any(_LABEL.search(words_of(column.name)) for column in labels)
    for column in labels:
        name, remarks = (
            column.name,
            [] if named else [f"the last column of {'yes and no' if column.yes else '0 and 1'}: is it a label?"],
        )
        within = {
            other: int((positive[name] & positive[other]).sum()) / max(1, counts[name])
            for other in counts
            if other != name and counts[other] > counts[name]
        }
        parents = [other for other, share in within.items() if share == 1 and counts[name]]
        value: Any = name
        if _is_signed(column):
            value, remark = _signed_label(column)
            remarks.append(remark)
        elif column.yes:
            value = f"{sql_name(name)} = '{column.yes}'"
        if parents:
            parent = min(parents, key=lambda other: counts[other])
            value = {"label": value, "after": parent}
            remarks.append(f"all of its {counts[name]:,} positives have {parent} = 1: learned where {parent} is 1")
        elif almost := [other for other, share in within.items() if share >= _ALMOST]:
            closest = max(almost, key=lambda other: within[other])
            remarks.append(f"{within[closest]:.1%} of its positives have {closest} = 1: almost nested in it")
        if column.missing:
            remarks.append(f"missing in {column.missing:.1%} of the rows, which are not learned from")
        if counts[name] < _FEW_POSITIVES:
            remarks.append(f"only {counts[name]} positives in the rows looked at")
        found.tasks[name] = Remarked(value, "; ".join(remarks))


def _choose_outcomes(
    found: Proposal, sample: pl.DataFrame, columns: dict[str, Column], labels: Sequence[Column]
) -> None:
    """Find numbers that are known only afterwards: positive only where a task is 1, or with a telling name."""
    positive = {column.name: _positive_rows(sample, column) for column in labels}
    for column in [column for column in columns.values() if column.nature in {"whole", "real"}]:
        numbers = sample[column.name].cast(pl.Float64).fill_nan(None).fill_null(0.0) != 0
        parents = []
        for name, one in positive.items():
            if one.any() and not one.all() and not (numbers & ~one).any() and (numbers & one).sum() * 2 > one.sum():
                parents.append((int(one.sum()), name))
        if parents:
            loss = "log" if column.low >= 0 else "squared"
            _, parent = min(parents)
            found.tasks[column.name] = Remarked(
                {"kind": "regression", "label": column.name, "loss": loss, "after": parent},
                f"a number that is not 0 only where {parent} is 1",
            )
        elif _OUTCOME.search(words_of(column.name)):
            found.left_out[column.name] = (
                "by its name known only afterwards; as a task: "
                f"{column.name}: {{kind: regression, loss: {'log' if column.low >= 0 else 'squared'}}}"
            )
        else:
            continue
        del columns[column.name]


def _choose_user(found: Proposal, columns: dict[str, Column]) -> None:
    users = [
        column
        for column in columns.values()
        if _USER.search(words_of(column.name)) and column.distinct * 2 < column.rows
    ]
    if users:
        chosen = max(users, key=lambda column: column.distinct)
        found.user = Remarked(chosen.name, "AUC is reported per user, too")


def _choose_split(found: Proposal, sample: pl.DataFrame, columns: dict[str, Column]) -> None:
    """Find a column whose three values are names of splits."""
    for column in [column for column in columns.values() if column.nature == "text" and column.distinct == 3]:
        values = {
            split: value
            for value in sample[column.name].drop_nulls().unique().sort().cast(pl.String)
            for split, names in _SPLITS.items()
            if value.lower() in names
        }
        if len(values) == len(_SPLITS):
            values = {split: values[split] for split in _SPLITS}
            stated = {} if all(split == value for split, value in values.items()) else {"values": values}
            value = {"by": "column", "column": column.name, **stated}
            found.split = Remarked(value, "its values are names of splits")
            del columns[column.name]
            return


def _choose_features(found: Proposal, columns: dict[str, Column]) -> None:
    for column in columns.values():
        entry = _feature(column, columns.values())
        if entry is None:
            found.left_out[column.name] = "another value in each row, as of a number that counts rows"
        else:
            found.features[column.name] = entry


def _feature(column: Column, others: Iterable[Column]) -> Remarked | None:
    missing = f"missing in {column.missing:.1%} of the rows" if column.missing else ""
    if column.nature == "list":
        return _list_feature(column, others)
    if column.nature == "real":
        return Remarked({"kind": "number", "scale": "log1p"} if column.skewed else "number", missing)
    if column.nature == "whole" and not (_ID.search(words_of(column.name)) or _USER.search(words_of(column.name))):
        if column.distinct <= _FEW_VALUES:
            return Remarked("category", f"{column.distinct} values: number if they count something")
        doubt = f"whole numbers up to {column.high:,.0f}: category if they are ids"
        value = {"kind": "number", "scale": "log1p"} if column.skewed else "number"
        return Remarked(value, f"{doubt}; {missing}" if missing else doubt)
    if column.distinct == column.rows > _FEW_VALUES:
        return None
    values = f"{column.distinct:,} values"
    return Remarked("category", f"{values}, {missing}" if missing else values)


def _list_feature(column: Column, others: Iterable[Column]) -> Remarked:
    tokens = column.tokens
    assert tokens is not None
    stated: dict[str, Any] = {"separator": tokens.separator} if tokens.separator else {}
    if tokens.numbers and tokens.same_count:
        return Remarked({"kind": "vector", "width": tokens.most, **stated}, "as many numbers in each row")
    remark = f"{len(tokens.distinct):,} values, at most {tokens.most} in a row"
    stated = {"kind": "categories", **stated, "length": min(50, max(1, tokens.most))}
    for other in others:
        if (
            other.nature in {"whole", "text"}
            and _ID.search(words_of(other.name))
            and _shares_name(column.name, other.name)
        ):
            stated |= {"table": other.name, "pooling": "attention", "target": other.name}
            remark += f"; reads the table of {other.name}, and weighs the items by their likeness to it"
            break
    return Remarked(stated, remark)


def _shares_name(several: str, single: str) -> bool:
    """Return True for a history of what the other column holds, such as ``video_history`` and ``video_id``."""
    stem = re.sub(r"(_?ids?)$", "", single.lower())
    return len(stem) > 2 and stem in several.lower()


def _choose_recipe(found: Proposal, columns: dict[str, Column], rows: int) -> None:
    if not found.split.value:
        found.split = _split_without_a_column(found)
    size = 256
    while size < 4096 and rows * 0.7 / size > 300:
        size *= 2
    found.batch_size = Remarked(size, f"about {max(1, int(rows * 0.7 / size)):,} steps per epoch")
    large = any(column.distinct > _LARGE and column.nature in {"whole", "text", "list"} for column in columns.values())
    remark = "a second pass tends to learn large tables by heart" if large else ""
    found.epochs = Remarked(1 if large or rows > 500_000 else 3, remark)


def _split_without_a_column(found: Proposal) -> Remarked:
    shares = {"validation": 0.1, "test": 0.2}
    if found.time is not None:
        return Remarked({"by": "time", **shares}, "the last rows are for the test")
    if found.user is not None:
        return Remarked({"by": "user", **shares}, "no time column found; users are kept apart")
    return Remarked({"by": "random", **shares}, "no time column found")
