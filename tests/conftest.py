"""Fixtures that several rooms' tests use, and what has to be said before Triton is imported."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # tests/forks/test_kernels.py runs kernels on the CPU

import pytest

from equipoise.methods import METHODS
from tests.made_up_comparison import Comparison


@pytest.fixture
def own_methods() -> Iterator[None]:
    """Forget afterwards which methods a test has registered."""
    before = METHODS.registered()
    yield
    METHODS.restore(before)


@pytest.fixture
def comparison(tmp_path: Path) -> Callable[..., Path]:
    """Write a comparison; takes the fields of ``Comparison``, gives the folder."""
    return lambda **changes: Comparison(**changes).write(tmp_path / "comparison")
