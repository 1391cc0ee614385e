"""A ranker on two or four ranks trains as one process with the whole batch does, however it is spread over them."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from equipoise import PUB, Fork
from equipoise.errors import SettingError
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import SharedBottom, build_model
from equipoise.schema import Batch, Categorical, Numeric, Schema, Task
from equipoise.settings import TrainingSettings
from equipoise.training import METHODS, Learner, World, parse_method
from equipoise.training.ranks.parallel import dense_parameters, fused_optimizer, parallelize
from tests.distributed.gloo import on_ranks

SCHEMA = Schema(
    [Categorical("user", 50), Categorical("item", 31), Categorical("place", 3)],
    [Numeric("age")],
    [Task("click"), Task("like"), Task("buy")],
)
STEPS, ROWS, LR = 6, 32, 0.05
TORCHREC = ("table-wise", "row-wise", "column-wise", "data-parallel", "planner")
WITH_FSDP = ("table-wise+fsdp", "row-wise+fsdp", "column-wise+fsdp", "planner+fsdp")
MULTIBALANCE = [name for name in METHODS if name.startswith("multibalance")] + ["multibalance:overlap=true"]
PUBS = [f"{name}:update_every=2" for name in ("pub", "pub-exact", "pub-authors", "pub-adatask")]
ADAGRAD = {"lr": LR, "eps": 1e-8}
# (sharding, method, model)
CASES = [
    *(("ddp", method, "shared-bottom") for method in (*MULTIBALANCE, "equal", *PUBS, "adatask", "clippy")),
    *((sharding, "multibalance", "shared-bottom") for sharding in ("fsdp", *TORCHREC, *WITH_FSDP)),
    *((sharding, "equal", "shared-bottom") for sharding in ("fsdp", "row-wise", "row-wise+fsdp")),
    *((sharding, "multibalance", "mmoe") for sharding in ("ddp", "fsdp", "table-wise", "table-wise+fsdp")),
    *(("table-wise", method, "shared-bottom") for method in (*MULTIBALANCE[1:], *PUBS, "adatask")),
    *((sharding, "multibalance", "ple") for sharding in ("ddp", "fsdp", "table-wise")),
    *(("row-wise", PUBS[0], model) for model in ("mmoe", "ple")),
]
# Three tables: with one rank more, one holds none; and three places, of which it would hold none by rows.
ON_FOUR = [case for case in CASES if case[1:] in (("multibalance", "shared-bottom"), (PUBS[0], "shared-bottom"))]


def build(method: str, model: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build_model(model, SCHEMA, fork=parse_method(method).fork_factory(SCHEMA.task_names), embedding_dim=16)


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(STEPS + 1):
        ids = torch.stack(
            [torch.randint(f.cardinality, (ROWS,), generator=generator) for f in SCHEMA.categorical], dim=1
        )
        numbers = torch.randn(ROWS, 1, generator=generator)
        found.append((ids, numbers, torch.randint(2, (ROWS, 3), generator=generator).float()))
    return found


def train(case: tuple[str, str, str], rank: int | None = None) -> dict:
    """Fork or PUB weights of every step, and predictions on a batch never seen."""
    sharding, name, kind = case
    method, model = parse_method(name), build(name, kind)
    call, share = model, slice(None)
    if rank is not None:
        size = dist.get_world_size()
        share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        call = parallelize(model, sharding, table_optimizer=(torch.optim.Adagrad, ADAGRAD))
    dense = list(dense_parameters(call).values())
    apart = "per-task backward" in method.needs and sharding in TORCHREC
    if apart and rank is None:  # what is fused there is stepped by hand here
        table = model.embedding.table.weight
        dense = [p for p in dense if p is not table]
        by_hand = torch.optim.Adagrad([table], **ADAGRAD)
    of_all = {id(p) for p in model.shared_parameters()}
    shared = [p for p in dense if id(p) in of_all]
    optimizer = method.build_optimizer(
        torch.optim.Adagrad(dense, **ADAGRAD),
        shared=shared,
        tasks=SCHEMA.task_names,
        data_parallel=None if rank is None else call,
    )
    fused = fused_optimizer(call)
    *seen, unseen = batches()
    weights = []
    for ids, numbers, labels in seen:
        optimizer.zero_grad()
        losses = task_losses(call(ids[share], numbers[share]), labels[share], SCHEMA.tasks)
        if apart and rank is None:
            of_table = [torch.autograd.grad(loss, table, retain_graph=True)[0] for loss in losses]
            alpha = optimizer.last_weights if isinstance(optimizer, PUB) else torch.ones(3)
        method.backward(optimizer, losses)
        optimizer.step()
        if apart and rank is None:
            if isinstance(optimizer, PUB) and len(optimizer.solved_on) < len(optimizer.balanced):
                alpha = optimizer.last_weights  # known before the pass that steps the table
            table.grad = torch.einsum("t,tij->ij", alpha.float(), torch.stack(of_table))
            by_hand.step()
        if fused is not None:
            fused.step()
        balancer = optimizer if isinstance(optimizer, PUB) else model.fork
        weights.append(balancer.last_weights.float().clone() if isinstance(balancer, Fork | PUB) else torch.ones(3))
    with torch.no_grad():
        predicted = torch.stack(call(*unseen[:2]))
    return {
        "weights": torch.stack(weights),
        "predicted": predicted,
        "fused": fused is not None,
        "in parts": any(hasattr(p, "placements") for p in dense),
    }


def refusals() -> dict[str, Any]:
    found = {}
    narrow = SharedBottom(SCHEMA, fork=lambda: Fork(3), embedding_dim=6)
    model = build("equal", "shared-bottom")
    attempts = {
        "narrow columns": lambda: parallelize(narrow, "column-wise"),
        "narrow rows": lambda: parallelize(SharedBottom(SCHEMA, embedding_dim=6), "row-wise"),
        "no tables": lambda: parallelize(nn.Linear(2, 2), "row-wise"),
        "no categorical": lambda: parallelize(SharedBottom(Schema([], [Numeric("age")], [Task("click")])), "row-wise"),
        "sparse fsdp": lambda: parallelize(SharedBottom(SCHEMA, sparse=True), "fsdp"),
        "unknown": lambda: parallelize(model, "diagonal"),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except SettingError as error:
            found[name] = str(error)
    normed = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    found["broadcasts"] = [parallelize(build("multibalance", "mmoe")).broadcast_buffers]
    found["broadcasts"] += [parallelize(normed).broadcast_buffers]
    sharded = parallelize(model, "fsdp")
    shared = list(model.shared_parameters())
    try:
        PUB(torch.optim.Adam(sharded.parameters()), shared=shared, data_parallel=dist.group.WORLD)
    except TypeError as error:
        found["pub with fsdp"] = str(error)
    found |= refusals_with_tables()
    return found


def placed(rank: int) -> dict[str, Any]:
    """Return how parallelize spread tables and layers."""
    del rank
    found: dict[str, Any] = {}
    for sharding in TORCHREC:
        call = parallelize(build("equal", "shared-bottom"), sharding)
        (plan,) = call.plan.plan.values()
        found[sharding] = {name: [entry.sharding_type, entry.ranks] for name, entry in plan.items()}
    for sharding in ("fsdp", "row-wise+fsdp"):
        model = build("equal", "shared-bottom")
        parallelize(model, sharding)
        found[sharding] = [name for name, part in model.named_modules() if hasattr(part, "unshard")]
    return found


def rates(rank: int) -> dict[str, Any]:
    """Return the tables' learning rate beside the dense one as both fall to 0, and whether tables still move then."""
    schema = Schema([Categorical("user", 50)], [Numeric("age")], [Task("click")])
    learner = Learner(
        schema,
        METHODS["equal"],
        TrainingSettings.of(lr=0.1, seed=0, sharding="table-wise"),
        total_steps=4,
        world=World(rank, dist.get_world_size()),
    )
    (member,) = learner._members
    batch = Batch(torch.arange(8)[:, None], torch.randn(8, 1), torch.ones(8, 1), torch.ones(8))
    seen, moved = [], []
    for _ in range(6):
        before = learner.logits(batch)
        learner.step(batch)
        of_tables = member.fused.param_groups if member.fused else [{"lr": None}]  # a rank that holds no table
        seen.append([member.optimizer.param_groups[0]["lr"], of_tables[0]["lr"]])
        moved.append(not torch.equal(learner.logits(batch), before))
    return {"rates": seen, "moved": moved}


