"""Fixtures that several rooms' tests use."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.made_up_comparison import Comparison


@pytest.fixture
def comparison(tmp_path: Path) -> Callable[..., Path]:
    """Write a comparison; takes the fields of ``Comparison``, gives the folder."""
    return lambda **changes: Comparison(**changes).write(tmp_path / "comparison")
