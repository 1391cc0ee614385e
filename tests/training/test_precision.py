"""Training in bfloat16: close to float32, with whole weights and losses."""

import pytest
import torch

from equipoise.data import load
from equipoise.methods import METHODS
from equipoise.settings import TrainingSettings
from equipoise.training.learner import Learner


@pytest.mark.parametrize("method", ["equal", "multibalance", "consmtl", "pub"])
def test_layers_compute_in_bfloat16_and_weights_and_losses_stay_float32(method: str) -> None:
    dataset = load("funnel", rows=2000)
    learners = {
        precision: Learner(dataset.schema, METHODS[method], TrainingSettings.of(precision=precision, lr=0.01))
        for precision in ("float32", "bfloat16")
    }
    seen: dict[str, set[torch.dtype]] = {}
    losses = {}
    for precision, learner in learners.items():
        dtypes = seen.setdefault(precision, set())
        (member,) = learner._members
        member.model.bottom.register_forward_hook(lambda _, __, output, found=dtypes: found.add(output.dtype))
        losses[precision] = torch.stack([learner.step(batch) for batch in dataset.train.batches(250)])
        assert {parameter.dtype for parameter in member.model.parameters()} == {torch.float32}
        assert losses[precision].dtype == torch.float32
    assert seen == {"float32": {torch.float32}, "bfloat16": {torch.bfloat16}}
    assert not torch.equal(losses["bfloat16"], losses["float32"])
    torch.testing.assert_close(losses["bfloat16"], losses["float32"], rtol=0.1, atol=0.02)
