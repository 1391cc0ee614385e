"""A model with a fork compiles whole (``torch.compile(fullgraph=True)``) and trains as the eager one does."""

from __future__ import annotations

import pytest

from tests.accelerator.test_agreement import assert_agree
from tests.accelerator.workload import batches, with_fork

# Torch warns about itself while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


@pytest.mark.parametrize("fork", ["multibalance", "nash", "mgda-equal", "graddrop"])
def test_a_fork(fork, device):
    if device.type == "cpu" and fork != "multibalance":
        pytest.skip("one fork proves that this test works; the forks' own tests compile the others on the CPU")
    compiled, eager = with_fork(fork, device), with_fork(fork, device)
    # The default backend builds kernels for the device: on a CPU that takes a C++ compiler, and minutes.
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled.model.compile(fullgraph=True, backend=backend)
    for batch in batches(device, 5):
        compiled.step(batch)
        eager.step(batch)
    assert_agree(compiled.tensors(), eager.tensors())
