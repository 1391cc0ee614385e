"""A checkpoint is whole or not there, gives back what was saved, and runs no code."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.training import CheckpointError
from equipoise.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from equipoise.training.plain_state import decode, encode

quick = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def alike(found, expected) -> bool:
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected) and found.dtype == expected.dtype
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and all(alike(*pair) for pair in zip(found, expected, strict=True))
    return type(found) is type(expected) and found == expected


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.8, 0.9))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numbers": [1, 0.1 + 0.2, float("inf"), True, None],
        "tensors": (torch.tensor(3), torch.empty(0), torch.tensor([True]), torch.ones(2, dtype=torch.bfloat16)),
    }
    save_checkpoint(tmp_path / "new", 5, {"seed": "1"}, state)
    found = load_checkpoint(tmp_path / "new", {"seed": "1"})
    assert alike(found, state | {"model": dict(state["model"])})


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@quick
@given(plain)
def test_any_plain_state_comes_back_from_json_as_it_was(state) -> None:
    assert alike(decode(json.loads(json.dumps(encode(state, {}))), {}), state)


@pytest.mark.parametrize("key", ["tensor", "tuple", "items"])
def test_keys_that_the_encoding_uses_itself_come_back(key: str) -> None:
    state = {key: {key: [1]}, "other": {key: 2}}
    assert decode(json.loads(json.dumps(encode(state, {}))), {}) == state


def test_a_failed_save_leaves_the_checkpoint_before_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(2)})
    with pytest.raises(TypeError, match="found function"):
        save_checkpoint(tmp_path, 2, {}, {"weights": lambda: None})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("equipoise.training.checkpoint._write", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {}, {"weights": torch.zeros(2)})
    assert torch.equal(load_checkpoint(tmp_path, {})["weights"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


FULL = """
import resource, signal, sys
import torch
from pathlib import Path
from equipoise.training.checkpoint import load_checkpoint, save_checkpoint

folder, value = Path(sys.argv[1]), torch.arange(10_000.0)
save_checkpoint(folder, 1, {}, {"value": value})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(folder, 2, {}, {"value": value + 1})
except OSError as error:
    print(error)
assert torch.equal(load_checkpoint(folder, {})["value"], value)
"""


def test_when_the_disk_takes_no_more_the_reason_is_said_and_the_checkpoint_before_is_intact(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"Rank 0 could not write the checkpoint of step 2 \(\[Errno 27\] File too large\); .* has [\d,]+ MB free\n",
        done.stdout,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, {}, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11"]
    assert load_checkpoint(tmp_path, {}) == {"step": 11}


def test_what_cannot_be_resumed_from_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        load_checkpoint(tmp_path, {})
    save_checkpoint(tmp_path, 1, {"seed": "1", "lr": "0.1"}, {"weights": torch.ones(100)})
    with pytest.raises(CheckpointError, match="seed: 1 there, 2 here"):
        load_checkpoint(tmp_path, {"seed": "2", "lr": "0.1"})


@pytest.mark.parametrize("damaged", ["state.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("how", ["cut", "gone", "scrambled"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, damaged: str, how: str) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(100)})
    file = last_checkpoint(tmp_path) / damaged
    content = file.read_bytes()
    file.unlink()
    if how != "gone":
        file.write_bytes(content[: len(content) // 2] if how == "cut" else bytes(reversed(content)))
    with pytest.raises(CheckpointError, match="cannot be read as one"):
        load_checkpoint(tmp_path, {})


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def test_no_file_of_a_checkpoint_runs_code(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(3)})
    ran = tmp_path / "ran"
    for name in (".metadata", "__0_0.distcp"):
        file = last_checkpoint(tmp_path) / name
        before = file.read_bytes()
        file.write_bytes(pickle.dumps(_Payload(ran)))
        with pytest.raises(CheckpointError, match="cannot be read as one"):
            load_checkpoint(tmp_path, {})
        file.write_bytes(before)
    assert not ran.exists()
    assert pickle.loads(pickle.dumps(_Payload(ran))) is None  # the payload would have done it
    assert ran.exists()


def test_entries_that_are_not_tensors_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(3)})
    file = last_checkpoint(tmp_path) / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    metadata.state_dict_metadata["code"] = BytesStorageMetadata()
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="entries that are not tensors: code"):
        load_checkpoint(tmp_path, {})
