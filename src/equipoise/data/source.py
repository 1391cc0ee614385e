"""The description of a data set that is not loaded yet: loader, source, training defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from equipoise.data.dataset import Dataset

__all__ = ["DataSource", "StageListener"]

StageListener = Callable[[str, float], None]
"""Called at each stage of building a data set, with what comes next and the share of the work done, from 0 to 1."""


@dataclass(frozen=True)
class DataSource:
    """The description of a data set: its loader, and the facts a user needs before loading it.

    Each module in ``data/sets/`` states its own; ``docs/data-sets.md`` is generated from them.

    Attributes:
        name: the name that :func:`equipoise.data.load` takes.
        load: returns the :class:`Dataset`; its keyword parameters are the options. One that builds for long takes
            ``on_stage``, a :data:`StageListener` or None.
        summary: one sentence on what the data is.
        obtain: how to get the files.
        columns: features and tasks, in a few words.
        splits: how rows become train, validation and test.
        epochs: the default number of passes over the train split.
        batch_size: the default number of rows per step.
        licence: the publisher's licence in a few words.
        source: the web address or package that the data comes from.

    Example:
        >>> from equipoise.data import DATASETS
        >>> DATASETS["funnel"].batch_size
        2048
    """

    name: str
    load: Callable[..., Dataset]
    summary: str = ""
    obtain: str = ""
    columns: str = ""
    splits: str = ""
    epochs: int = 1
    batch_size: int = 2048
    licence: str = ""
    source: str = ""

    def for_dataset(self) -> dict[str, Any]:
        """Return the fields shared with :class:`Dataset`, as keyword arguments for it."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "licence": self.licence,
            "source": self.source,
        }

    def in_markdown(self) -> str:
        """Return a section of ``docs/data-sets.md``."""
        rows = {
            "get it": self.obtain,
            "source": self.source,
            "licence": self.licence,
            "columns": self.columns,
            "splits": self.splits,
            "epochs, batch size": f"{self.epochs}, {self.batch_size:,}",
        }
        lines = [f"## `{self.name}`", "", self.summary, "", "| | |", "|---|---|"]
        return "\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows.items() if value), ""])
