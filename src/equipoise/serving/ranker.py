"""A trained ranker: model, schema and encoding together, kept in a folder, predicting raw rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from equipoise.data.dataset import Dataset
from equipoise.data.encoding import Encoding
from equipoise.data.tables.config import FileFormat
from equipoise.data.tables.files import open_files
from equipoise.data.tables.frames import open_frame
from equipoise.errors import DataError, SettingError
from equipoise.forks import Fork
from equipoise.methods import Method
from equipoise.ranking.models import MODELS, build_model
from equipoise.ranking.predictions import predictions
from equipoise.schema import Schema
from equipoise.serving.export import export_ranker
from equipoise.serving.folder import RankerFiles, read_ranker, versions, write_ranker
from equipoise.serving.predicting import ROWS, PredictedFile, RowPredictor
from equipoise.settings import TrainingSettings
from equipoise.training.models import ModelsByTask
from equipoise.training.run import Run

__all__ = ["Ranker"]


@dataclass(frozen=True)
class Ranker:
    """A trained ranker.

    Attributes:
        model: takes ids and numbers and returns one output of shape [B] per task, in evaluation mode.
        schema: the features and tasks.
        encoding: turns raw rows into ids and numbers; None if the data set did not come as a table.
        run: the record of the training, with its metrics.
        settings: the settings of the training, by name; ``model`` and ``model_options`` build the model again.
        groups: the tasks that each model learns: all in one, or one each for single-task training.
        data: the name of the data set.
        reading: how the training read its files (``format``, ``separator``, ``null_values``); empty if it read none.
        versions: of equipoise, torch and Python at the time of the training.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import polars as pl
        >>> from equipoise import train
        >>> from equipoise.data import TableConfig, from_frame
        >>> logs = pl.DataFrame({"zip": ["a", "b"] * 200, "age": range(400), "visit": [0, 1, 1, 0] * 100})
        >>> columns = {"features": {"zip": "category", "age": "number"}, "tasks": {"visit": "visit"}}
        >>> ranker = train(from_frame(logs, TableConfig(files="logs.csv", **columns)), "equal", batch_size=64)
        >>> with TemporaryDirectory() as folder:
        ...     ranker.save(folder)
        ...     loaded = Ranker.load(folder)
        >>> loaded.predict(logs).equals(ranker.predict(logs))
        True
    """

    model: nn.Module
    schema: Schema
    encoding: Encoding | None
    run: Run
    settings: Mapping[str, Any]
    groups: Sequence[Sequence[str]]
    data: str = ""
    reading: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that :meth:`predict` reads.

        Raises:
            SettingError: there is no encoding.
        """
        return self._of_rows().encoding.columns

    def predict(self, table: Any, /) -> pl.DataFrame:
        """Return the predictions for raw rows, one column per task, named after it.

        A binary task's column holds probabilities at the natural rate, a regression's numbers in the target's unit; see
        :func:`equipoise.ranking.predictions.predictions`. Labels are not needed, and rows keep their order.

        Args:
            table: a table of polars (also lazy), pandas or pyarrow, a mapping of columns, or a list of rows as
                mappings, with the raw columns of the features.

        Raises:
            SettingError: the data set did not come as a table, so that there is no encoding.
            DataError: a column is missing or of another type.
        """
        return pl.concat(self._of_rows().blocks(open_frame(_as_table(table))), rechunk=True)

    def predict_files(
        self,
        files: str | Path | Sequence[str | Path],
        out: Path | str,
        /,
        *,
        ids: Sequence[str] = (),
        rows: int = ROWS,
        file_format: FileFormat | None = None,
        separator: str | None = None,
        null_values: Sequence[str] | None = None,
    ) -> PredictedFile:
        """Write the predictions for raw rows of files as one Parquet file, block by block, whole or not at all.

        The file has the columns of ``ids``, then one per task as of :meth:`predict`, and the rows in the order of the
        files; labels are not needed.

        Args:
            files: Parquet, CSV or TSV (also .gz and .zst): files, globs, folders or URLs.
            ids: raw columns to copy beside the predictions.
            rows: rows that are read and written at once.
            file_format: of all files; None: by their ending, or as in the training where that is text.
            separator: between the fields of text files; None: as in the training.
            null_values: texts that stand for a missing value in text files; None: as in the training.

        Returns:
            The number of rows, and the shares of unseen values.

        Raises:
            SettingError: there is no encoding, an id is named like a task, or ``out`` is one of the files.
            DataError: a file or column is missing, or a value cannot be encoded; the message names file and row.
            OSError: the file cannot be written.
        """
        of_rows = self._of_rows()
        named = [files] if isinstance(files, str | Path) else files
        paths = [str(name) for name in named]
        if file_format is None and not any(path.endswith((".parquet", ".pq")) for path in paths):
            file_format = self.reading.get("format")
        source = open_files(
            paths,
            file_format=file_format,
            separator=self.reading.get("separator", "") if separator is None else separator,
            null_values=self.reading.get("null_values", ("", "NA", "NULL")) if null_values is None else null_values,
        )
        return of_rows.write(source, Path(out), ids=ids, rows=rows)

    @torch.no_grad()
    def predict_encoded(self, categorical: Tensor, numeric: Tensor, /) -> list[Tensor]:
        """Return one prediction per task for encoded rows, shape [B] each.

        Args:
            categorical: ids, of whole numbers, shape [B, columns]; the columns are ``schema.categorical_columns``.
            numeric: values, float32, shape [B, columns]; the columns are ``schema.numeric_columns``.
        """
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        outputs: Sequence[Tensor] = self.model(categorical.to(device, torch.int64), numeric.to(device))
        return [found.cpu() for found in predictions(outputs, self.schema)]

    def save(self, folder: Path | str, /) -> None:
        """Write ``ranker.json`` and ``weights.pt`` into a folder, each whole or not at all.

        The state of forks is left out: predictions do not need it, and checkpoints hold it.
        """
        forks = _fork_prefixes(self.model)
        state = {
            name: value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
            for name, value in self.model.state_dict().items()
            if not name.startswith(forks)
        }
        files = RankerFiles(
            versions=dict(self.versions),
            data=self.data,
            model=self.settings["model"],
            import_path=_import_path(self.settings["model"]),
            model_options=dict(self.settings["model_options"]),
            settings=dict(self.settings),
            groups=[list(group) for group in self.groups],
            schema=self.schema,
            encoding=self.encoding,
            reading=dict(self.reading),
            run=json.loads(self.run.to_json()),
        )
        write_ranker(Path(folder), files, state)

    def export(self, out: Path | str, /, *, onnx: bool = False, aoti: bool = False) -> Path:
        """Write a folder that serves this ranker without equipoise, and return it.

        It holds a ``torch.export`` program that takes any number of rows, the encoding as JSON, an encoder in plain
        Python, and a README that shows their use; see :mod:`equipoise.serving.export`.

        Args:
            onnx: write the program as ONNX too.
            aoti: compile it for this kind of CPU too, by AOTInductor.

        Raises:
            SettingError: the model cannot be exported, a package or the compiler is missing, a program's predictions
                differ from the model's, or ``out`` holds something else than an export.
        """
        about = {
            "data": self.data, "model": self.settings["model"], "method": self.run.method, "trained_with": self.versions
        }  # fmt: skip
        export_ranker(self.model, self.schema, self.encoding, Path(out), onnx=onnx, aoti=aoti, about=about)
        return Path(out)

    @classmethod
    def load(cls, folder: Path | str, /) -> Ranker:
        """Return the ranker that :meth:`save`, or a training, wrote; needs neither the data nor an accelerator.

        Raises:
            DataError: a file is missing, damaged or not of this format, or the weights do not fit the model.
            SettingError: the model cannot be built here, for example because its module cannot be imported.
        """
        files, state = read_ranker(Path(folder))
        name = files.import_path if files.model not in MODELS and files.import_path else files.model
        try:
            with torch.random.fork_rng(devices=[]):
                models = [build_model(name, files.schema, **files.model_options) for _ in files.groups]
        except SettingError as error:
            raise SettingError(
                f"The model of the ranker in {folder} cannot be built here. {error} If it is your own, run where its "
                "module can be imported, and register it first if it was trained under a name of your own."
            ) from error
        model = ModelsByTask(models, files.groups, files.schema.task_names)
        _load_weights(model, state, f"The weights in {folder} (equipoise {files.versions.get('equipoise')})")
        return cls(
            model.eval(), files.schema, files.encoding, Run.from_json(json.dumps(files.run)), files.settings,
            files.groups, files.data, files.reading, files.versions,
        )  # fmt: skip

    @classmethod
    def of_training(
        cls, model: nn.Module, dataset: Dataset, method: Method, run: Run, settings: TrainingSettings, /
    ) -> Ranker:
        """Return the ranker of a training that has ended.

        Args:
            model: as :func:`equipoise.training.train` hands it to ``on_trained``.
        """
        groups = method.groups(dataset.schema.task_names)
        stated = settings.suited_to(dataset).model_dump(mode="json", include=set(TrainingSettings.model_fields))
        return cls(model, dataset.schema, dataset.encoding, run, stated, groups, dataset.name, dataset.reading)

    def _of_rows(self) -> RowPredictor:
        if self.encoding is None:
            raise SettingError(
                f"This ranker was trained on {self.data or 'a data set'} that did not come as a table, so it cannot "
                "read raw rows: encode them yourself and call ranker.predict_encoded(categorical, numeric), or train "
                "on a table (equipoise.data.from_files, from_frame)."
            )
        return RowPredictor(self.encoding, self.predict_encoded, self.schema.task_names)


