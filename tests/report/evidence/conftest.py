"""A made-up suite: comparisons in folders of their own, and the file that names them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.made_up_comparison import Comparison


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Path]:
    """Write a suite; takes a ``Comparison`` for each setting (None: not begun), gives the folder."""

    def write(**settings: Comparison | None) -> Path:
        folder = tmp_path / "suite"
        folder.mkdir()
        entries = [{"name": name, "title": name.replace("_", " ").title(), "note": ""} for name in settings]
        (folder / "suite.json").write_text(json.dumps({"title": "A suite", "settings": entries}))
        for name, made in settings.items():
            if made is not None:
                made.write(folder / name)
        return folder

    return write
