"""Two gloo ranks with half the batch each train as one process with the whole batch."""

import copy
import datetime
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from equipoise import paused
from equipoise.forks import Fork
from equipoise.forks import fork as fork_module
from equipoise.forks.multibalance import MultiBalance
from equipoise.methods.at_fork import AT_FORK
from tests.gloo_end import end_rank

RANKS = 2
MANY = 100  # steps
MODES = [("equal", "cosine"), ("own", "gram")]
OTHERS = [method for method in AT_FORK if method.fork is not MultiBalance and method.name != "graddrop"]


class Ranker(nn.Module):
    """Three tasks; returns the tasks' scores. The seed is the rank's own, DDP makes the parameters equal."""

    def __init__(self, *, seed: int = 0, **options):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.bottom = nn.Linear(6, 8)
            self.towers = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
        self.fork = MultiBalance(3, **({"beta": 0.1, "gamma": 0.1} | options))

    def forward(self, x: Tensor) -> list[Tensor]:
        branches = self.fork(torch.tanh(self.bottom(x)))
        return [tower(branch).squeeze(1) for tower, branch in zip(self.towers, branches, strict=True)]


def batches(steps: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs [16, 6] and labels [16, 3]."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randn(16, 6, generator=generator), torch.randn(16, 3, generator=generator)


def losses(scores: list[Tensor], labels: Tensor) -> list[Tensor]:
    """Return each task's summed loss of labelled rows (others are NaN) over the batch size; none without labels."""
    found = []
    for m, score in enumerate(scores):
        labelled = ~labels[:, m].isnan()
        if labelled.any():
            error = torch.where(labelled, score - labels[:, m].nan_to_num(), 0.0)
            found.append(100.0**m * error.square().sum() / len(error))
    return found


def train(
    model: nn.Module, *, rank: int | None = None, reduce=None, spoil=None, lr=1e-5, steps: int = 4
) -> list[Tensor]:
    """Train on the rank's share of each batch (all of it if None) and return the weights of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    fork = next(module for module in model.modules() if isinstance(module, Fork))
    weights = []
    for step, (inputs, labels) in enumerate(batches(steps)):
        if spoil is not None:
            spoil(step, labels)
        share = slice(None) if rank is None else slice(8 * rank, 8 * rank + 8)
        optimizer.zero_grad()
        sum(losses(model(inputs[share]), labels[share])).backward()
        if reduce is not None:
            reduce(model)
        optimizer.step()
        weights.append(fork.last_weights.clone())
    return weights


def no_labels_on_the_last_rank(step: int, labels: Tensor) -> None:
    if step % 2 == 1:
        labels[8:, 1] = torch.nan


def overflow_on_the_last_rank(step: int, labels: Tensor) -> None:
    if step == 1:
        labels[12, 2] = torch.inf


def average_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= RANKS


def record(model: nn.Module, weights: list[Tensor]) -> dict:
    return {
        "weights": torch.stack(weights),
        "parameters": {name: value.detach() for name, value in model.named_parameters()},
        "buffers": dict(model.named_buffers()) | {"fork.last_present": model.fork.last_present},
    }


def ddp_of_mode(rank: int, magnitude: str, direction: str) -> dict:
    model = Ranker(seed=rank, magnitude=magnitude, direction=direction)
    return record(model, train(DistributedDataParallel(model), rank=rank))


def ddp_without_labels_on_one_rank(rank: int) -> dict:
    model = Ranker(seed=rank)
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    return record(model, train(parallel, rank=rank, spoil=no_labels_on_the_last_rank))


def ddp_with_an_overflow_on_one_rank(rank: int) -> dict:
    model = Ranker(seed=rank)
    return record(model, train(DistributedDataParallel(model), rank=rank, spoil=overflow_on_the_last_rank, lr=0.0))


def with_fork_of(name: str) -> Ranker:
    """Build a ranker with another method's fork; the tasks' losses are of one size."""
    (method,) = (method for method in OTHERS if method.name == name)
    model = Ranker()
    model.fork = method.fork_factory(list("abc"))()
    with torch.no_grad():
        for m, tower in enumerate(model.towers):
            tower.weight /= 100.0**m  # the losses are scaled by that
    return model


def of_other_methods(rank: int) -> dict[str, Tensor]:
    share = partial(train, rank=rank, reduce=average_gradients)
    return {method.name: torch.stack(share(with_fork_of(method.name))) for method in OTHERS}


def without_ddp(rank: int) -> dict:
    model = Ranker()
    return record(model, train(model, rank=rank, reduce=average_gradients))


def overlapped(rank: int) -> dict:
    """Save and load between two steps, too: the matrix under way must have arrived.

    Makes many steps, because DDP broadcasts buffers before each, while the matrix is still under way.
    """
    model = Ranker(seed=rank, overlap=True)
    weights = train(DistributedDataParallel(model), rank=rank, steps=MANY)
    saved = copy.deepcopy(model.state_dict())
    twin = Ranker(overlap=True)
    twin.load_state_dict(saved)
    return record(model, weights) | {"arriving": saved["fork.arriving"], "twin": twin.fork.arriving.clone()}


def compiled_overlap(rank: int) -> dict:
    model = Ranker(overlap=True)
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    return record(model, train(call, rank=rank, reduce=average_gradients))


def measured_seldom(rank: int) -> dict:
    """Train with a fork that measures in one step of three; rank 0 alone loads an earlier run's state."""
    before = Ranker(gram_every=3)
    train(before, rank=rank, reduce=average_gradients, steps=5)
    model = Ranker(seed=rank, gram_every=3)
    if rank == 0:
        model.load_state_dict(before.state_dict())
    return record(model, train(DistributedDataParallel(model), rank=rank, steps=12))


def sent(rank: int) -> dict[str, list[int]]:
    """Return the number of elements of each all-reduce in three steps, by both of PyTorch's calls for it."""
    found = {}
    for name, options in {"plain": {}, "overlap": {"overlap": True}, "every third": {"gram_every": 3}}.items():
        sizes = found[name] = []

        def counted(tensor: Tensor, *args, whole, sizes=sizes, **options):
            sizes.append(tensor.numel())
            return whole(tensor, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            for module in (dist, fork_module):
                patch.setattr(module, "all_reduce", partial(counted, whole=module.all_reduce))
            model = Ranker(**options)
            for inputs, labels in batches(3):
                sum(losses(model(inputs[8 * rank : 8 * rank + 8]), labels[8 * rank : 8 * rank + 8])).backward()
    return found


def under_way(rank: int) -> dict:
    """Return whether backward waits with overlap, and the arriving matrix as copies, moves and state dicts see it."""

    def stepped() -> Ranker:
        model = Ranker(overlap=True)
        for inputs, labels in batches(1):
            sum(losses(model(inputs[8 * rank : 8 * rank + 8]), labels[8 * rank : 8 * rank + 8])).backward()
        return model

    model = stepped()
    waited = model.fork._under_way is None
    found = {"waited": waited, "copied": copy.deepcopy(model).fork.arriving}
    found["saved"] = stepped().state_dict()["fork.arriving"].clone()
    found["moved"] = stepped().to(torch.float64).fork.arriving
    fresh = stepped()
    fresh.fork.reset_parameters()
    found["reset"] = fresh.fork.arriving.clone()
    loaded = stepped()
    loaded.load_state_dict(Ranker(overlap=True).state_dict())
    found["loaded"] = loaded.fork.arriving.clone()
    return found


def groups_used(rank: int) -> dict:
    """Return the process groups of the all-reduces of two forks, by the group they were given."""
    found = {}
    for name, process_group in (("none", None), ("the default", dist.group.WORLD)):
        groups = found[name] = []

        def noted(tensor: Tensor, op: str, group: dist.ProcessGroup, *, whole, groups=groups):
            groups.append(group)
            return whole(tensor, op, group)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fork_module, "all_reduce", partial(noted, whole=fork_module.all_reduce))
            for _ in range(2):
                model = Ranker(process_group=process_group)
                for inputs, labels in batches(2):
                    sum(losses(model(inputs[8 * rank : 8 * rank + 8]), labels[8 * rank : 8 * rank + 8])).backward()
    own = set(found["none"])
    return {
        "own": len(own),
        "apart": dist.group.WORLD not in own,
        "timeouts": [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in own],
        "of all ranks": [dist.get_world_size(group) for group in own],
        "the default": set(found["the default"]) == {dist.group.WORLD},
    }


def captured(rank: int) -> dict:
    """Return a fork's messages while a CUDA graph is captured, with and without overlap."""
    found = {}
    for overlap in (False, True):
        model = Ranker(overlap=overlap)
        ((inputs, labels),) = batches(1)
        loss = sum(losses(model(inputs[8 * rank : 8 * rank + 8]), labels[8 * rank : 8 * rank + 8]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            try:
                loss.backward()
                found[overlap] = None
            except RuntimeError as error:
                found[overlap] = str(error)
    return found


def paused_on_one_rank(rank: int) -> dict:
    """Train, with one rank alone looking at its tasks' gradients before every step."""
    model = Ranker()

    def look(*_: object) -> None:
        if rank == 0:
            with paused(model):
                for loss in losses(model(torch.ones(8, 6)), torch.ones(8, 3)):
                    torch.autograd.grad(loss, model.bottom.weight, retain_graph=True)

    return record(model, train(model, rank=rank, reduce=average_gradients, spoil=look))


def groups_of_one(rank: int) -> dict:
    groups = [dist.new_group([other]) for other in range(RANKS)]
    model = copy.deepcopy(Ranker(process_group=groups[rank]))  # the group itself is not copied
    assert model.fork.process_group is groups[rank]
    return record(model, train(model, rank=rank))


def compiled(rank: int) -> dict:
    model = Ranker()
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    return record(model, train(call, rank=rank, reduce=average_gradients))


class Stacked(Ranker):
    """The same with stacked copies."""

    def forward(self, x: Tensor) -> list[Tensor]:
        branches = self.fork.stacked(torch.tanh(self.bottom(x)))
        return [tower(branch).squeeze(1) for tower, branch in zip(self.towers, branches, strict=True)]


def stacked(rank: int) -> dict:
    model = Stacked()
    return record(model, train(model, rank=rank, reduce=average_gradients))


def start(rank: int, rendezvous: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=rendezvous.as_uri(),
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=120),
    )


def work(rank: int, folder: Path) -> None:
    start(rank, folder / "rendezvous")
    results = {
        "modes": {mode: ddp_of_mode(rank, *mode) for mode in MODES},
        "labels on one rank": ddp_without_labels_on_one_rank(rank),
        "overflow on one rank": ddp_with_an_overflow_on_one_rank(rank),
        "without DDP": without_ddp(rank),
        "overlapped": overlapped(rank),
        "measured seldom": measured_seldom(rank),
        "groups of one": groups_of_one(rank),
        "compiled": compiled(rank),
        "compiled overlap": compiled_overlap(rank),
        "stacked": stacked(rank),
        "sent": sent(rank),
        "under way": under_way(rank),
        "groups": groups_used(rank),
        "captured": captured(rank),
        "paused on one rank": paused_on_one_rank(rank),
        "other methods": of_other_methods(rank),
    }
    dist.barrier()
    dist.destroy_process_group()
    start(rank, folder / "second rendezvous")
    results["after a second start"] = without_ddp(rank)
    torch.save(results, folder / f"rank{rank}.pt")
    end_rank()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """Return the record of each rank; all scenarios share one pair of processes, which are slow to start."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, args=(folder,), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


def assert_as_one_process(found: list[dict], expected: dict) -> None:
    for result in found:
        torch.testing.assert_close(result["weights"], expected["weights"], rtol=1e-5, atol=1e-5)
        for name, value in expected["parameters"].items():
            torch.testing.assert_close(result["parameters"][name], value, rtol=1e-5, atol=1e-6)
        for name, value in expected["buffers"].items():
            torch.testing.assert_close(result["buffers"][name], value, rtol=1e-5, atol=1e-5)
    assert_same_on_all_ranks(found)


def assert_same_on_all_ranks(found: list[dict]) -> None:
    first, *others = found
    for other in others:
        assert torch.equal(first["weights"], other["weights"])
        for part in ("parameters", "buffers"):
            for name, value in first[part].items():
                assert torch.equal(value, other[part][name]), name


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_under_ddp_train_as_one_process_does(ranks, mode):
    model = Ranker(magnitude=mode[0], direction=mode[1])
    expected = record(model, train(model))
    assert_as_one_process([result["modes"][mode] for result in ranks], expected)
    assert (expected["weights"] - 1).abs().max() > 0.1


def test_a_task_with_labels_on_one_rank_only_is_present_on_all(ranks):
    model = Ranker()
    expected = record(model, train(model, spoil=no_labels_on_the_last_rank))
    assert_as_one_process([result["labels on one rank"] for result in ranks], expected)
    assert expected["buffers"]["fork.last_present"].all()


def test_an_overflow_on_one_rank_makes_the_task_absent_on_all(ranks):
    model = Ranker()
    expected = record(model, train(model, spoil=overflow_on_the_last_rank, lr=0.0))
    found = [result["overflow on one rank"] for result in ranks]
    assert expected["weights"][1, 2] == 1.0
    for result in found:
        torch.testing.assert_close(result["weights"], expected["weights"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            result["buffers"]["fork.averages"], expected["buffers"]["fork.averages"], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(result["buffers"]["fork.balance"], found[0]["buffers"]["fork.balance"])


@pytest.mark.parametrize("name", [method.name for method in OTHERS])
def test_every_method_at_the_fork_weighs_as_in_one_process(ranks, name):
    expected = torch.stack(train(with_fork_of(name)))
    first, second = (result["other methods"][name] for result in ranks)
    assert torch.equal(first, second)
    # CAGrad divides by the length of a combination that nearly vanishes in one of the steps.
    torch.testing.assert_close(first, expected, rtol=0.05 if name == "cagrad" else 1e-3, atol=1e-4)


@pytest.mark.parametrize("scenario", ["without DDP", "stacked"])
def test_a_fork_needs_no_ddp(ranks, scenario):
    model = Ranker()
    expected = record(model, train(model))
    assert_as_one_process([result[scenario] for result in ranks], expected)


@pytest.mark.parametrize("scenario", ["paused on one rank", "after a second start"])
def test_ranks_agree_with_one_process(ranks, scenario):
    model = Ranker()
    expected = record(model, train(model))
    for result in (found[scenario] for found in ranks):
        torch.testing.assert_close(result["weights"], expected["weights"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result["parameters"], expected["parameters"], rtol=1e-5, atol=1e-6)


def test_forks_share_a_process_group_of_their_own_unless_they_are_given_one(ranks):
    for result in ranks:
        assert result["groups"] == {
            "own": 1,
            "apart": True,
            "timeouts": [120.0],
            "of all ranks": [RANKS],
            "the default": True,
        }


def test_a_fork_with_overlap_refuses_to_be_captured(ranks):
    for result in ranks:
        assert result["captured"][False] is None
        assert "cannot be captured in a CUDA graph with several ranks" in result["captured"][True]


def test_torch_compile_sums_over_the_ranks_too(ranks):
    model = Ranker()
    expected = record(model, train(model))
    assert_as_one_process([result["compiled"] for result in ranks], expected)


def test_an_overlapped_fork_weighs_by_the_step_before_on_all_ranks(ranks):
    model = Ranker(overlap=True)
    weights = train(model, steps=MANY)
    found = [result["overlapped"] for result in ranks]
    assert_as_one_process(found, record(model, weights))
    assert_same_on_all_ranks(found)
    for result in found:
        assert torch.equal(result["weights"][0], torch.ones(3))
        assert not torch.equal(result["weights"][1], torch.ones(3))
        torch.testing.assert_close(result["arriving"], model.fork.arriving, rtol=1e-5, atol=1e-5)
        assert torch.equal(result["arriving"], result["twin"])


def test_compiled_overlap_weighs_by_the_step_before_too(ranks):
    model = Ranker(overlap=True)
    expected = record(model, train(model))
    assert_as_one_process([result["compiled overlap"] for result in ranks], expected)


def test_a_fork_sends_m_squared_numbers_once_per_backward_pass_that_measures(ranks):
    for result in ranks:
        assert result["sent"] == {"plain": [9, 9, 9], "overlap": [9, 9, 9], "every third": [9]}


def test_all_ranks_measure_in_the_same_steps_also_where_one_of_them_has_loaded_a_state(ranks):
    before = Ranker(gram_every=3)
    train(before, steps=5)
    model = Ranker(gram_every=3)
    model.load_state_dict(before.state_dict())
    weights = train(model, steps=12)
    found = [result["measured seldom"] for result in ranks]
    for result in found:
        torch.testing.assert_close(result["weights"], torch.stack(weights), rtol=1e-4, atol=1e-5)
    assert_same_on_all_ranks(found)


def test_an_overlapped_matrix_is_not_waited_for_until_somebody_needs_it(ranks):
    model = Ranker()
    for inputs, labels in batches(1):
        sum(losses(model(inputs), labels)).backward()
    for result in (found["under way"] for found in ranks):
        assert not result["waited"]
        for how in ("copied", "saved", "moved"):
            torch.testing.assert_close(result[how].float(), model.fork.last_gram, rtol=1e-5, atol=1e-5)
        for how in ("reset", "loaded"):
            assert torch.equal(result[how], torch.zeros(3, 3))


def test_only_the_ranks_of_the_process_group_share_their_gram_matrix(ranks):
    for rank, result in enumerate(ranks):
        model = Ranker()
        expected = record(model, train(model, rank=rank))
        assert_as_one_process([result["groups of one"]], expected)
    assert not torch.equal(ranks[0]["groups of one"]["weights"], ranks[1]["groups of one"]["weights"])
