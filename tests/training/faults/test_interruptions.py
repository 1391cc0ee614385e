"""A training told to end leaves a checkpoint of its last step, from which it ends as an uninterrupted one."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from equipoise.data import Dataset
from equipoise.training import METHODS, Run, StoppedError, World, listening, train
from equipoise.training.faults import interruptions
from equipoise.training.faults.interruptions import StopPoll, TerminatedError
from tests.gloo_end import end_rank

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


def test_before_anybody_looks_sigterm_is_an_error_or_ends_one_process_of_several_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError), listening():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    pid = os.fork()
    if pid == 0:
        os.environ["TORCHELASTIC_RUN_ID"] = "a"
        with listening():
            signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def ask(rank: int) -> dict:
    """Return the steps in which ranks poll each other; a step takes 0.25 s, rank 1 is told to end after step 30."""
    asked, whole, step = [], dist.all_reduce, 0

    def counted(*args: object, **options: object) -> object:
        asked.append(step)
        return whole(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counted)
        patch.setattr(interruptions, "time", SimpleNamespace(monotonic=lambda: step / 4))
        poll = StopPoll(lambda: rank == 1 and step >= 30, World(rank, 2))
        while step < 100:
            step += 1
            if poll.should_stop(step):
                break
    return {"asked": asked, "ended": step}


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=2)
    torch.save(ask(rank), folder / f"{rank}.pt")
    end_rank()


def test_ranks_end_together_once_one_is_told_to_and_seldom_ask(tmp_path: Path) -> None:
    mp.spawn(work, args=(tmp_path,), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one == other == {"asked": [1, 3, 7, 11, 15, 19, 23, 27, 31], "ended": 31}  # once a second