def named(rank: int) -> bool:
    """Return whether tables with feature names that are invalid as module names give the result of one table."""
    del rank
    schema = Schema([Categorical(name, 9) for name in ("a.b", "training", "c@1")], [Numeric("d")], [Task("click")])
    ids, numeric = torch.arange(12).reshape(4, 3) % 9, torch.randn(4, 1)
    torch.manual_seed(0)
    model = SharedBottom(schema, embedding_dim=8)
    expected = model(ids, numeric)[0].detach()
    return torch.allclose(parallelize(model, "row-wise")(ids, numeric)[0].detach(), expected)


def refusals_with_tables() -> dict[str, str]:
    """Return the refusals of PUB in a plain loop with TorchRec."""
    found = {}
    call = parallelize(build("pub", "shared-bottom"), "data-parallel")
    dense = list(dense_parameters(call).values())
    try:
        PUB(torch.optim.Adagrad(dense), shared=dense[-4:], data_parallel=call)
    except ValueError as error:
        found["pub with data-parallel tables"] = str(error)
    model = build("pub", "shared-bottom")
    call = parallelize(model, "table-wise")
    optimizer = PUB(
        torch.optim.Adagrad(dense_parameters(call).values()), shared=model.bottom.parameters(), data_parallel=call
    )
    ids, numbers, _ = batches()[0]
    call(ids, numbers)
    try:
        optimizer.backward([None, None, None])
    except RuntimeError as error:
        found["pub without a loss"] = str(error)
    return found


