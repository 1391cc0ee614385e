"""Logged rounds of a recommender that chose items with known probabilities, and the table of its items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from equipoise.data.tables.files import Table, open_files
from equipoise.data.tables.frames import open_frame
from equipoise.errors import DataError

__all__ = ["BanditLog"]


@dataclass(frozen=True)
class BanditLog:
    """N logged rounds: each showed one item at one position, and got a reward.

    Attributes:
        context: the columns of the log that the item table lacks, shape [N, columns]: the same whatever item is shown.
        items: the item table, a row for each item.
        item: the name of the column that tells items apart.
        action: the place in ``items`` of the logged item, int64, shape [N].
        propensity: the probability with which it was shown, in (0, 1], float64, shape [N].
        reward: the reward, float64, shape [N].
        position: the place in ``positions`` of each round, int64, shape [N].
        positions: the values of the position, as text; one empty text without a column of positions.
        unit: the unit of each round, codes from 0, int64, shape [N]: what the bootstrap draws whole.
    """

    context: pl.DataFrame
    items: pl.DataFrame
    item: str
    action: NDArray[np.int64]
    propensity: NDArray[np.float64]
    reward: NDArray[np.float64]
    position: NDArray[np.int64]
    positions: tuple[str, ...]
    unit: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.action)

    @classmethod
    def of(
        cls,
        rounds: Any,
        items: Any,
        /,
        *,
        action: str = "item_id",
        propensity: str = "propensity_score",
        label: str = "click",
        position: str | None = None,
        unit: str | None = None,
    ) -> BanditLog:
        """Return the log of a table of rounds and a table of items.

        Args:
            rounds: a table of polars, pandas or pyarrow, or a mapping of columns.
            items: the same, a row for each item that could be shown in every round, with its features.
            action: the column of both tables that tells items apart.
            propensity: the column with the probability with which the logged item was shown at its position.
            label: the column with the reward, such as a click.
            position: the column with the position on the page; None: all rounds are alike.
            unit: the column with what is independent of each other, such as the user; None: each round.

        Raises:
            DataError: a column is missing, an item is twice in the table or not at all, a propensity is not in (0, 1],
                or a reward is missing. The message names the first row.

        Example:
            >>> rounds = {"item_id": ["tee", "cap"], "propensity_score": [0.5, 0.5], "click": [0, 1]}
            >>> log = BanditLog.of(rounds, {"item_id": ["cap", "tee"], "price": [10, 25]})
            >>> log.action, log.reward
            (array([1, 0]), array([0., 1.]))
        """
        return cls._from_tables(
            open_frame(rounds).table(), open_frame(items).table(), action=action, propensity=propensity, label=label,
            position=position, unit=unit,
        )  # fmt: skip

    @classmethod
    def read(cls, rounds: Sequence[str | Path], items: str | Path, /, **columns: str | None) -> BanditLog:
        """Return the log of files: Parquet, CSV or TSV; files, globs, folders or URLs.

        Args:
            columns: as of :meth:`of`.

        Raises:
            DataError: as of :meth:`of`, or a file is missing or damaged.
        """
        tables = open_files([str(name) for name in rounds]).table(), open_files([str(items)]).table()
        return cls._from_tables(*tables, **{name: value for name, value in columns.items() if value is not None})

    @classmethod
    def _from_tables(
        cls,
        rounds: Table,
        items: Table,
        /,
        *,
        action: str = "item_id",
        propensity: str = "propensity_score",
        label: str = "click",
        position: str | None = None,
        unit: str | None = None,
    ) -> BanditLog:
        roles = {"action": action, "propensity": propensity, "label": label, "position": position, "unit": unit}
        for role, name in roles.items():
            if name is not None and name not in rounds.types:
                raise DataError(
                    f"The log lacks the column {name!r} ({role}); it has {', '.join(rounds.types)}. Name another with "
                    f"--{role}."
                )
        if action not in items.types:
            raise DataError(
                f"The item table lacks the column {action!r}, which tells items apart; it has {', '.join(items.types)}."
            )
        frame, catalogue = rounds.frame.collect(), items.frame.collect()
        if frame.is_empty():
            raise DataError("Expected at least one logged round, found none.")
        chance = _numbers(rounds, frame, propensity, "a propensity")
        if (wrong := ~((chance > 0) & (chance <= 1))).any():
            row = int(wrong.argmax())
            raise DataError(
                f"{rounds.place(row)}: a propensity is the probability with which the item was shown, above 0 and at "
                f"most 1; found {chance[row]:g} in {int(wrong.sum()):,} of {len(chance):,} rows' column {propensity!r}."
            )
        positions: tuple[str, ...] = ("",)
        places = np.zeros(frame.height, np.int64)
        if position is not None:
            positions, places = _codes(rounds, frame, position, "position")
        units = np.arange(frame.height)
        if unit is not None:
            _, units = _codes(rounds, frame, unit, "unit")
        left = [name for name in frame.columns if name not in {*catalogue.columns, propensity, label}]
        return cls(
            frame.select(left), catalogue, action, _places(rounds, frame, catalogue, action), chance,
            _numbers(rounds, frame, label, "a reward"), places, positions, units,
        )  # fmt: skip


def _numbers(rounds: Table, frame: pl.DataFrame, name: str, what: str) -> NDArray[np.float64]:
    column = frame[name].cast(pl.Float64, strict=False)
    if (missing := ~column.is_finite().fill_null(value=False)).any():
        row = int(missing.arg_max() or 0)
        raise DataError(
            f"{rounds.place(row)}: expected {what}, a number, in the column {name!r}, found {frame[name][row]!r} (in "
            f"{int(missing.sum()):,} of {frame.height:,} rows)."
        )
    found: NDArray[np.float64] = column.to_numpy()
    return found


def _codes(rounds: Table, frame: pl.DataFrame, name: str, role: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the values of a column as text, sorted, and the place of each row's value among them."""
    if frame[name].null_count():
        row = int(frame[name].is_null().arg_max() or 0)
        raise DataError(f"{rounds.place(row)}: expected a {role} in the column {name!r}, found none.")
    values = frame[name].unique().sort()
    places = frame.select(name).join(
        pl.DataFrame({name: values, "place": range(len(values))}), on=name, how="left", maintain_order="left"
    )
    return tuple(values.cast(pl.String).to_list()), places["place"].to_numpy().astype(np.int64)


def _places(rounds: Table, frame: pl.DataFrame, items: pl.DataFrame, action: str) -> NDArray[np.int64]:
    """Return the place of each row's item in the table of items."""
    known = items[action].cast(pl.String)
    if known.n_unique() < len(known) or known.null_count():
        twice = known.filter(known.is_duplicated() | known.is_null())
        raise DataError(f"The item table should name each item once in {action!r}, found {twice[0]!r} more than once.")
    table = pl.DataFrame({"item": known, "place": range(len(known))})
    found = pl.DataFrame({"item": frame[action].cast(pl.String)}).join(
        table, on="item", how="left", maintain_order="left"
    )["place"]
    if found.null_count():
        row = int(found.is_null().arg_max() or 0)
        raise DataError(
            f"{rounds.place(row)}: the item table has no {frame[action][row]!r}, which the log shows in {action!r} "
            f"({found.null_count():,} of {frame.height:,} rows): every item that could be shown needs a row there."
        )
    return found.to_numpy().astype(np.int64)
