"""Training from Python that returns the trained ranker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.data import Dataset, expect_source, load
from equipoise.methods import Method, parse_method
from equipoise.ranking.models import ModelBuilder, name_of
from equipoise.serving.ranker import Ranker
from equipoise.settings import TrainingSettings
from equipoise.training.loop import train as train_once

__all__ = ["train"]


def train(
    dataset: Dataset | str | Mapping[str, Any],
    method: Method | str = "multibalance",
    /,
    *,
    model: str | ModelBuilder | None = None,
    out: Path | str | None = None,
    **settings: Any,
) -> Ranker:
    """Train one method on one data set; return the trained ranker, and write it to ``out`` if that is given.

    Args:
        dataset: a data set in memory, or a name or description that :func:`equipoise.data.load` takes.
        method: the method, or its name with options behind a colon.
        model: a name, an import path, or a class or function that builds a module; ``docs/own-model.md`` says more.
        out: the folder for the ranker.
        settings: as of :func:`equipoise.training.train`.

    Example:
        >>> from equipoise.data import load
        >>> ranker = train(load("funnel", rows=3000), "multibalance", lr=1e-2, epochs=1, batch_size=256)
        >>> ranker.run.status
        'ok'
    """
    dataset = dataset if isinstance(dataset, Dataset) else load(expect_source(dataset))
    method = parse_method(method) if isinstance(method, str) else method
    if model is not None:
        settings["model"] = model if isinstance(model, str) else name_of(model)
    trained: list[nn.Module] = []
    run = train_once(dataset, method, on_trained=trained.append, **settings)
    fields = TrainingSettings.model_fields
    chosen = TrainingSettings.of(**{name: value for name, value in settings.items() if name in fields})
    ranker = Ranker.of_training(trained[0], dataset, method, run, chosen)
    if out is not None:
        ranker.save(out)
    return ranker
