"""Two ranks with half a batch each step as one process with the whole batch does: PUB, AdaTask, consistent towers."""

import datetime
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.parallel import DistributedDataParallel

from equipoise.forks import Bargaining
from equipoise.optim import PUB, AdaTask, Clippy, ConsistentTowers
from tests.gloo_end import end_rank

RANKS, TASKS, STEPS, ROWS = 2, 3, 8, 8

FORMS = {
    "pub-exact": lambda o, shared, where: PUB(o, shared=shared, update_every=3, solve_on="all", **where),
    "pub-authors": lambda o, shared, where: PUB(o, shared=shared, update_every=3, form="authors", **where),
    "pub-matched": lambda o, shared, where: PUB(o, shared=shared, update_every=3, form="matched", **where),
    "pub-literal": lambda o, shared, where: PUB(o, shared=shared, update_every=3, form="literal", **where),
    "pub": lambda o, shared, where: PUB(o, shared=shared, update_every=3, **where),
    "pub-clippy": lambda o, shared, where: PUB(Clippy(o), shared=shared, update_every=1, **where),
    "adatask": lambda o, shared, where: AdaTask(o, shared=shared, **where),
    "pub-adatask": lambda o, shared, where: PUB(AdaTask(o, shared=shared, **where), shared=shared, update_every=3),
    "towers": lambda o, _, where: ConsistentTowers(o, **where),
    "towers-free": lambda o, _, where: ConsistentTowers(o, limit=1e6, **where),
}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}
# (form, optimizer, how it is told, absent tasks by rank, sparse table)
NOBODY: tuple[set[int], set[int]] = (set(), set())
CASES = {
    **{f"{form}-adam": (form, "adam", "ddp", NOBODY, False) for form in FORMS},
    "pub-sgd": ("pub-authors", "sgd", "ddp", NOBODY, False),
    "process group": ("pub-exact", "adam", "group", NOBODY, False),
    **{
        f"{form}, absent on one rank": (form, "adam", "ddp", (set(), {1}), False)
        for form in ("pub-exact", "pub-authors", "pub", "pub-adatask", "towers", "towers-free")
    },
    **{
        f"{form}, absent on both": (form, "adam", "group", ({2}, {2}), False)
        for form in ("pub-exact", "pub-authors", "pub", "adatask")
    },
    **{
        f"{form}, nothing on one rank": (form, "adam", "group", (set(), {0, 1, 2}), False)
        for form in ("pub-exact", "pub")
    },
    **{
        f"{form}, accumulated": (form, "adam", "ddp", NOBODY, False)
        for form in ("pub-exact", "pub-authors", "pub", "adatask", "towers")
    },
    **{
        f"{form}, sparse": (form, "adagrad", "group", (set(), {1}), True)
        for form in ("pub-exact", "pub", "pub-matched", "adatask")
    },
}


class Net(nn.Module):
    """A table of 40 rows, a bottom, a head per task, with or without a fork; one parameter that no loss reaches."""

    def __init__(self, sparse: bool, forked: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table = nn.Embedding(40, 3, sparse=sparse)
            self.bottom = nn.Linear(6, 5)
            self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(TASKS))
        self.unused = nn.Parameter(torch.ones(2))
        self.fork = Bargaining(TASKS, exponent=2.0) if forked else None

    def forward(self, ids: Tensor) -> list[Tensor]:
        z = torch.tanh(self.bottom(self.table(ids).flatten(1)))
        branches = [z] * TASKS if self.fork is None else self.fork(z)
        return [head(branch).squeeze(1) for head, branch in zip(self.heads, branches, strict=True)]

    def shared(self) -> list[nn.Parameter]:
        return [*self.table.parameters(), *self.bottom.parameters(), self.unused]


