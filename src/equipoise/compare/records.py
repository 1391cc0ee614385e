"""A comparison's files: JSON written whole, and runs as lines that an interruption never breaks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.training import Run, SettingError

__all__ = ["append_run", "read_runs", "write_json"]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in place of the one before, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def append_run(path: Path, run: Run, **labels: str) -> None:
    """Add a run as one line, on disk before this returns."""
    line = json.dumps({**labels, **json.loads(run.to_json())}, allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_runs(path: Path) -> list[Run]:
    """The runs of a file, none if it is not there; a last line that was cut off is taken out of it.

    Raises:
        SettingError: a line is not a run.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)
    runs = []
    for number, line in enumerate(content[:complete].splitlines(), start=1):
        try:
            runs.append(Run.from_json(line.decode()))
        except ValueError as error:
            raise SettingError(
                f"{path}, line {number}: expected a run as JSON, found {line[:40].decode(errors='replace')!r}: delete "
                "that line."
            ) from error
    return runs
