"""Calls are replayed from a recording, unless anything on which they depend has changed.

Recordings are CUDA graphs; here one calls the function as it was when it was recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from equipoise import PUB, replaying
from equipoise.optim.pub import _solved
from equipoise.replaying import recording_of, replayed
from tests.made_up_device import DeviceTensor, the_device


class Owner:
    """Something whose calls are replayed."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Record on a CPU; return which functions were recorded."""
    found: list[object] = []

    def recorded(
        _: object, function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], reads: list[Tensor]
    ) -> replaying._Recording:
        found.append(function)
        own = [torch.full_like(tensor, torch.nan) for tensor in inputs]
        outputs = tuple(torch.full_like(output, torch.nan) for output in function(*inputs))

        def replay() -> None:
            for place, value in zip(outputs, function(*own), strict=True):
                place.copy_(value)

        return replaying._Recording(replay, own, outputs, reads, list(reads))

    monkeypatch.setattr(replaying, "_recorded", recorded)
    monkeypatch.setattr(replaying, "recordable", lambda *_: True)
    return found


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_from_the_third_call_on_a_recording_is_replayed_with_the_new_numbers(made):
    owner, calls = Owner(), []

    def double(x: Tensor) -> tuple[Tensor]:
        calls.append(x)
        return (2 * x,)

    for place in range(5):
        (found,) = replayed(owner, double, [numbers(place)])
        assert found.equal(numbers(2 * place))
        assert len(made) == (place >= 2)
    # Two calls as written, and those of the recording: one as it was made, and one for each replay.
    assert calls[1].equal(numbers(1))
    assert len(calls) == 2 + 1 + 3


def test_what_is_returned_is_not_overwritten_by_the_next_replay(made):
    owner = Owner()
    found = [replayed(owner, lambda x: (x + 1,), [numbers(place)])[0] for place in range(4)]
    assert torch.cat(found).tolist() == [1, 2, 3, 4]
    assert len(made) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"options": {"a": 2}},
        {"inputs": [torch.ones(3)]},
        {"inputs": [torch.ones(2, dtype=torch.float64)]},
        {"reads": [torch.ones(1)]},
    ],
)
def test_after_a_change_twice_as_many_calls_run_as_written(made, changed):
    owner = Owner()
    usual = {"inputs": [torch.ones(2)], "options": {"a": 1}, "reads": [torch.zeros(1)]}

    def call(arguments: dict[str, object], factor: float) -> Tensor:
        given = dict(arguments)
        inputs = given.pop("inputs")
        return replayed(owner, lambda x: (factor * x,), inputs, **given)[0]

    for _ in range(4):
        call(usual, 1.0)
    assert len(made) == 1
    for place in range(6):
        assert call(usual | changed, 5.0).unique().tolist() == [5.0]
        assert len(made) == 1 + (place >= 4)
    for place in range(10):
        assert call(usual, 7.0).unique().tolist() == [7.0]
        assert len(made) == 2 + (place >= 8)


def test_what_changes_in_each_call_is_neither_watched_nor_recorded(made, monkeypatch):
    monkeypatch.setattr(replaying, "_Watch", lambda: pytest.fail("a watch takes time"))
    owner = Owner()
    for place in range(6):
        assert replayed(owner, lambda x, factor=place: (factor * x,), [torch.ones(1)], options=place)[0] == place
    assert not made


def test_each_owner_and_each_key_has_a_recording_of_its_own(made):
    owners = Owner(), Owner()
    for _ in range(4):
        for owner in owners:
            for key in (2, 3):
                factor = key + 10 * owners.index(owner)
                found = replayed(owner, lambda x, factor=factor: (factor * x,), [torch.ones(key)], key=key)
                assert found[0].tolist() == [factor] * key
    assert len(made) == 4
    assert recording_of(owners[0], 2) is not recording_of(owners[1], 2)
    assert recording_of(owners[0]) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * x.sum().item(),),
        lambda x: (x[x > 0],),
        lambda x: (torch.linalg.cholesky(x.diag_embed()),),
        lambda x: (torch.zeros(3).index_put((x > 0,), x),),
        lambda x: (x.to("meta"),),
        lambda x: (torch.empty(3, device="meta").copy_(x),),
    ],
    ids=["a value", "a size", "an error code", "a mask", "a copy", "a copy into a place"],
)
def test_a_function_for_which_the_host_waits_is_not_recorded(function, made):
    owner = Owner()
    for _ in range(4):
        found = replayed(owner, function, [numbers(1.0, 2.0, 3.0)])[0]
        assert found.shape == function(numbers(1.0, 2.0, 3.0))[0].shape
    assert not made
    assert recording_of(owner) is None


