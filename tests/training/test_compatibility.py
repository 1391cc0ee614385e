import pytest
import torch

from equipoise.methods import METHODS, NEEDS, Method
from equipoise.settings import TrainingSettings
from equipoise.training import IncompatibleError, World
from equipoise.training.compatibility import Combination, check_compatible


class OnOneProcess(torch.optim.SGD):
    """Makes its own backward passes, and knows of no other ranks."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups)

    def backward(self, losses: list[torch.Tensor]) -> None:
        sum(losses).backward()


def check(method: Method, sharding: str = "ddp", ranks: int = 2) -> None:
    check_compatible(Combination(method, TrainingSettings.of(sharding=sharding), World(size=ranks)))


OWN = {need: Method("own", needs={need}) for need in NEEDS}


def test_a_method_of_anybodys_is_asked_what_it_needs() -> None:
    with pytest.raises(IncompatibleError, match=r"'own' needs every task's whole gradient .* which FSDP2 shards"):
        check(OWN["whole gradients"], "fsdp")
    with pytest.raises(IncompatibleError, match="'own' needs every parameter's step, but TorchRec's tables"):
        check(OWN["whole updates"], "table-wise")
    with pytest.raises(IncompatibleError, match="'own' averages its tasks' gradients itself, but TorchRec"):
        check(OWN["per-task backward"], "data-parallel")
    with pytest.raises(
        IncompatibleError, match="'own' differentiates the towers' gradients once more, for which FSDP2"
    ):
        check(OWN["second derivatives"], "fsdp")
    check(OWN["whole gradients"])
    check(OWN["second derivatives"])
    check(OWN["whole updates"])


@pytest.mark.parametrize("sharding", ["fsdp", "table-wise", "row-wise+fsdp"])
def test_methods_on_parameters_are_refused_where_gradients_do_not_lie_whole(sharding: str) -> None:
    with pytest.raises(IncompatibleError, match=r"'mgda-parameters' needs .*use sharding ddp"):
        check(METHODS["mgda-parameters"], sharding)


def test_an_optimizer_that_knows_of_no_ranks_is_refused_on_several() -> None:
    method = Method("own", optimizer=OnOneProcess, needs={"per-task backward"})
    with pytest.raises(IncompatibleError, match=r"'own' makes one backward pass per task, but .* data_parallel"):
        check(method)
    check(method, ranks=1)
