"""Labels of own tables: columns or SQL expressions to 0, 1, numbers and NaN; tasks nested in others are resolved."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.data.tables.config import TableConfig, TaskConfig
from equipoise.data.tables.files import Table
from equipoise.errors import DataError

__all__ = ["LabelBlock", "Labels", "expression_of", "sql_name"]

_NAME: Final = re.compile(r"\w+")
_FLOAT32: Final = float(np.finfo(np.float32).max)
_ALONE: Final = 16  # rows that an expression is tried on one by one


def expression_of(label: str, columns: Sequence[str], place: str, /) -> pl.Expr:
    """Return a label as an expression: a column of that name, else SQL.

    Args:
        columns: the columns of the table.
        place: the key of the settings, for messages.

    Raises:
        DataError: it is no SQL expression, or names no column.
    """
    if label in columns or _NAME.fullmatch(label):
        return pl.col(label)
    try:
        found = pl.sql_expr(label)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{place}: expected a column or an SQL expression of columns, found {label!r} ({error}). Put names that "
            'are words of SQL, or hold other characters than letters, into double quotes: "like" > 0.'
        ) from None
    if not found.meta.root_names():
        raise DataError(f"{place}: expected an SQL expression of columns, found {label!r}, which names none.")
    return found


def sql_name(column: str, /) -> str:
    """Return a column's name as SQL expressions write it, in quotes where they are needed.

    Example:
        >>> sql_name("clicked"), sql_name("order"), sql_name("is clicked")
        ('clicked', '"order"', '"is clicked"')
    """
    try:
        is_plain = bool(_NAME.fullmatch(column)) and pl.sql_expr(f"{column} > 0").meta.root_names() == [column]
    except pl.exceptions.PolarsError:  # a word of SQL
        is_plain = False
    return column if is_plain else '"' + column.replace('"', '""') + '"'


@dataclass
class _Fault:
    """Values of a task that cannot be used: the number, the first of them, and its row."""

    count: int = 0
    first: Any = None
    row: int = 0

    def add(self, wrong: NDArray[np.bool_], values: pl.Series, first_row: int) -> None:
        """Count the wrong ones of a block."""
        if not (count := int(wrong.sum())):
            return
        if not self.count:
            at = int(wrong.argmax())
            self.first, self.row = values[at], first_row + at
        self.count += count


@dataclass(frozen=True)
class LabelBlock:
    """The labels of a block of rows.

    Attributes:
        values: 0, 1, numbers and NaN, shape [rows, tasks].
        weight: how many rows of the natural distribution each row stands for, shape [rows].
    """

    values: NDArray[np.float32]
    weight: NDArray[np.float32]


@dataclass
class Labels:
    """Labels of blocks of raw rows, which come in order; faults are gathered, for one message about all rows."""

    table: Table
    config: TableConfig
    expressions: Mapping[str, pl.Expr]
    faults: dict[tuple[str, str], _Fault] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)  # positives of tasks whose parent is missing

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns of the labels."""
        roots = [name for expression in self.expressions.values() for name in expression.meta.root_names()]
        return tuple(dict.fromkeys(roots))

    @cached_property
    def order(self) -> list[str]:
        """The tasks, parents before their children."""
        tasks, found = self.config.tasks, list[str]()
        while len(found) < len(tasks):
            found += [name for name, task in tasks.items() if name not in found and task.after in {"", *found}]
        return found

    def read(self, block: pl.DataFrame, first_row: int) -> LabelBlock:
        """Return the labels of a block.

        Args:
            first_row: the number of the block's first row in the table.

        Raises:
            DataError: an expression cannot be evaluated, or a column is of a type that holds no labels.
        """
        raw = self._evaluated(block, first_row)
        own = {name: self._own(name, raw[name], first_row) for name in self.config.tasks}
        resolved: dict[str, NDArray[np.float64]] = {}  # 0 where the parent is 0, NaN where that is not known
        labels = np.empty((block.height, len(own)), np.float32)
        for name in self.order:
            task, values = self.config.tasks[name], own[name]
            if task.after:
                parent = resolved[task.after]
                stated = (values != 0) & ~np.isnan(values)
                self._fault(name, "orphan").add((parent == 0) & stated, raw[name], first_row)
                self.unknown[name] = self.unknown.get(name, 0) + int((np.isnan(parent) & stated).sum())
                values = np.where(parent == 1, values, np.where(parent == 0, 0.0, np.nan))
                resolved[name] = values
                values = values if task.over == "all" else np.where(parent == 1, values, np.nan)
            else:
                resolved[name] = values
            labels[:, list(own).index(name)] = values
        sampled = self.config.sampled
        weight = np.ones(block.height, np.float32)
        if sampled is not None:
            weight[resolved[sampled.task] != 1] = 1 / sampled.rate
        return LabelBlock(labels, weight)

    def _evaluated(self, block: pl.DataFrame, first_row: int) -> pl.DataFrame:
        """Return the raw value of each label; NaN counts as missing, so that it is not above every number."""
        floats = [name for name, dtype in block.schema.items() if dtype.is_float()]
        block = block.with_columns(pl.col(floats).fill_nan(None)) if floats else block
        found = {}
        for name, expression in self.expressions.items():
            try:
                values = block.select(expression.alias(name))[name]
                if first_row == 0:
                    _check_row_by_row(name, expression, block, values)
            except pl.exceptions.PolarsError as error:
                label = self.config.tasks[name].label
                said = str(error).partition("\n")[0]
                raise DataError(f"tasks.{name}.label: {label!r} cannot be evaluated: {said}.") from None
            found[name] = values
        return pl.DataFrame(found)

    def _own(self, name: str, values: pl.Series, first_row: int) -> NDArray[np.float64]:
        """Return a task's values by themselves, NaN for missing ones."""
        task, dtype = self.config.tasks[name], values.dtype
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            found = values.drop_nulls().head(1)
            shown = f", the first {found[0]!r}" if len(found) else ""
            sql = self._in_sql(name)
            advice = "a condition, such as " + _label(f"{sql} = 'yes'")
            if task.kind == "regression":
                advice = "an expression, such as " + _label(f"CAST({sql} AS DOUBLE)")
            raise DataError(
                f"tasks.{name}.label: expected {_expected(task)}; found the type {dtype}{shown}. Write {advice}."
            )
        numbers: NDArray[np.float64] = values.cast(pl.Float64).fill_null(np.nan).to_numpy().copy()
        missing = np.isnan(numbers)
        if task.kind == "binary":
            self._fault(name, "value").add((numbers != 0) & (numbers != 1) & ~missing, values, first_row)
        else:
            self._fault(name, "value").add((np.abs(numbers) > _FLOAT32) & ~missing, values, first_row)
            if task.loss == "log":
                self._fault(name, "negative").add(numbers < 0, values, first_row)
        return numbers

    def _in_sql(self, name: str) -> str:
        """Return a task's label as a part of a longer expression: a column is quoted where SQL needs it."""
        label = self.config.tasks[name].label
        return sql_name(label) if label in self.expressions[name].meta.root_names() else f"({label})"

    def _fault(self, task: str, kind: str) -> _Fault:
        return self.faults.setdefault((task, kind), _Fault())

    def check(self) -> None:
        """Refuse what has been found in the blocks so far.

        Raises:
            DataError: labels cannot be used; the message lists the tasks, with count and first row for each.
        """
        lines = [
            f"  tasks.{name}: {self._explain(name, kind, fault)}"
            for (name, kind), fault in self.faults.items()
            if fault.count
        ]
        if lines:
            raise DataError("\n".join(["Some labels cannot be used.", *lines]))

    def notes(self) -> Iterator[str]:
        """Yield sentences on labels that are not used."""
        for name, count in self.unknown.items():
            if count:
                yield (
                    f"{count:,} labels of the task {name} that are not 0 are left out: the label of its parent "
                    f"{self.config.tasks[name].after} is missing there."
                )

    def _explain(self, name: str, kind: str, fault: _Fault) -> str:
        task = self.config.tasks[name]
        where = f"the first {fault.first!r} in {self.table.place(fault.row)}"
        if kind == "orphan":
            what = "positive" if task.kind == "binary" else "number but 0"
            return (
                f"expected no {what} where {task.after!r} is 0; found {fault.count:,}, {where}. Correct those rows, or "
                f"remove `after: {task.after}`."
            )
        if kind == "negative":
            return (
                f"the loss log needs numbers from 0 up; found {fault.count:,} negative ones, {where}. Take another "
                "loss."
            )
        advice = ""
        if task.kind == "binary":
            sql = self._in_sql(name)
            advice = f" Write a condition, such as {_label(f'{sql} > 0')}, or set `kind: regression`."
            if fault.first == -1:
                advice = (
                    f" If -1 stands for a missing label, write {_label(f'NULLIF({sql}, -1)')}; if for a negative one, "
                    f"{_label(f'{sql} = 1')}."
                )
        return f"expected {_expected(task)}; found {fault.count:,} other values, {where}.{advice}"


def _label(sql: str) -> str:
    """Return the line of a settings file that states the label."""
    return f"`label: {json.dumps(sql, ensure_ascii=False)}`"  # text in JSON is text in YAML


def _expected(task: TaskConfig) -> str:
    return "0, 1, true, false or null" if task.kind == "binary" else "finite numbers or null"


def _check_row_by_row(name: str, expression: pl.Expr, block: pl.DataFrame, values: pl.Series) -> None:
    """Refuse an expression that looks at other rows: it would depend on how rows are read, and on the test rows.

    Raises:
        DataError: the value of a row changes with the rows around it.
    """
    rows = min(block.height, _ALONE)
    alone = [block[i : i + 1].select(expression.alias(name))[name] for i in range(rows)]
    halves = [
        part.select(expression.alias(name))[name] for part in (block[: block.height // 2], block[block.height // 2 :])
    ]
    same = len(values) == block.height and all(
        pl.concat(parts).equals(values.head(sum(map(len, parts))), null_equal=True)
        for parts in (alone, halves)
        if parts
    )
    if not same:
        raise DataError(
            f"tasks.{name}.label: expected an expression of the columns of one row; found one that looks at other "
            "rows, such as an average or a rank. Compute it before, as a column of the files."
        )