class Graph:
    """Stands for a CUDA graph: notes the beginning and the end of a recording, and replays nothing."""

    def __init__(self, error: str | None = None) -> None:
        self.done: list[str] = []
        self.error = error

    def capture_begin(self, *, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.done.append("begin")

    def capture_end(self) -> None:
        self.done.append("end")
        if self.error is not None:
            raise RuntimeError(self.error)

    def replay(self) -> None:
        self.done.append("replay")


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    """Let recordings be made by a graph that is made up."""
    made_up = Graph()
    monkeypatch.setattr(replaying, "recordable", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made_up)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    return made_up


def test_a_replay_counts_as_a_change_of_what_it_writes(graph):
    owner, state, other = Owner(), numbers(0.0), numbers(2.0)
    with torch.inference_mode():
        unseen = numbers(1.0)  # has no version

    def count(x: Tensor) -> tuple[Tensor]:
        return (state.add_(x * other * unseen).clone(),)

    for call in range(4):
        before = state._version
        replayed(owner, count, [numbers(1.0)], reads=[state, other, unseen])
        assert state._version > before
        assert other._version == 0
        assert unseen.is_inference()
        assert graph.done == ["begin", "end", "replay", "replay"][: 0 if call < 2 else 1 + call]


def test_a_recording_ends_where_the_function_fails(graph):
    owner = Owner()

    def fails_later(x: Tensor) -> tuple[Tensor]:
        if graph.done:
            raise torch.OutOfMemoryError("too little is free")
        return (x,)

    for _ in range(2):
        replayed(owner, fails_later, [numbers(1.0)])
    with pytest.warns(UserWarning, match="too little is free"), pytest.raises(torch.OutOfMemoryError):
        replayed(owner, fails_later, [numbers(1.0)])  # as written it fails, too
    assert graph.done == ["begin", "end"]


def test_without_memory_for_a_recording_it_warns_once_and_runs_as_written(made, monkeypatch):
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("too little is free")

    monkeypatch.setattr(replaying, "_recorded", fails)
    owner = Owner()
    for _ in range(2):
        replayed(owner, lambda x: (x,), [torch.ones(1)])
    with pytest.warns(UserWarning, match=r"Owner could not record its step .*\(too little is free\)"):
        assert replayed(owner, lambda x: (x + 1,), [torch.ones(1)])[0] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replayed(owner, lambda x: (x + 2,), [torch.ones(1)])[0] == 3
    assert not made


def test_a_recording_that_broke_is_an_error(graph):
    owner, graph.error = Owner(), "previous error during capture"
    for _ in range(2):
        replayed(owner, lambda x: (x,), [numbers(1.0)])
    with pytest.raises(RuntimeError, match=r"Owner could not record its step.*`replayable = False`.*start again"):
        replayed(owner, lambda x: (x,), [numbers(1.0)])
    assert replayed(owner, lambda x: (x + 1,), [numbers(1.0)])[0] == 2
    assert graph.done == ["begin", "end"]


def test_only_plain_tensors_on_a_device_are_recorded_and_none_in_a_graph_of_the_caller(monkeypatch):
    assert not replaying.recordable(torch.ones(1))
    monkeypatch.setattr(replaying, "_on_cuda", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert replaying.recordable(torch.ones(1), torch.ones(1))
    assert not replaying.recordable(torch.ones(1), torch.nn.Parameter(torch.ones(1)))

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x: Tensor) -> Tensor:
        return x + replaying.recordable(x)

    assert compiled(torch.ones(1)) == 1
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not replaying.recordable(torch.ones(1))


@pytest.mark.parametrize("options", [{}, {"task_weights": [1.0, 2.0, 3.0]}, {"form": "authors"}, {"solve_on": "all"}])
def test_pub_solves_the_same_by_replays(made, options):
    def trained() -> list[Tensor]:
        torch.manual_seed(0)
        bottom, towers = torch.nn.Linear(5, 4), [torch.nn.Linear(4, 1) for _ in range(3)]
        parameters = [p for module in (bottom, *towers) for p in module.parameters()]
        adam = torch.optim.Adam(parameters, lr=0.1)
        optimizer = PUB(adam, shared=bottom.parameters(), tasks=["a", "b", "c"], update_every=1, **options)
        found = []
        for step in range(12):
            z = bottom(torch.randn(8, 5))
            losses = {name: tower(z).square().mean() for name, tower in zip("abc", towers, strict=True)}
            if step in {4, 6, 7, 9}:
                del losses["abc"[step % 3]]
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()
            found += [optimizer.last_weights.clone(), bottom.weight.detach().clone()]
        return found

    found = trained()
    assert len(made) == 2  # with all three tasks, and with two
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replaying, "recordable", lambda *_: False)
        assert all(map(torch.equal, found, trained()))


def test_a_task_without_an_update_keeps_its_weight():
    before = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)
    (found,) = _solved("mean 1", torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64)), before)
    assert found[1] == 0.7
    assert found[0] < found[2]


@pytest.mark.parametrize("scale", ["mean 1", "root norm", "solution"])
@pytest.mark.parametrize("preferring", [False, True])
def test_no_operation_of_what_pub_solves_keeps_it_from_being_recorded(scale, preferring):
    gram = torch.tensor([[4.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 3.0]], dtype=torch.float64)
    numbers = [gram, *[torch.ones(3, dtype=torch.float64)] * (1 + preferring)]
    with the_device(), torch.no_grad(), replaying._Watch() as watch:
        _solved(scale, *map(DeviceTensor, numbers))
    assert not watch.waited


def test_a_function_that_is_watched_may_compile():
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    function = torch.compile(lambda x: x + 1, backend=backend)
    with replaying._Watch() as watch:
        found = function(numbers(1.0))
    assert found == 2
    assert compiled
    assert not watch.waited
