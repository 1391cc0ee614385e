"""The files of a trained ranker, ``ranker.json`` and ``weights.pt``: their one writer and their one reader.

Both are plain data: JSON, and tensors that ``torch.load`` reads with ``weights_only=True``. No code runs from them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor

from equipoise.data.encoding import Encoding
from equipoise.errors import DataError
from equipoise.schema import Schema
from equipoise.whole_files import replace_file

__all__ = ["DESCRIPTION", "RankerFiles", "read_ranker", "set_ranker_aside", "versions", "write_ranker"]

DESCRIPTION: Final = "ranker.json"
_WEIGHTS: Final = "weights.pt"
_BEFORE: Final = "ranker.before"
_FORMAT: Final = "equipoise ranker"
_READABLE: Final = 1


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class RankerFiles:
    """The content of ``ranker.json``.

    Attributes:
        versions: of equipoise, torch and Python, by name, at the time of the training.
        data: the name of the data set.
        model: the name that builds the model again; ``import_path`` is followed where it is not registered.
        settings: the settings of the training, by name.
        groups: the tasks that each model learns.
        encoding: None if the data set did not come as a table.
        reading: how the training read its files; empty if it read none.
        run: the record of the training.
        weights: the SHA-256 of ``weights.pt``.
    """

    versions: dict[str, str]
    data: str
    model: str
    import_path: str
    model_options: dict[str, Any]
    settings: dict[str, Any]
    groups: list[list[str]]
    schema: Schema
    encoding: Encoding | None
    reading: dict[str, Any]
    run: dict[str, Any]
    weights: str = ""
    format: Literal["equipoise ranker"] = _FORMAT
    version: Literal[1] = _READABLE


_FILES: Final = TypeAdapter(RankerFiles)


def versions() -> dict[str, str]:
    """Return the versions that this process runs, by name."""
    from equipoise import __version__  # noqa: PLC0415 - equipoise itself imports this room when it is first used

    return {"equipoise": __version__, "torch": torch.__version__, "python": platform.python_version()}


def write_ranker(folder: Path, files: RankerFiles, state: Mapping[str, Any], /) -> None:
    """Write both files, each whole or not at all; ``ranker.json`` comes last and names the weights by their hash."""
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / _WEIGHTS) as temporary:
        torch.save(dict(state), temporary)
        digest = _sha256(temporary)
    content = asdict(files) | {
        "encoding": None if files.encoding is None else files.encoding.model_dump(mode="json"),
        "weights": digest,
    }
    with replace_file(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_ranker(folder: Path, /) -> tuple[RankerFiles, dict[str, Any]]:
    """Return the description and the weights that :func:`write_ranker` wrote.

    Raises:
        DataError: a file is missing, damaged, or not of this format.
    """
    description, weights = folder / DESCRIPTION, folder / _WEIGHTS
    if not description.is_file():
        found = "no such folder" if not folder.is_dir() else _in_words(sorted(path.name for path in folder.iterdir()))
        raise DataError(
            f"Expected the folder of a finished training with {DESCRIPTION} in it at {folder}, found {found}: run "
            "`equipoise train` (with --resume if it was interrupted), or name its --out folder."
        )
    files = _parsed(description)
    if not weights.is_file():
        raise DataError(f"Expected the weights of {description} at {weights}, found none: copy both files.")
    if _sha256(weights) != files.weights:
        raise DataError(
            f"The weights in {weights} are not those of {description}: a file is damaged, or a training was stopped "
            "while it wrote them. Copy the folder again, or run its `equipoise train` with --resume."
        )
    try:
        state = torch.load(weights, weights_only=True, map_location="cpu")
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"Expected tensors by name in {weights}, found something else: {_first_line(error)}") from error
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"Expected tensors by name in {weights}, found something else.")
    return files, state


def set_ranker_aside(folder: Path, /) -> None:
    """Move the ranker of an earlier training into ``ranker.before``, from which it can still be loaded."""
    present = [folder / name for name in (DESCRIPTION, _WEIGHTS) if (folder / name).exists()]
    if not present:
        return
    shutil.rmtree(folder / _BEFORE, ignore_errors=True)
    (folder / _BEFORE).mkdir()
    for path in present:
        path.replace(folder / _BEFORE / path.name)


def _parsed(path: Path) -> RankerFiles:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"Expected JSON in {path}, found something else ({_first_line(error)}).") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise DataError(f"Expected the description of a ranker that equipoise has trained in {path}, found other JSON.")
    if found.get("version") != _READABLE:
        raise DataError(
            f"{path} is of version {found.get('version')!r} of the format, this equipoise reads version {_READABLE}: "
            f"use the one that wrote it ({found.get('versions')})."
        )
    try:
        return _FILES.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path} is damaged: {where}: {first['msg']}.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_words(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"only {shown}{', ...' if len(names) > 5 else ''}" if names else "an empty one"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