def work(rank: int) -> dict:
    cases = CASES if dist.get_world_size() == 2 else ON_FOUR
    return {case: train(case, rank) for case in cases} | {
        "refusals": refusals(), "placed": placed(rank), "rates": rates(rank),
        "named": named(rank),
    }  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    return on_ranks(2, tmp_path_factory.mktemp("two"), work)


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> list[dict]:
    return on_ranks(4, tmp_path_factory.mktemp("four"), work)


def assert_as_one_process(found: list[dict], case: tuple[str, str, str]) -> None:
    expected = train(case)
    assert case[1] in ("equal", "adatask", "clippy") or (expected["weights"] != 1).any()
    for result in found:
        assert torch.equal(result[case]["weights"], found[0][case]["weights"])
        torch.testing.assert_close(result[case]["weights"], expected["weights"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result[case]["predicted"], expected["predicted"], rtol=1e-5, atol=1e-5)
        assert result[case]["in parts"] == case[0].endswith("fsdp")
    # Of two ranks or more some hold no table of a table-wise sharding.
    assert any(result[case]["fused"] for result in found) == (case[0] not in ("ddp", "fsdp", "data-parallel"))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_ranks_train_as_one_process_does(two, case):
    assert_as_one_process(two, case)


@pytest.mark.parametrize("case", ON_FOUR, ids="-".join)
def test_four_ranks_train_as_one_process_does(four, case):
    assert_as_one_process(four, case)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        ("narrow columns", "expected a multiple of 8, found 6 in table 'user'. Set embedding_dim to 8, or use ddp"),
        ("narrow rows", "expected a multiple of 4, found 6 in table 'user'. Set embedding_dim to 8, or use ddp"),
        ("no tables", "found none in Linear"),
        ("no categorical", "found a schema without categorical features"),
        ("sparse fsdp", "FSDP2 cannot shard sparse gradients, found sparse=True in embedding.table"),
        ("unknown", "found 'diagonal'"),
        ("pub with fsdp", "sharded over ranks (FSDP2). Train with DistributedDataParallel, or balance at a fork"),
        ("pub with data-parallel tables", "Shard them table-, row- or column-wise"),
        ("pub without a loss", "found no loss on rank 0, but sharded tables exchange"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(two, attempt, message):
    assert message in two[0]["refusals"][attempt]


def test_tables_lie_where_their_sharding_says(two, four):
    names = [feature.name for feature in SCHEMA.categorical]
    for found, ranks in ((two[0]["placed"], 2), (four[0]["placed"], 4)):
        every = list(range(ranks))
        assert found["table-wise"] == {name: ["table_wise", [place % ranks]] for place, name in enumerate(names)}
        assert found["column-wise"] == {name: ["column_wise", every] for name in names}
        assert found["data-parallel"] == {name: ["data_parallel", every] for name in names}
        small = ["table_wise", [2 % ranks]] if ranks == 4 else ["row_wise", every]  # three places
        assert found["row-wise"] == {"user": ["row_wise", every], "item": ["row_wise", every], "place": small}
        assert {kind for kind, _ in found["planner"].values()} <= {"table_wise", "column_wise"}


def test_features_may_have_names_that_no_module_can(two):
    assert all(result["named"] for result in two)


def test_fsdp_shards_every_layer_apart(two):
    assert two[0]["placed"]["fsdp"][:3] == ["", "embedding", "bottom"]
    assert {"", "bottom"} <= set(two[0]["placed"]["row-wise+fsdp"])
    assert not any(name.startswith("embedding") for name in two[0]["placed"]["row-wise+fsdp"])


def test_tables_are_stepped_at_the_rate_of_all_others(two):
    for found in (result["rates"] for result in two):
        assert [own for own, _ in found["rates"]] == pytest.approx([0.075, 0.05, 0.025, 0, 0, 0])
        if any(table is not None for _, table in found["rates"]):
            assert [table for _, table in found["rates"]] == [own for own, _ in found["rates"]]
        assert found["moved"] == [True, True, True, True, False, False]


def test_buffers_are_broadcast_in_every_step_only_where_they_can_differ(two):
    assert two[0]["refusals"]["broadcasts"] == [False, True]


def test_without_a_process_group_it_says_how_to_launch():
    with pytest.raises(SettingError, match="launch with torchrun"):
        parallelize(build("equal", "shared-bottom"))
