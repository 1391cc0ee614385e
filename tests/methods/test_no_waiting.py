"""Which methods' training steps wait for an accelerator, from the losses to the last update: none of ours."""

from __future__ import annotations

import pytest

from equipoise.methods import CATALOGUE, Method
from equipoise.settings import TrainingSettings
from equipoise.training import Learner
from equipoise.training.ranks.world import World
from tests.made_up_device import DEVICE, the_device
from tests.methods.test_catalogue import SCHEMA, batch

# torchjd's at the fork take the present tasks' rows out of the Gram matrix, some solve on the host, and its GLS looks
# for losses of 0. Its aggregators of whole gradients, left out here, all look at values.
OF_TORCHJD = {"pcgrad", "gradvac", "cagrad", "aligned-mtl", "upgrad", "pcd", "crmogm-mgda", "crmogm-pcgrad", "gls"}
WARM_UP, WATCHED = 2, 3


@pytest.mark.parametrize(
    "method", [method for method in CATALOGUE if method.jacobian is None], ids=lambda method: method.name
)
def test_no_method_but_those_of_torchjd_waits(method: Method) -> None:
    with the_device() as waits:
        settings = TrainingSettings.of(lr=0.01, seed=2)
        trained = Learner(SCHEMA, method, settings, epoch_steps=5, world=World(device=DEVICE))
        batches = [batch(step).to(DEVICE) for step in range(WARM_UP + WATCHED)]
        for step in range(WARM_UP):
            trained.step(batches[step])
        waits.clear()
        for step in range(WARM_UP, len(batches)):
            trained.step(batches[step])
        assert bool(waits) is (method.name in OF_TORCHJD), waits