def train(name: str, rank: int | None) -> dict:
    """Train one rank on its half of the batches, or on whole batches if rank is None; absent rows count as 0."""
    form, kind, told, absent, sparse = CASES[name]
    net = Net(sparse, form.startswith("towers"))
    call, where = net, {}
    if rank is not None:
        call = DistributedDataParallel(net) if told == "ddp" else net
        where = {"data_parallel": call if told == "ddp" else dist.group.WORLD}
    optimizer = FORMS[form](OPTIMIZERS[kind](net.parameters()), net.shared(), where)
    weights = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 40, (ROWS, 2), generator=generator)
        targets = torch.randn(ROWS, TASKS, generator=generator)
        counted = torch.ones(ROWS, TASKS)
        for other, tasks in enumerate(absent):
            counted[other * ROWS // RANKS : (other + 1) * ROWS // RANKS, list(tasks)] = 0.0
        gone = set.intersection(*absent)
        if rank is not None:
            own = slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS)
            ids, targets, counted, gone = ids[own], targets[own], counted[own], absent[rank]
        scores = call(ids)
        losses = [
            None if task in gone else ((score - targets[:, task]).square() * counted[:, task]).mean()
            for task, score in enumerate(scores)
        ]
        optimizer.zero_grad()
        if rank is not None and step % 2:
            optimizer.total(losses).backward()
        else:
            optimizer.backward(losses)
        if name.endswith("accumulated"):
            optimizer.backward([2 * (score - 1).square().mean() for score in call(ids)])
        optimizer.step()
        weights.append(getattr(optimizer, "last_weights", torch.ones(TASKS)).clone())
    return {"parameters": {key: value.detach().clone() for key, value in net.named_parameters()}, "weights": weights}


