"""Data sets by name; each loads as a schema and three splits of whole columns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from equipoise.data.dataset import AnySplit, Dataset, Split
from equipoise.data.source import DataSource, StageListener
from equipoise.errors import DataError, how_to_install
from equipoise.registry import Registry

if TYPE_CHECKING:
    from equipoise.data.encoding import Encoding
    from equipoise.data.stream import StreamedBatches, StreamedSplit, from_prepared, prepare
    from equipoise.data.tables import TableConfig, from_files, from_frame

__all__ = [
    "DATASETS",
    "AnySplit",
    "DataError",
    "DataSource",
    "Dataset",
    "Encoding",
    "Split",
    "StageListener",
    "StreamedBatches",
    "StreamedSplit",
    "TableConfig",
    "expect_source",
    "from_files",
    "from_frame",
    "from_prepared",
    "load",
    "prepare",
    "register",
]


def _data_source(name: str, found: Any) -> DataSource:
    if isinstance(found, DataSource):
        return found
    if not callable(found):
        raise TypeError(f"expected a function that returns a Dataset, or a DataSource; found a {type(found).__name__}.")
    return DataSource(name, found)


# Import paths, followed when a set is asked for: each needs other packages.
_OWN: Final[dict[str, DataSource | str]] = {
    "complete-journey": "equipoise.data.sets.complete_journey:SOURCE",
    "census-income": "equipoise.data.sets.census_income:NOMINAL",
    "census-income-full": "equipoise.data.sets.census_income:FULL",
    "funnel": "equipoise.data.sets.funnel:SOURCE",
    "aliexpress": "equipoise.data.sets.aliexpress:SOURCE",
    "ali-ccp": "equipoise.data.sets.ali_ccp:SOURCE",
    "kuairand": "equipoise.data.sets.kuairand:SOURCE",
    "kuairand-slice": "equipoise.data.sets.kuairand_slice:SOURCE",
    "criteo-attribution": "equipoise.data.sets.criteo_attribution:SOURCE",
    "tenrec": "equipoise.data.sets.tenrec:SOURCE",
    "open-bandit": "equipoise.data.sets.open_bandit:SOURCE",
    "nycflights13": "equipoise.data.sets.nycflights13:SOURCE",
    "two-digits": "equipoise.data.sets.two_digits:SOURCE",
    "sentiment-snippets": "equipoise.data.sets.sentiment_snippets:SOURCE",
}

DATASETS: Final = Registry[DataSource]("data set", "equipoise.datasets", own=_OWN, adapt=_data_source, error=DataError)
"""The data sets by name; iterating gives the names. Other packages add theirs by :func:`register`, or by an entry point
in the group ``equipoise.datasets``."""

register = DATASETS.register

# What needs polars is imported when it is first used.
_LATER: Final = {
    "Encoding": "equipoise.data.encoding",
    "StreamedBatches": "equipoise.data.stream",
    "StreamedSplit": "equipoise.data.stream",
    "TableConfig": "equipoise.data.tables",
    "from_files": "equipoise.data.tables",
    "from_frame": "equipoise.data.tables",
    "from_prepared": "equipoise.data.stream",
    "prepare": "equipoise.data.stream",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def load(name: str | Mapping[str, Any], *, on_stage: StageListener | None = None, **options: object) -> Dataset:
    """Load a data set: built from its published files, from own tables, prepared in a folder, or generated.

    Args:
        name: one of :data:`DATASETS`, which ``docs/data-sets.md`` describes; an import path such as
            ``"package.module:function"`` of a function that returns a :class:`Dataset`; a folder that
            `equipoise data prepare` wrote (``./funnel`` if it has the name of a data set); or the description of own
            tables, see :class:`TableConfig`.
        on_stage: called at each stage of the building, by data sets that take long.
        options: keyword options of that data set's loader, such as ``seed``.

    Raises:
        DataError: the name, an option or a file is not as expected, or a package is missing (with the command
            that installs it).

    Example:
        >>> dataset = load("funnel", rows=3000, seed=1)
        >>> dataset.schema.task_names
        ('click', 'like', 'long_view', 'conversion')
        >>> load("funnels")
        Traceback (most recent call last):
        equipoise.errors.DataError: Expected a data set out of complete-journey, ...; did you mean 'funnel'?
    """
    if not isinstance(name, str):
        from equipoise.data.tables import from_files

        _check_options(str(name.get("name", "own data")), {}, options)
        return from_files(name)
    if name not in DATASETS and Path(name).is_dir():
        from equipoise.data.stream import from_prepared

        _check_options(name, {}, options)
        return from_prepared(name)
    if name.endswith((".yaml", ".yml")):
        raise DataError(
            f"Expected a data set or its name, found the settings file {name}: "
            f"equipoise.data.from_files({name!r}) returns the data set that it describes."
        )
    try:
        loader = DATASETS[name].load
        parameters = inspect.signature(loader).parameters
        if on_stage is not None and not callable(on_stage):  # a word from a settings file
            options = {**options, "on_stage": on_stage}
        _check_options(name, parameters, options)
        if callable(on_stage) and "on_stage" in parameters:
            options = {**options, "on_stage": on_stage}
        found: object = loader(**options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("equipoise"):
            raise
        remedy = how_to_install("data") if name in _OWN else "install it"
        raise DataError(
            f"Data set {name!r} needs the package {error.name!r}, which is not installed: {remedy}."
        ) from error
    if not isinstance(found, Dataset):
        raise DataError(
            f"Data set {name!r}: expected its loader to return an equipoise.data.Dataset, found a "
            f"{type(found).__name__}."
        )
    return found


def expect_source(found: object, /) -> Any:
    """Return what was given in place of a data set if it is one, or a name or description of one.

    Raises:
        DataError: it is something else, such as a table.

    Example:
        >>> expect_source("funnel")
        'funnel'
        >>> expect_source([1, 2])
        Traceback (most recent call last):
        equipoise.errors.DataError: Expected a data set, or the name or description of one, found a list. A table of \
polars, pandas or pyarrow becomes a data set with equipoise.data.from_frame(table, description).
    """
    if isinstance(found, Dataset | str | Mapping):
        return found
    raise DataError(
        f"Expected a data set, or the name or description of one, found a {type(found).__name__}. A table of polars, "
        "pandas or pyarrow becomes a data set with equipoise.data.from_frame(table, description)."
    )


def _check_options(name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, object]) -> None:
    known = [option for option in parameters if option != "on_stage"]  # that is for programs alone
    takes_any = any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values())
    unknown = sorted(options.keys() - set(known))
    if unknown and not takes_any:
        takes = f"the options {', '.join(known)}" if known else "no options"
        raise DataError(f"Data set {name!r} takes {takes}; found {', '.join(unknown)}.")
