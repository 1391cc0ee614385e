"""Weightings of other libraries and fixed weights at the fork: they see the present tasks only."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import IMTLGWeighting, MGDAWeighting, UPGradWeighting

from equipoise.forks import Weighted
from equipoise.solvers import min_norm_weights
from tests.forks.fork_gradients import feed, random

# Torch warns about itself while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]


class Seen:
    """Weighs by inverse norms; remembers the matrices that it was given."""

    def __init__(self) -> None:
        self.grams: list[Tensor] = []

    def __call__(self, gram: Tensor) -> Tensor:
        self.grams.append(gram)
        return gram.diagonal().rsqrt()


def test_a_function_of_the_gram_matrix_gives_the_weights():
    gradients = [random(m, 4, 3) for m in range(3)]
    fork = Weighted(["a", "b", "c"], Seen())
    found = feed(fork, gradients)
    torch.testing.assert_close(found, sum(gradient / gradient.norm() for gradient in gradients))


@pytest.mark.parametrize("absent", [None, torch.zeros(4, 3), torch.full((4, 3), torch.nan)], ids=["none", "0", "nan"])
@pytest.mark.parametrize("place", range(3))
def test_an_absent_task_is_never_shown(absent, place):
    gradients = [random(m, 4, 3) for m in range(3)]
    gradients[place] = absent
    fork = Weighted(3, weighting := Seen())
    feed(fork, gradients)
    here = [m for m in range(3) if m != place]
    flat = torch.stack([gradients[m].flatten() for m in here])
    torch.testing.assert_close(weighting.grams[0], flat @ flat.T)
    assert fork.last_weights[place] == 1  # an overflow is passed on
    torch.testing.assert_close(fork.last_weights[here], flat.norm(dim=1).reciprocal())


def test_where_no_task_is_present_nothing_is_asked():
    fork = Weighted(2, weighting := Seen())
    assert feed(fork, [torch.zeros(3), torch.zeros(3)]).tolist() == [0.0] * 3
    assert weighting.grams == []


@pytest.mark.parametrize("weighting", [MGDAWeighting(), UPGradWeighting(), IMTLGWeighting()], ids=repr)
def test_torchjd_weightings_weigh_at_the_fork_as_by_themselves(weighting):
    gradients = [10.0**m * random(m, 40) for m in range(3)] + [torch.zeros(40)]
    fork = Weighted(4, weighting)
    feed(fork, gradients)
    rows = torch.stack(gradients[:3])
    torch.testing.assert_close(fork.last_weights[:3], weighting(rows @ rows.T), rtol=1e-3, atol=1e-4)


def test_mgda_is_the_point_of_least_norm():
    gradients = [random(m, 40) for m in range(3)]
    fork = Weighted(3, MGDAWeighting(epsilon=1e-6, max_iters=2000))
    feed(fork, gradients)
    torch.testing.assert_close(fork.last_weights, min_norm_weights(fork.last_gram), atol=1e-3, rtol=0)


def test_fixed_numbers_weigh_whoever_is_present():
    fork = Weighted(["a", "b", "c"], [0.5, -2, 3.0])
    gradients = [random(m, 4) for m in range(3)]
    torch.testing.assert_close(feed(fork, gradients), 0.5 * gradients[0] - 2 * gradients[1] + 3 * gradients[2])
    torch.testing.assert_close(feed(fork, [gradients[0], None, gradients[2]]), 0.5 * gradients[0] + 3 * gradients[2])


def test_fixed_numbers_compile_whole():
    fork = Weighted(2, [0.5, 3.0])
    z = torch.zeros(4, requires_grad=True)
    step = torch.compile(
        lambda z: sum(k * branch.sum() for k, branch in enumerate(fork(z), 1)), fullgraph=True, backend="aot_eager"
    )
    step(z).backward()
    assert z.grad.tolist() == [6.5] * 4


def test_a_module_is_a_part_of_the_fork():
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, gram: Tensor) -> Tensor:
            self.calls += 1
            return torch.ones_like(gram[0])

    fork = Weighted(2, Learned())
    feed(fork, [random(0, 3), random(1, 3)])
    other = Weighted(2, Learned())
    other.load_state_dict(fork.state_dict())
    assert other.weighting.calls == 1
    assert copy.deepcopy(fork).weighting.calls == 1


@pytest.mark.parametrize("weighting", [[1.0], [1.0, "2"], [1.0, float("nan")], 3.0, None, "equal"])
def test_what_is_no_weighting_is_refused(weighting):
    with pytest.raises(ValueError, match=r"a function of the Gram matrix, or a list of 2 finite numbers.*a, b; found"):
        Weighted(["a", "b"], weighting)


@pytest.mark.parametrize(
    ("found", "said"), [(torch.ones(3), r"\[3\]"), (torch.ones(2, 1), r"\[2, 1\]"), (0.5, "float")]
)
def test_weights_of_another_shape_are_refused(found, said):
    with pytest.raises(ValueError, match=rf"one weight per present task.*shape \[2\].*found {said}"):
        feed(Weighted(3, lambda _: found), [random(0, 3), random(1, 3), None])


def test_repr_says_the_weights():
    fork = Weighted(["a", "b"], [0.5, 1.5])
    assert eval(repr(fork)).weighting == (0.5, 1.5)