def count_collectives(rank: int) -> dict[str, list[list]]:
    """Return kind and size of each collective in each step of PUB and AdaTask, also with a sparse table."""
    found: dict[str, list[list]] = {}
    forms = {"pub-exact": "pub-exact", "pub": "pub", "adatask": "adatask", "sparse": "adatask"}
    for name, form in forms.items():
        sparse = name == "sparse"
        net = Net(sparse=sparse)
        kind = OPTIMIZERS["adagrad" if sparse else "adam"]
        optimizer = FORMS[form](kind(net.parameters()), net.shared(), {"data_parallel": dist.group.WORLD})
        steps: list[list] = []

        def counted(*args, whole, kind, steps=steps, **options):
            tensor = args[1] if kind == "gather" else args[0]
            steps[-1].append([kind, "numbers" if tensor.is_floating_point() else "counts", tensor.numel()])
            return whole(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_reduce", partial(counted, whole=dist.all_reduce, kind="reduce"))
            patch.setattr(dist, "all_gather", partial(counted, whole=dist.all_gather, kind="gather"))
            for step in range(3):
                steps.append([])
                ids = torch.tensor([[step, 7], [step, 20 + rank]])
                optimizer.zero_grad()
                optimizer.backward([score.square().mean() for score in net(ids)])
                optimizer.step()
        found[name] = steps
    return found


@functorch_config.patch(donated_buffer=False)  # a pass per task keeps the graph
def train_with_a_hidden_layer(rank: int) -> dict:
    """Train three steps where a compiled graph hides the last layer, from the first rank, which alone has losses."""
    net = Net(sparse=False)
    call = torch.compile(net, backend="aot_eager")
    optimizer = PUB(
        torch.optim.Adam(net.parameters()), shared=net.shared(), update_every=1, data_parallel=dist.group.WORLD
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            scores = call(torch.tensor([[step, 7], [step, 20]]))
            optimizer.zero_grad()
            optimizer.backward([None if rank else score.square().mean() for score in scores])
            optimizer.step()
    told = [str(warning.message) for warning in caught if "PUB" in str(warning.message)]
    return {"solved on": len(optimizer.solved_on), "told": told, "weights": optimizer.last_weights}


def train_where_a_path_goes_past(rank: int) -> dict:
    """Train two steps in which a loss of the first rank reaches the table by itself."""
    net = Net(sparse=False)
    optimizer = PUB(
        torch.optim.Adam(net.parameters()), shared=net.shared(), update_every=1, data_parallel=dist.group.WORLD
    )
    for step in range(2):
        ids = torch.tensor([[step, 7], [step, 20]])
        losses = [score.square().mean() for score in net(ids)]
        if rank == 0:
            losses[1] = losses[1] + net.table(ids).square().sum()
        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()
    return {"solved on": len(optimizer.solved_on), "weights": optimizer.last_weights}


def message_without_a_loss() -> str:
    net = Net(sparse=False, forked=True)
    optimizer = ConsistentTowers(torch.optim.SGD(net.parameters(), lr=0.1), data_parallel=dist.group.WORLD)
    with pytest.raises(RuntimeError) as refused:
        optimizer.backward([None] * TASKS)
    return str(refused.value)


def work(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=120),
    )
    torch.set_num_threads(1)
    results: dict = {name: train(name, rank) for name in CASES}
    results["collectives"] = count_collectives(rank)
    results["no loss"] = message_without_a_loss()
    results["hidden"] = train_with_a_hidden_layer(rank)
    results["past"] = train_where_a_path_goes_past(rank)
    torch.save(results, folder / f"rank{rank}.pt")
    end_rank()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """Return the record of each rank; all cases share one pair of processes, which are slow to start."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, args=(folder,), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own sparse Adagrad
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process_with_the_whole_batch_does(ranks, name):
    expected = train(name, None)
    assert any((weights != 1).any() for weights in expected["weights"]) or CASES[name][0].startswith(
        ("adatask", "towers")
    )
    for result in (found[name] for found in ranks):
        for step, weights in enumerate(expected["weights"]):
            torch.testing.assert_close(result["weights"][step], weights, rtol=1e-5, atol=1e-5)
        for key, value in expected["parameters"].items():
            torch.testing.assert_close(result["parameters"][key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_ranks_do_not_drift_apart(ranks, name):
    for key, value in ranks[0][name]["parameters"].items():
        assert torch.equal(value, ranks[1][name]["parameters"][key])


def test_a_rank_without_a_loss_is_told_to_give_one_to_the_fork(ranks):
    assert all("found no loss on this rank" in found["no loss"] for found in ranks)


def test_a_step_takes_one_large_collective(ranks):
    net = Net(sparse=False)
    heads = sum(p.numel() for p in net.heads.parameters())
    shared = sum(p.numel() for p in net.shared()) - net.unused.numel()  # what nobody has a gradient of is not sent
    found = ranks[0]["collectives"]
    entries = len(net.shared()) + len(list(net.heads.parameters())) + TASKS  # who has what, by parameter and task
    every = entries + (TASKS - 1) * len(net.shared())
    single = [["reduce", "counts", entries], ["reduce", "numbers", shared + heads]]
    apart = [["reduce", "counts", every], ["reduce", "numbers", TASKS * shared + heads]]
    assert found["pub-exact"] == [single, apart, single]
    assert found["adatask"] == [apart] * 3
    layer = list(net.bottom.parameters())
    measured = [
        ["reduce", "counts", TASKS * len(layer) + TASKS],
        ["reduce", "numbers", TASKS * sum(p.numel() for p in layer)],
    ]
    # Which parameters are reached, covered and hidden; then whether a path goes past the last layer, and is hidden.
    found_once = [["reduce", "counts", 3 * len(net.shared())], ["reduce", "counts", 2]]
    assert found["pub"] == [single, found_once + measured + single, single]


def test_of_a_sparse_table_go_the_rows_that_any_rank_touches(ranks):
    net = Net(sparse=True)
    dense = sum(p.numel() for p in net.bottom.parameters())
    heads = sum(p.numel() for p in net.heads.parameters())
    for step in ranks[0]["collectives"]["sparse"]:
        kinds, sizes = [entry[:2] for entry in step], [entry[2] for entry in step]
        assert kinds == [["reduce", "counts"], ["gather", "counts"], ["gather", "counts"], ["reduce", "numbers"]]
        assert sizes[2] == 3  # a rank touches three rows
        assert sizes[3] == TASKS * (4 * 3 + dense) + heads  # both together four, of width 3


def test_all_ranks_solve_from_all_that_is_shared_where_the_last_layer_is_hidden_on_one(ranks):
    for found in (found["hidden"] for found in ranks):
        assert found["solved on"] == len(Net(sparse=False).shared())
        assert [text.split(",")[0] for text in found["told"]] == ["PUB solves from all 4 shared parameters"]
        assert torch.equal(found["weights"], ranks[0]["hidden"]["weights"])
        assert (found["weights"] != 1).any()


def test_all_ranks_solve_from_all_that_is_shared_where_a_path_goes_past_the_last_layer_on_one(ranks):
    for found in (found["past"] for found in ranks):
        assert found["solved on"] == len(Net(sparse=False).shared())
        assert torch.equal(found["weights"], ranks[0]["past"]["weights"])
