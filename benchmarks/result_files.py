"""Writes what a benchmark has measured, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_result"]


def write_result(out: Path, result: Mapping[str, Any], page: str) -> None:
    """Write a result to ``out`` with the ending .json, and its page beside it with .md; make the folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(page)
