"""A checkpoint is complete or missing, restores what was saved, and runs no code."""

import json
import pickle
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.training import CheckpointError
from equipoise.training.checkpoint.folder import last_checkpoint, load_checkpoint, save_checkpoint
from equipoise.training.checkpoint.plain_state import decode, encode
from equipoise.training.checkpoint.tensor_files import _size_and_checksum

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

    monkeypatch.setattr("equipoise.training.checkpoint.folder.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {}, {"weights": torch.zeros(2)})
    assert torch.equal(load_checkpoint(tmp_path, {})["weights"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


FULL = """
import resource, signal, sys
import torch
from pathlib import Path
from equipoise.training.checkpoint.folder import load_checkpoint, save_checkpoint

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
    # torchmetrics 1.0.3, the lowest version and TorchRec's pin, warns of distutils.
    known = ["-W", "ignore:distutils Version classes are deprecated:DeprecationWarning"]
    command = [sys.executable, "-W", "error", *known, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"Could not write the checkpoint of step 2 \(\[Errno 27\] File too large\); .* has [\d,]+ MB free\n",
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


@pytest.mark.parametrize("damaged", ["state.json", "index.json", "__0_0.distcp"])
@pytest.mark.parametrize("how", ["cut", "gone", "scrambled", "one bit"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, damaged: str, how: str) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(100)})
    save_checkpoint(tmp_path, 2, {}, {"weights": torch.ones(100), "step": 1.25})
    file = last_checkpoint(tmp_path) / damaged
    content = file.read_bytes()
    place = content.index(b"1.25") if damaged == "state.json" else len(content) // 2
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    changed = {"cut": content[: len(content) // 2], "scrambled": bytes(reversed(content)), "one bit": flipped}
    file.unlink()
    if how != "gone":
        file.write_bytes(changed[how])
    with pytest.raises(CheckpointError, match="it cannot be read") as caught:
        load_checkpoint(tmp_path, {})
    assert "\n" not in str(caught.value)
    assert "move it away to resume from step-1" in str(caught.value)
    assert len(str(caught.value)) < 400


def signed(folder: Path, **changes: object) -> None:
    """Recompute the checksums of a checkpoint whose files were changed on purpose."""
    state = folder / "state.json"
    content = json.loads(json.loads(state.read_text())["content"]) | changes
    content["files"] = {name: _size_and_checksum(folder / name) for name in content["files"]}
    text = json.dumps(content)
    state.write_text(json.dumps({"crc": zlib.crc32(text.encode()), "content": text}))


class _Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "index.json", "state.json"])
def test_no_file_of_a_checkpoint_runs_code(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(3)})
    ran = tmp_path / "ran"
    file = last_checkpoint(tmp_path) / name
    file.write_bytes(pickle.dumps(_Payload(ran)))
    if name == ".metadata":  # DCP's own index, which nobody reads
        signed(file.parent)
        assert torch.equal(load_checkpoint(tmp_path, {})["weights"], torch.ones(3))
    else:
        if name != "state.json":
            signed(file.parent)
        with pytest.raises(CheckpointError, match="it cannot be read"):
            load_checkpoint(tmp_path, {})
    assert not ran.exists()
    assert pickle.loads(pickle.dumps(_Payload(ran))) is None  # the payload would have done it
    assert ran.exists()


def test_the_tensors_themselves_are_loaded_without_code(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(300)})
    ran, file = tmp_path / "ran", last_checkpoint(tmp_path) / "__0_0.distcp"
    before = file.read_bytes()
    torch.save(_Payload(ran), file)
    file.write_bytes(file.read_bytes().ljust(len(before), b"\0"))
    signed(file.parent)
    with pytest.raises(CheckpointError, match="it cannot be read"):
        load_checkpoint(tmp_path, {})
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.__setitem__(2, "../elsewhere.distcp"), "names a file elsewhere, '../elsewhere.distcp'"),
        (lambda part: part.__setitem__(2, "/etc/passwd"), "names a file elsewhere"),
        (lambda part: part.__setitem__(1, [2**40]), "more numbers than __0_0.distcp has room for"),
        (lambda part: part.__setitem__(1, [2]), "parts of '/weights' that do not make it up"),
        (lambda part: part.pop(), "it cannot be read"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, change, message: str) -> None:
    save_checkpoint(tmp_path, 1, {}, {"weights": torch.ones(3)})
    file = last_checkpoint(tmp_path) / "index.json"
    index = json.loads(file.read_text())
    change(index["/weights"]["parts"][0])
    file.write_text(json.dumps(index))
    signed(file.parent)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_checkpoint(tmp_path, {})


def test_another_format_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {}, {})
    signed(last_checkpoint(tmp_path), format=99)
    with pytest.raises(CheckpointError, match="format 99, expected 2"):
        load_checkpoint(tmp_path, {})


def test_what_a_killed_save_has_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".step-3.part").mkdir(parents=True)
    (tmp_path / ".step-3.part" / "old").write_text("")
    save_checkpoint(tmp_path, 7, {}, {"weights": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-7"]
