"""A small prepared folder, shared by tests that only read it."""

from pathlib import Path

import pytest

from tests.data.stream.made_up import prepare_made_up

BLOCKS = [9, 4, 30, 1, 16, 25, 8, 8, 40, 3, 12, 12, 21, 5, 7, 18, 10, 10, 2, 6, 11]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared folder of 21 blocks with 258 rows for training."""
    return prepare_made_up(tmp_path_factory.mktemp("made-up") / "prepared", BLOCKS)
