"""A prepared folder as a data set for training, evaluation and comparison."""

from __future__ import annotations

from pathlib import Path

from equipoise.data.dataset import Dataset
from equipoise.data.encoding import Encoding
from equipoise.data.stream.manifest import SPLITS, read_manifest
from equipoise.data.stream.split import StreamedSplit

__all__ = ["from_prepared"]


def from_prepared(folder: Path | str, /) -> Dataset:
    """Return the data set in a prepared folder; its rows stay on disk and are read while they are used.

    Raises:
        DataError: the folder is none that was prepared to the end, is of another version, or a part is missing or of
            another size.
    """
    folder = Path(folder).absolute()
    manifest = read_manifest(folder)
    about = manifest.about
    encoding = None if manifest.encoding is None else Encoding.from_json((folder / manifest.encoding.file).read_text())
    settings = manifest.made_from.get("settings", {})
    reading = {name: settings[name] for name in ("format", "separator", "null_values") if name in settings}
    train, validation, test = (StreamedSplit(folder, manifest, name) for name in SPLITS)
    return Dataset(
        about.name, about.columns, train, validation, test,
        about.notes, about.best_ne, about.epochs, about.batch_size, about.licence, about.source,
        group=about.group, values=about.values, slices=about.slices, encoding=encoding, reading=reading,
        user_groups=about.user_groups,
    )  # fmt: skip
