"""Models with forks in the formats of serving: traced, scripted and exported in eval mode."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from equipoise.forks import Fork, GradDrop, MultiBalance, Weighted
from tests.forks.fork_gradients import random

# TorchScript warns that it is deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]
FORKS = [
    Fork(2),
    MultiBalance(2),
    MultiBalance(2, overlap=True),
    MultiBalance(2, gram_every=2),
    Weighted(2, [1.0, 2.0]),
    GradDrop(2),
]
X = random(0, 8, 6)


class Served(nn.Module):
    def __init__(self, fork: Fork) -> None:
        super().__init__()
        self.bottom = nn.Linear(6, 5)
        self.fork = copy.deepcopy(fork)
        self.click, self.buy = nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for_click, for_buy = self.fork(self.bottom(x))
        return self.click(for_click), self.buy(for_buy)


def saved_and_loaded_script(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(copy.deepcopy(model)), file)
    file.seek(0)
    return torch.jit.load(file)


FORMATS = {
    "torch.fx": torch.fx.symbolic_trace,
    "torch.jit.trace": lambda model: torch.jit.trace(model, X),
    "torch.jit.script": saved_and_loaded_script,
    "torch.export": lambda model: torch.export.export(model, (X,)).module(),
}


@pytest.mark.parametrize("fork", FORKS, ids=repr)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_in_eval_mode_gives_the_same_outputs(kind, fork):
    model = Served(fork).eval()
    served = FORMATS[kind](model)
    for found, expected in zip(served(X), model(X), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_model_in_training_cannot_be_scripted():
    with pytest.raises(RuntimeError, match=r"eval mode only: call model\.eval\(\)"):
        torch.jit.script(Served(MultiBalance(2)))


def test_a_model_whose_fork_scripting_has_replaced_refuses_to_be_trained():
    """``torch.jit.script`` replaces the fork in the very model that it is given."""
    model = Served(MultiBalance(2)).eval()
    torch.jit.script(model)
    with pytest.raises(RuntimeError, match=r"cannot be trained any more. Script a copy"):
        model.train()


def test_a_model_in_training_cannot_be_traced_by_fx():
    with pytest.raises(TypeError, match="takes a tensor"):
        torch.fx.symbolic_trace(Served(MultiBalance(2)))
