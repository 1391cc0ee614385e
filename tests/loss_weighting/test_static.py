import pytest
import torch

from equipoise.errors import SettingError
from equipoise.loss_weighting import static_weights
from equipoise.methods import parse_method
from equipoise.settings import TrainingSettings
from equipoise.training import Learner
from tests.methods.test_catalogue import SCHEMA, batch


def trained(name: str, steps: int = 6, **settings) -> tuple[Learner, torch.Tensor]:
    learner = Learner(SCHEMA, parse_method(name), TrainingSettings.of(lr=0.01, seed=2, **settings))
    return learner, torch.stack([learner.step(batch(step)) for step in range(steps)])


def parameters(learner: Learner) -> list[torch.Tensor]:
    return list(learner.model().parameters())


def test_without_stated_weights_it_is_equal_weights_to_the_last_bit() -> None:
    static, equal = trained("static"), trained("equal")
    assert torch.equal(static[1], equal[1])
    assert all(torch.equal(one, other) for one, other in zip(*map(parameters, (static[0], equal[0])), strict=True))


def test_weights_are_used_as_they_stand() -> None:
    static, scaled = trained("static:weights=1-1-3"), trained("equal", loss_scale={"buy": 3.0})
    assert torch.equal(static[1], scaled[1])
    assert all(torch.equal(one, other) for one, other in zip(*map(parameters, (static[0], scaled[0])), strict=True))
    assert static_weights(["a", "b"], weights=[4, 2]).weigh(torch.ones(2), torch.ones(2) > 0).tolist() == [4, 2]


def test_a_number_of_weights_that_is_not_that_of_the_tasks_is_refused_with_their_names() -> None:
    with pytest.raises(SettingError, match=r"expected 3 numbers, one for each of click, like, buy; found \[1, 2\]"):
        trained("static:weights=1-2")


def test_weights_are_those_of_the_option_and_not_of_a_saved_state() -> None:
    one, other = static_weights(["a", "b"], weights=[1, 2]), static_weights(["a", "b"], weights=[3, 4])
    other.load_state_dict(one.state_dict())
    assert other.weigh(torch.ones(2), torch.ones(2) > 0).tolist() == [3, 4]
