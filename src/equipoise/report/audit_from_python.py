"""Audits from Python, of data sets in memory and of unregistered models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.comparison.audit import audit as run_audit
from equipoise.comparison.from_python import settings_of
from equipoise.comparison.jobs import RunListener
from equipoise.data import Dataset
from equipoise.ranking.models import ModelBuilder
from equipoise.report.audit_page import audit_in_words, write_audit
from equipoise.settings import Settings

__all__ = ["audit"]


def audit(
    dataset: str | Mapping[str, Any] | Dataset,
    *,
    model: str | ModelBuilder | None = None,
    out: Path | str = "equipoise-audit",
    seeds: int = 5,
    trials: int = 16,
    jobs: int | None = None,
    listener: RunListener | None = None,
    **settings: Any,
) -> list[str]:
    """Say whether balancing pays on a data set, in sentences: the advice, then its reasons; write ``out/audit.html``.

    Args:
        dataset: a name or description that :func:`equipoise.data.load` takes, or a data set in memory.
        model: a name, an import path, or a class or function that builds a module.
        out: a folder; trainings that it already holds are kept.
        seeds: trainings of each method; under 3 nothing is advised.
        trials: trainings of the search for static loss weights.
        jobs: worker processes; one per core if None, none at all if 1. With more than one, call this under
            ``if __name__ == "__main__":``.
        listener: is told the progress.
        settings: any setting of ``equipoise audit``, such as ``epochs`` or ``lr``.

    Raises:
        DataError: the data set is not known or cannot be had.
        SettingError: a setting or model is not known or cannot be used, or there is one task only.
        FolderError: the folder holds an audit of other settings.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from equipoise.data import load
        >>> small = load("funnel", rows=1500)
        >>> short = {"lr": 0.01, "epochs": 1, "batch_size": 512}
        >>> with TemporaryDirectory() as folder:
        ...     advice, *reasons = audit(small, seeds=1, trials=1, jobs=1, out=folder, **short)
        >>> advice
        'Too few seeds to advise: at least 3 are needed.'
    """
    stated, given = settings_of(dataset, model, settings)
    folder = Path(out)
    run_audit(
        Settings.of(**stated),
        folder,
        seeds=seeds,
        trials=trials,
        dataset=dataset if isinstance(dataset, Dataset) else None,
        from_python=given,
        jobs=jobs,
        listener=listener,
    )
    write_audit(folder)
    return audit_in_words(folder)
