"""A checkpoint that holds values of wrong kinds is loaded as it says or refused in one message, and changes nothing.

Every part of real checkpoints is changed in many ways, with their checksums made anew.
"""

import copy
import json
import random
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from equipoise.data import Dataset
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, CheckpointError, Learner, Run, World, train
from equipoise.training.checkpoint import last_checkpoint, load_checkpoint
from equipoise.training.checkpoint.saving import Checkpoints
from equipoise.training.early_stopping import EarlyStopping
from equipoise.training.faults.non_finite import NonFiniteLosses
from equipoise.training.record import TrainingRecord, Window

SETTINGS = {"epochs": 1, "batch_size": 64, "lr": 1e-2, "evaluations": 2, "monitor_reads": 3}
STEPS = 10  # of 700 rows
VALUES = ["a word", "", -1, 0, 7, 10**30, -0.5, 1e300, float("nan"), True, None, [], [1], {}, {"a": 1, "b": 2}]
RECIPES: dict[str, dict[str, Any]] = {
    "multibalance": {"ema": 0.9, "stop_on": "ne", "table_optimizer": "rowwise-adagrad"},
    "pub-adatask": {},
    "single-task": {"stop_on": "auc", "warmup": 0.3, "optimizer": "sgd", "optimizer_options": {"momentum": 0.9}},
    "famo": {},
}


def content_of(path: Path) -> dict[str, Any]:
    return json.loads(json.loads((path / "state.json").read_text())["content"])


def write_content(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content)
    (path / "state.json").write_text(json.dumps({"crc": zlib.crc32(text.encode()), "content": text}))


def containers(node: Any) -> Iterator[dict | list]:
    if isinstance(node, dict | list):
        yield node
        for entry in node.values() if isinstance(node, dict) else node:
            yield from containers(entry)


def changed(content: dict[str, Any], draw: random.Random) -> tuple[dict[str, Any], str]:
    """A copy with one entry replaced, removed, doubled or exchanged with another one, and what was done."""
    found = copy.deepcopy(content)
    every = [entry for entry in containers(found["state"]) if entry]
    place = draw.choice(every)
    key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
    how = draw.choice(["replace", "replace", "replace", "remove", "double", "exchange"])
    before = json.dumps(place[key])[:60]
    if how == "replace":
        place[key] = copy.deepcopy(draw.choice(VALUES))
    elif how == "remove":
        del place[key]
    elif how == "double":
        place.update({f"{key} again": place[key]}) if isinstance(place, dict) else place.append(place[key])
    else:
        other = draw.choice(every)
        place[key] = copy.deepcopy(other[draw.choice(list(other))] if isinstance(other, dict) else draw.choice(other))
    after = json.dumps(place[key])[:60] if how in {"replace", "exchange"} else ""
    return found, f"{how} {key}: {before} -> {after}"


class Resumed:
    """A fresh training that resumes from a folder."""

    def __init__(self, dataset: Dataset, name: str, identity: dict[str, str]) -> None:
        tasks = dataset.schema.task_names
        settings = TrainingSettings.of(**SETTINGS | RECIPES[name])
        self.dataset, self.identity = dataset, identity
        self.learner = Learner(dataset.schema, METHODS[name], settings, total_steps=STEPS)
        self.record = TrainingRecord(
            Run(METHODS[name].name, settings.seed, settings.lr), NonFiniteLosses(World(), tasks),
            Window(World(), len(tasks)), "raise", EarlyStopping.of(settings, dataset.schema),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        window = self.record.window.state_dict() | {"seconds": 0.0}
        stopping = self.record.stopping
        return {
            "stopping": {} if stopping is None else stopping.state_dict(),
            "learner": self.learner.state_dict(), "run": asdict(self.record.run),
            "non_finite": self.record.non_finite.state_dict(), "window": window, "rng": [[torch.get_rng_state()]],
        }  # fmt: skip

    def begin(self, folder: Path) -> None:
        Checkpoints(folder, self.identity, self.learner).begin(self.record, resume=True)


def alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and torch.equal(found, expected) and found.dtype == expected.dtype
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(alike(*pair) for pair in zip(found, expected, strict=True))
    if isinstance(found, float) and type(expected) is int:  # a whole number in the place of a float
        return found == float(expected)
    return found == expected or repr(found) == repr(expected) == "nan"


@pytest.fixture(scope="module", params=RECIPES)
def saved(request: pytest.FixtureRequest, tiny: Dataset, tmp_path_factory) -> tuple[str, Path]:
    """The name of a method, and the folder of its last checkpoint but one, between two evaluations."""
    folder = tmp_path_factory.mktemp("saved")
    train(tiny, METHODS[request.param], **SETTINGS | RECIPES[request.param], checkpoint=folder, checkpoint_every=7)
    shutil.rmtree(folder / f"step-{STEPS}")
    return request.param, folder


def test_a_changed_checkpoint_is_loaded_as_it_says_or_refused_in_one_message(
    tiny: Dataset, saved: tuple[str, Path], tmp_path: Path
) -> None:
    name, source = saved
    folder = tmp_path / "changed"
    shutil.copytree(source, folder)
    path = last_checkpoint(folder)
    original = content_of(path)
    draw, refused = random.Random(name), 0
    for _ in range(80):
        content, what = changed(original, draw)
        write_content(path, content)
        with torch.random.fork_rng():
            resumed = Resumed(tiny, name, original["settings"])
            before = copy.deepcopy(resumed.state())
            try:
                resumed.begin(folder)
            except CheckpointError as error:
                refused += 1
                message = str(error)
                assert str(path) in message, what
                assert "begin anew without resume" in message, what
                assert len(message) < 600, what
                assert "\n" not in message, what
                assert alike(resumed.state(), before), what
            else:
                expected = load_checkpoint(folder, original["settings"])
                expected["window"]["seconds"] = 0.0
                del expected["rng"][1:]  # those of an accelerator
                assert alike(resumed.state(), expected), what
                for batch in list(tiny.train.batches(64))[:2]:  # it goes on
                    resumed.learner.step(batch)
    assert refused > 40
