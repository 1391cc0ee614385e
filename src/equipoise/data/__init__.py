"""Data sets by name: each becomes a schema and three splits of whole columns, however it was published."""

from __future__ import annotations

import inspect
from importlib import import_module

from equipoise.data.dataset import Dataset, Split
from equipoise.errors import DataError

__all__ = ["NAMES", "DataError", "Dataset", "Split", "load"]

# name -> the module and function that build it; imported only when asked for, since each needs other packages
_LOADERS = {
    "complete-journey": ("sets.complete_journey", "load"),
    "census-income": ("sets.census_income", "load"),
    "census-income-full": ("sets.census_income", "load_full"),
    "funnel": ("sets.funnel", "load"),
}

NAMES = tuple(_LOADERS)
"""The names that :func:`load` knows."""


def load(name: str, **options: object) -> Dataset:
    """The data set of that name, built from its published files or generated.

    Args:
        name: one of :data:`NAMES`: ``"complete-journey"`` (real, comes with the ``data`` extra),
            ``"census-income"`` (real, its nominal columns), ``"census-income-full"`` (real, with the numeric
            columns and instance weights) or ``"funnel"`` (generated, the best reachable NE is known).
        options: what that data set's own loader takes by keyword, such as ``seed``.

    Raises:
        DataError: the name, an option or a file is not as expected, or a package is missing (with the command
            that installs it).

    Example:
        >>> dataset = load("funnel", rows=3000, seed=1)
        >>> dataset.schema.task_names
        ('click', 'like', 'long_view', 'conversion')
        >>> load("funnels")
        Traceback (most recent call last):
        equipoise.errors.DataError: Expected a data set out of complete-journey, census-income, \
census-income-full, funnel; found 'funnels'.
    """
    if name not in _LOADERS:
        raise DataError(f"Expected a data set out of {', '.join(NAMES)}; found {name!r}.")
    module_name, function_name = _LOADERS[name]
    try:
        loader = getattr(import_module(f"equipoise.data.{module_name}"), function_name)
        _check_options(name, inspect.signature(loader), options)
        dataset: Dataset = loader(**options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("equipoise"):
            raise
        raise DataError(
            f"Data set {name!r} needs the package {error.name!r}, which is not installed: "
            'pip install "equipoise[data]".'
        ) from error
    return dataset


def _check_options(name: str, signature: inspect.Signature, options: dict[str, object]) -> None:
    known = [option for option in signature.parameters if option != "progress"]  # that is for programs alone
    taken = set(signature.parameters) if callable(options.get("progress")) else set(known)
    unknown = sorted(options.keys() - taken)
    if unknown:
        raise DataError(f"Data set {name!r} takes the options {', '.join(known)}; found {', '.join(unknown)}.")
