"""A trained ranker: model, schema and encoding together, kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from equipoise.data.encoding import Encoding
from equipoise.errors import SettingError
from equipoise.forks import Fork
from equipoise.ranking.models import build_model
from equipoise.schema import Schema
from equipoise.training.models import ModelsByTask
from equipoise.training.run import Run

__all__ = ["Ranker"]

_DESCRIPTION, _WEIGHTS = "ranker.json", "weights.pt"


@dataclass(frozen=True)
class Ranker:
    """A trained ranker.

    Attributes:
        model: returns one output per task for a batch's ids and numbers, in evaluation mode.
        encoding: turns raw rows into ids and numbers; None if the data set did not come as a table.
        run: the record of the training, with its metrics.
        model_name: the name or import path that rebuilds the model.
        model_options: its options.
        groups: the tasks that each model learns: all in one, or one each for single-task training.
    """

    model: nn.Module
    schema: Schema
    encoding: Encoding | None
    run: Run
    model_name: str
    model_options: Mapping[str, Any]
    groups: Sequence[Sequence[str]]

    def predict(self, table: Any, /) -> pl.DataFrame:
        """Return the predictions for raw rows, one column per task.

        Args:
            table: a table of polars, pandas or pyarrow with the columns of the features.

        Raises:
            SettingError: the data set did not come as a table, so that there is no encoding.
            DataError: a column is missing or of another type.
        """
        if self.encoding is None:
            raise SettingError("This ranker was trained on a data set without an encoding: call ranker.model instead.")
        categorical, numeric = self.encoding.encode(pl.DataFrame(table))
        with torch.no_grad():
            outputs: Sequence[Tensor] = self.model(categorical.long(), numeric)
        return pl.DataFrame(
            {name: out.sigmoid().numpy() for name, out in zip(self.schema.task_names, outputs, strict=True)}
        )

    def save(self, folder: Path, /) -> None:
        """Write ``ranker.json`` and ``weights.pt`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        forks = tuple(f"{name}." for name, part in self.model.named_modules() if isinstance(part, Fork))
        state = {name: value.cpu() for name, value in self.model.state_dict().items() if not name.startswith(forks)}
        torch.save(state, folder / _WEIGHTS)
        description = {
            "model": self.model_name, "model_options": dict(self.model_options),
            "groups": [list(group) for group in self.groups],
            "encoding": None if self.encoding is None else self.encoding.model_dump(mode="json"),
            "run": json.loads(self.run.to_json()),
        }  # fmt: skip
        (folder / _DESCRIPTION).write_text(json.dumps(description))

    @classmethod
    def load(cls, folder: Path, /) -> Ranker:
        """Return the ranker that :meth:`save` wrote."""
        found = json.loads((folder / _DESCRIPTION).read_text())
        encoding = Encoding.model_validate(found["encoding"])
        schema = encoding.schema_of_batches
        models = [build_model(found["model"], schema, **found["model_options"]) for _ in found["groups"]]
        model = ModelsByTask(models, found["groups"], schema.task_names)
        model.load_state_dict(torch.load(folder / _WEIGHTS, weights_only=True))
        run = Run.from_json(json.dumps(found["run"]))
        return cls(model.eval(), schema, encoding, run, found["model"], found["model_options"], found["groups"])
