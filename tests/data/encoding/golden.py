"""The golden cases: encodings with raw columns and the ids and values that every reader of the JSON has to give.

``golden.json`` is a list of cases. ``columns`` are raw values as JSON has them, ``types`` the polars types of the same
values in a file, ``ids`` and ``values`` the expected rows; a case with ``refused`` has to end in an error instead.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
ENCODED = [case for case in CASES if "refused" not in case]
REFUSED = [case for case in CASES if "refused" in case]


def rows_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the raw rows of a case."""
    return [dict(zip(case["columns"], row, strict=True)) for row in zip(*case["columns"].values(), strict=True)]


def frame_of(case: dict[str, Any]) -> pl.DataFrame:
    """Return the raw rows of a case as a table with the types of a file."""
    return pl.DataFrame([_series(name, case["types"][name], values) for name, values in case["columns"].items()])


def _series(name: str, dtype: str, values: list[Any]) -> pl.Series:
    if dtype in {"Date", "Datetime"}:
        column = pl.Series(name, values, dtype=pl.String)
        return column.str.to_date() if dtype == "Date" else column.str.to_datetime()
    inner = dtype.removeprefix("List(").removesuffix(")")
    found = getattr(pl, inner)
    return pl.Series(name, values, dtype=found if inner == dtype else pl.List(found))
