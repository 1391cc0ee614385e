"""`check` on a model that TorchRec has sharded: the dense part is seen, tables without a name."""

import torch

from equipoise import check
from tests.distributed.gloo import on_ranks
from tests.distributed.test_torchrec_pipeline import example


def checked(rank: int, bypassed: bool) -> dict:
    module = example()
    ranker = module.Ranker()
    if bypassed:
        towers = ranker.dense

        def forward(embedded):
            z = towers.bottom(embedded)
            click, _ = towers.fork(z)
            return torch.cat([towers.towers[0](click), towers.towers[1](z)], dim=1)

        towers.forward = forward
    model = module.sharded(ranker, torch.device("cpu"))
    batch = next(module.batches(rank))
    logits = model.module.dense(model.module.tables(batch.ids).values())
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").mean(0)
    dense = dict(module.in_backward_optimizer_filter(model.named_parameters()))
    optimizer = module.KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adagrad(parameters, lr=0.05))
    report = check(model, dict(zip(["click", "buy"], losses.unbind(), strict=True)), optimizer=optimizer)
    return {"text": str(report), "shared": report.shared, "problems": report.problems}


def right(rank: int) -> dict:
    return checked(rank, bypassed=False)


def wrong(rank: int) -> dict:
    return checked(rank, bypassed=True)


def test_a_sharded_model_is_fine(tmp_path):
    for found in on_ranks(2, tmp_path, right):
        assert found["problems"] == [], found["text"]
        assert {"dense.bottom.0.weight", "dense.bottom.0.bias"} <= set(found["shared"])


def test_a_fork_that_is_gone_round(tmp_path):
    for found in on_ranks(2, tmp_path, wrong):
        unread, around = found["problems"]
        assert "fork 'dense.fork'" in unread
        assert "dense.bottom" in around
