from pathlib import Path

import pytest
import torch

from equipoise.training import CheckpointError
from equipoise.training.checkpoint import load_checkpoint, save_checkpoint


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "new" / "checkpoint.pt"
    save_checkpoint(file, {"seed": "1"}, {"weights": torch.arange(3), "curve": [{"step": 1}]})
    state = load_checkpoint(file, {"seed": "1"})
    assert torch.equal(state["weights"], torch.arange(3))
    assert state["curve"] == [{"step": 1}]


def test_a_failed_save_leaves_the_checkpoint_before_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, {}, {"step": 1})
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_checkpoint(file, {}, {"step": lambda: None})
    assert load_checkpoint(file, {}) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_resumed_from_is_named(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match="found none"):
        load_checkpoint(file, {})
    file.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as one"):
        load_checkpoint(file, {})
    torch.save({"weights": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="cannot be read as one"):
        load_checkpoint(file, {})
    save_checkpoint(file, {"seed": "1", "lr": "0.1"}, {})
    with pytest.raises(CheckpointError, match="seed: 1 there, 2 here"):
        load_checkpoint(file, {"seed": "2", "lr": "0.1"})
