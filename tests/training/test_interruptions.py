"""A training told to end leaves a checkpoint of its last step, from which it ends as an uninterrupted one."""

import json
import signal
from pathlib import Path

import pytest

from equipoise.data import Dataset
from equipoise.training import METHODS, Run, StoppedError, listening, train

SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 1e-2, "evaluations": 4, "monitor_reads": 9}


def comparable(run: Run) -> dict:
    return json.loads(run.to_json()) | {"seconds": 0, "examples_per_second": 0}


@pytest.mark.parametrize("name", ["multibalance", "pub", "single-task"])
def test_a_training_stopped_twice_ends_as_an_uninterrupted_one(tiny: Dataset, tmp_path: Path, name: str) -> None:
    whole = train(tiny, METHODS[name], **SETTINGS)
    steps = []

    def stop() -> bool:
        steps.append(None)
        return len(steps) in (5, 13)

    for resume, last in ((False, 5), (True, 13)):
        with pytest.raises(StoppedError, match=f"after step {last}, which a checkpoint holds"):
            train(tiny, METHODS[name], **SETTINGS, checkpoint=tmp_path, resume=resume, stop=stop)
    found = train(tiny, METHODS[name], **SETTINGS, checkpoint=tmp_path, resume=True, stop=stop)
    assert comparable(found) == comparable(whole)
    assert len(steps) == whole.steps


def test_without_a_checkpoint_it_says_that_nothing_is_kept(tiny: Dataset) -> None:
    with pytest.raises(StoppedError, match=r"^Stopped after step 1\.$"):
        train(tiny, METHODS["equal"], **SETTINGS, stop=lambda: True)


def test_sigterm_is_a_request_within_the_block_and_what_it_was_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening() as request:
        assert not request()
        signal.raise_signal(signal.SIGTERM)
        assert request()
    assert signal.getsignal(signal.SIGTERM) is before
