"""A failure within a step or an evaluation loses that step alone, where a checkpoint can be written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from equipoise import Fork, MultiBalance
from equipoise.data import Dataset
from equipoise.training import METHODS, Learner, Method, NonFiniteError, Run, evaluation, train

SETTINGS = {"epochs": 3, "batch_size": 64, "lr": 1e-2, "evaluations": 4, "evaluation_rows": 100, "monitor_reads": 9}
LAST = 13  # of 30 steps, with evaluations and so checkpoints after steps 8, 15, 23 and 30


def comparable(run: Run) -> dict:
    return json.loads(run.to_json()) | {"seconds": 0, "examples_per_second": 0}


def failing(function: Callable, call: int, *, done: bool = False) -> Callable:
    """Return the function with a MemoryError in one of its calls, before or after its work."""
    calls = []

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(None)
        result = function(*args, **kwargs) if done or len(calls) != call else None
        if len(calls) == call:
            raise MemoryError("no more")
        return result

    return wrapped


def assert_rescued(tiny: Dataset, name: str, folder: Path, patched: pytest.MonkeyPatch, last: int, *where) -> None:
    """Assert that a training is rescued if ``where`` (owner, attribute, replacement) fails."""
    whole = train(tiny, METHODS[name], **SETTINGS)
    with patched.context() as patch:
        patch.setattr(*where)
        with pytest.raises(MemoryError) as caught:
            train(tiny, METHODS[name], **SETTINGS, checkpoint=folder)
    assert caught.value.__notes__ == [f"A checkpoint holds step {last}, the last whole one."]
    assert (folder / f"step-{last}").is_dir()
    found = train(tiny, METHODS[name], **SETTINGS, checkpoint=folder, resume=True)
    assert comparable(found) == comparable(whole)


@pytest.mark.parametrize("name", ["multibalance", "equal", "pub", "pub-adatask", "single-task"])
def test_what_ends_a_forward_pass_leaves_the_step_before(tiny: Dataset, tmp_path, monkeypatch, name: str) -> None:
    where = (Learner, "_share", failing(Learner._share, LAST + 1))
    assert_rescued(tiny, name, tmp_path, monkeypatch, LAST, *where)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(
    ("name", "owner", "step"),
    [("multibalance", MultiBalance, "step_at_once"), ("multibalance-no-magnitude", Fork, "weigh_step")],
)
def test_what_ends_a_backward_pass_does_before_and_behind_the_fork(
    tiny: Dataset, tmp_path, monkeypatch, name: str, owner: type[Fork], step: str, done: bool
) -> None:
    where = (owner, step, failing(getattr(owner, step), LAST + 1, done=done))
    assert_rescued(tiny, name, tmp_path, monkeypatch, LAST, *where)


@pytest.mark.parametrize("name", ["pub", "pub-adatask"])
def test_what_ends_the_passes_of_a_task_optimizer_does(tiny: Dataset, tmp_path, monkeypatch, name: str) -> None:
    where = (Method, "backward", failing(Method.backward, LAST + 1, done=True))
    assert_rescued(tiny, name, tmp_path, monkeypatch, LAST, *where)


@pytest.mark.parametrize("attribute", ["predict", "measure"])
def test_what_ends_an_evaluation_leaves_the_step_and_the_evaluation_is_made_again(
    tiny: Dataset, tmp_path, monkeypatch, attribute: str
) -> None:
    where = (evaluation, attribute, failing(getattr(evaluation, attribute), 2))
    assert_rescued(tiny, "multibalance", tmp_path, monkeypatch, 15, *where)


def test_ctrl_c_between_two_steps_leaves_the_one_before(tiny: Dataset, tmp_path: Path) -> None:
    def pressed(done: int, _: int) -> None:
        if done == LAST:
            raise KeyboardInterrupt

    whole = train(tiny, METHODS["pub"], **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, METHODS["pub"], **SETTINGS, checkpoint=tmp_path, on_step=pressed)
    assert (tmp_path / f"step-{LAST}").is_dir()
    assert comparable(train(tiny, METHODS["pub"], **SETTINGS, checkpoint=tmp_path, resume=True)) == comparable(whole)


@pytest.mark.parametrize("name", ["equal", "single-task"])
def test_once_parameters_move_the_step_cannot_be_taken_back(tiny: Dataset, tmp_path, monkeypatch, name: str) -> None:
    whole = train(tiny, METHODS[name], **SETTINGS)
    calls = (2 if name == "single-task" else 1) * LAST + 1
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", failing(torch.optim.Adam.step, calls))
        with pytest.raises(MemoryError) as caught:
            train(tiny, METHODS[name], **SETTINGS, checkpoint=tmp_path)
    assert not hasattr(caught.value, "__notes__")
    assert [path.name for path in tmp_path.iterdir()] == ["step-8"]
    assert comparable(train(tiny, METHODS[name], **SETTINGS, checkpoint=tmp_path, resume=True)) == comparable(whole)


def test_random_draws_of_a_step_that_was_taken_back_are_drawn_again(tiny: Dataset, tmp_path, monkeypatch) -> None:
    share, drawn = Learner._share, []

    def drawing(learner: Learner, batch: object) -> object:
        drawn.append(torch.rand(()).item())
        return share(learner, batch)

    monkeypatch.setattr(Learner, "_share", drawing)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        train(tiny, METHODS["equal"], **SETTINGS)
        expected = drawn.copy()
        drawn.clear()
        torch.manual_seed(1)
        with monkeypatch.context() as patch:
            patch.setattr(torch.autograd, "backward", failing(torch.autograd.backward, LAST + 1))
            with pytest.raises(MemoryError):
                train(tiny, METHODS["equal"], **SETTINGS, checkpoint=tmp_path)
        del drawn[LAST:]
        torch.manual_seed(2)
        train(tiny, METHODS["equal"], **SETTINGS, checkpoint=tmp_path, resume=True)
    assert drawn == expected


def test_a_training_that_has_lost_its_way_is_not_saved(tiny: Dataset, tmp_path: Path) -> None:
    def pressed(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    settings = SETTINGS | {"lr": 1e30, "monitor_reads": 1}
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tiny, METHODS["equal"], **settings, checkpoint=tmp_path, on_step=pressed)
    (note,) = caught.value.__notes__
    assert note.startswith("No checkpoint of step 2 could be written: The loss or its gradient is not finite, first of")
    assert not tmp_path.exists() or not any(tmp_path.iterdir())
    with pytest.raises(NonFiniteError):
        train(tiny, METHODS["equal"], **settings, checkpoint=tmp_path, stop=iter([False, True]).__next__)


def test_a_disk_without_room_for_it_is_said_beside_what_ended_the_training(tiny: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"

    def pressed(*_: int) -> None:
        shutil.rmtree(folder)
        folder.write_text("where the folder was")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tiny, METHODS["equal"], **SETTINGS, checkpoint=folder, on_step=pressed)
    assert caught.value.__notes__[0].startswith("No checkpoint of step 1 could be written: ")