def _as_table(table: Any) -> Any:
    """Return a list of rows as a table, and any other table as it is."""
    if not isinstance(table, list):
        return table
    if not all(isinstance(row, Mapping) for row in table):
        raise DataError("Expected a table, or a list of rows as mappings from columns to values; found another list.")
    return pl.DataFrame(table, infer_schema_length=None)


def _fork_prefixes(model: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, Fork))


def _import_path(name: str) -> str:
    """Return the import path of a model that was registered under a name; empty where it has none."""
    builder = MODELS[name]
    module, attribute = getattr(builder, "__module__", ""), getattr(builder, "__qualname__", "")
    return f"{module}:{attribute}" if module not in {"", "__main__"} and attribute and "<" not in attribute else ""


def _load_weights(model: nn.Module, state: Mapping[str, Any], whose: str) -> None:
    expected = model.state_dict()
    forks = _fork_prefixes(model)
    missing = [name for name in expected if name not in state and not name.startswith(forks)]
    unexpected = [name for name in state if name not in expected]
    resized = [
        f"{name} of {list(value.shape)} instead of {list(expected[name].shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor) and name in expected and value.shape != expected[name].shape
    ]
    if missing or unexpected or resized:
        faults = {"missing": missing, "not expected": unexpected, "of another size": resized}
        said = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in faults.items() if names)
        raise DataError(
            f"{whose} do not fit the model as it is built here ({said}): its code or a package has changed since the "
            "training. Use the versions that ranker.json names, or train again."
        )
    model.load_state_dict(state, strict=False)
