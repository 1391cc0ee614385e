"""Lists of ids, shared tables and interactions on two ranks with sharded tables train as on one."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from equipoise import Fork
from equipoise.errors import SettingError
from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import build_model
from equipoise.schema import Categorical, Categories, Numeric, Schema, Task, Vector
from equipoise.training.ranks.parallel import dense_parameters, fused_optimizer, parallelize
from tests.distributed.gloo import on_ranks
from tests.ranking.models.cuts import make_batch

SCHEMA = Schema(
    [
        Categorical("item", 31),
        Categories("seen", 31, 4, "mean", table="item"),
        Categories("tags", 7, 3, "sum"),
        Categorical("last", 31, table="item"),
    ],
    [Numeric("age"), Vector("image", 3)],
    [Task("click"), Task("buy")],
)
ADAGRAD = {"lr": 0.05, "eps": 1e-8}
ROWS = 32


def train(sharding: str, rank: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = build_model("shared-bottom", SCHEMA, fork=lambda: Fork(2), embedding_dim=8, interaction="fm")
    call, share = model, slice(None)
    if rank is not None:
        size = dist.get_world_size()
        share = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        call = parallelize(model, sharding, table_optimizer=(torch.optim.Adagrad, ADAGRAD))
    optimizer = torch.optim.Adagrad(dense_parameters(call).values(), **ADAGRAD)
    fused = fused_optimizer(call)
    batch = make_batch(SCHEMA, ROWS)
    for _ in range(4):
        optimizer.zero_grad()
        outputs = call(batch.categorical[share], batch.numeric[share])
        sum(task_losses(outputs, batch.labels[share], SCHEMA.tasks)).backward()
        optimizer.step()
        if fused is not None:
            fused.step()
    with torch.no_grad():
        return {"predicted": torch.stack(call(batch.categorical, batch.numeric))}


def work(sharding: str, rank: int) -> dict[str, Tensor]:
    return train(sharding, rank)


@pytest.mark.parametrize("sharding", ["ddp", "table-wise", "row-wise", "column-wise", "data-parallel"])
def test_two_ranks_train_as_one_does(sharding: str, tmp_path) -> None:
    alone = train(sharding)
    for found in on_ranks(2, tmp_path, functools.partial(work, sharding)):
        torch.testing.assert_close(found["predicted"], alone["predicted"], rtol=1e-3, atol=1e-4)


def attended(_: int) -> dict[str, str]:
    history = Categories("history", 31, 4, "attention", "item", "item")
    schema = Schema([SCHEMA.categorical[0], history], [], SCHEMA.tasks)
    with pytest.raises(SettingError) as caught:
        parallelize(build_model("shared-bottom", schema, embedding_dim=8), "table-wise")
    return {"said": str(caught.value)}


def test_target_attention_is_refused_with_what_to_use(tmp_path) -> None:
    for found in on_ranks(1, tmp_path, attended):
        assert found["said"].startswith("Feature 'history': target attention")
        assert found["said"].endswith("Use pooling mean or sum, or sharding ddp or fsdp.")
