"""Comparisons from Python, of data sets in memory and of unregistered methods and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equipoise.comparison.jobs import RunListener
from equipoise.comparison.result_folder import ResultFolder
from equipoise.comparison.results import Results
from equipoise.comparison.runner import run_comparison
from equipoise.data import Dataset, expect_source
from equipoise.methods import METHODS, Method
from equipoise.ranking.models import MODELS, ModelBuilder, name_of
from equipoise.settings import Settings

__all__ = ["compare", "settings_of"]


def compare(
    dataset: str | Mapping[str, Any] | Dataset,
    *,
    methods: Sequence[str | Method] | None = None,
    model: str | ModelBuilder | None = None,
    out: Path | str = "equipoise-compare",
    jobs: int | None = None,
    listener: RunListener | None = None,
    **settings: Any,
) -> Results:
    """Train every method with every seed on one data set; leave the results in ``out`` and return them.

    ``equipoise report OUT`` writes the report of the folder, :func:`equipoise.report.write_report` does so from Python.
    With more than one job, call this under ``if __name__ == "__main__":``: worker processes import the script. A
    method or model that is given as an object is registered under its name for this process and its workers.

    Args:
        dataset: a name or description that :func:`equipoise.data.load` takes, or a data set in memory.
        methods: names, import paths or objects; by default single-task, equal, multibalance and pub.
        model: a name, an import path, or a class or function that builds a module; ``docs/own-model.md`` says more.
        out: a folder; runs that it already holds are kept.
        jobs: how many worker processes train; if None one per core, and one on an accelerator. None at all if 1.
        listener: is told the progress.
        settings: any setting of ``equipoise compare``, such as ``seeds``, ``epochs`` or ``tune``.

    Raises:
        DataError: the data set is not known or cannot be had.
        SettingError: a setting, method or model is not known or cannot be used; what holds an object cannot be handed
            to worker processes; the folder holds another comparison.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from equipoise.data import load
        >>> with TemporaryDirectory() as folder:
        ...     results = compare(
        ...         load("funnel", rows=1500), methods=["equal"], seeds=1, epochs=1, batch_size=512, jobs=1, out=folder
        ...     )
        >>> [run.method for run in results.runs]
        ['equal']
    """
    stated, given = settings_of(dataset, model, settings)
    if methods is not None:
        stated["methods"] = [entry if isinstance(entry, str) else _registered_method(entry, given) for entry in methods]
    folder = Path(out)
    run_comparison(
        Settings.of(**stated),
        folder,
        dataset=dataset if isinstance(dataset, Dataset) else None,
        from_python=given,
        jobs=jobs,
        listener=listener,
    )
    return ResultFolder(folder).results()


def settings_of(
    dataset: object, model: str | ModelBuilder | None, settings: Mapping[str, Any], /
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that stand for a data set and a model, and the names of those that were given as objects.

    Raises:
        DataError: the data set is none, nor the name or the description of one.
    """
    given: list[str] = []
    stated = dict(settings)
    if isinstance(dataset, Dataset):
        given.append("data")
    stated["data"] = dataset.name if isinstance(dataset, Dataset) else expect_source(dataset)
    if model is not None:
        stated["model"] = model if isinstance(model, str) else name_of(model)
        if not isinstance(model, str) and stated["model"] in MODELS:
            given.append("model")
    return stated, given


def _registered_method(method: Method, given: list[str]) -> str:
    """Return the name under which workers, checkpoints and the report find a method."""
    if method.name in METHODS and METHODS[method.name] == method:
        return method.name
    METHODS.register(method.name, method, replace=True)
    given.append("methods")
    return method.name
