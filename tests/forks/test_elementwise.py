"""Elementwise forks, and GradDrop as one: against the formula, torchjd's form, and itself over runs and checkpoints."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import GradDrop as Reference

from equipoise.forks import Elementwise, GradDrop
from equipoise.forks.elementwise import _uniform
from tests.forks.fork_gradients import feed, leaf, random

# Torch warns about itself while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


class Largest(Elementwise):
    """Keeps, of each element, the gradient of the largest size; remembers its arguments."""

    def combine(self, gradients: Tensor, present: Tensor, /) -> Tensor:
        self.told = gradients, present
        return gradients.gather(0, gradients.abs().argmax(0, keepdim=True)).squeeze(0)


def test_combine_says_what_flows_on():
    fork = Largest(3)
    gradients = [torch.tensor([1.0, -4.0]), torch.tensor([-2.0, 3.0]), torch.tensor([0.5, 0.5])]
    assert feed(fork, gradients).tolist() == [-2.0, -4.0]
    assert fork.last_present.all()
    torch.testing.assert_close(fork.last_gram.diagonal(), torch.tensor([17.0, 13.0, 0.5]))


def test_all_pieces_of_a_structure_are_combined_at_once_and_keep_their_shapes_and_dtypes():
    fork = Largest(2)
    a, b = leaf(2, 3), leaf(4, seed=1, dtype=torch.bfloat16)
    (a0, b0), (_, b1) = fork((a, b))
    (2 * a0.sum() + (3 * b0).sum() - (5 * b1).sum()).backward()
    assert fork.told[0].shape == (2, 10)
    assert a.grad.tolist() == [[2.0] * 3] * 2
    assert b.grad.tolist() == [-5.0] * 4
    assert b.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_task_that_is_not_present_is_no_part_of_it_and_passed_on(bad):
    fork = Largest(3)
    found = feed(fork, [torch.tensor([1.0, -4.0, 2.0]), torch.tensor([9.0, bad, 9.0]), None])
    assert fork.told[1].tolist() == [True, False, False]
    assert fork.told[0][1:].count_nonzero() == 0
    assert not found[1].isfinite()  # a GradScaler sees it


def test_combine_must_be_written():
    with pytest.raises(NotImplementedError, match="combine"):
        feed(Elementwise(2), [random(0, 3), random(1, 3)])


@quick
@given(seed=st.integers(0, 1000), count=st.integers(1, 5), leak=st.floats(0, 1), steps=st.integers(1, 3))
def test_graddrop_is_torchjds_for_the_same_draws(seed, count, leak, steps):
    fork = GradDrop(count, leak=leak, seed=seed)
    for step in range(steps):
        gradients = [random(seed + 10 * step + m, 6, 5) for m in range(count)]
        found = feed(fork, gradients)
    uniform = uniform_of(fork, 30)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "rand", lambda *_, **__: uniform)
        expected = Reference(leak=torch.full((count,), leak))(torch.stack([g.flatten() for g in gradients]))
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-6)


def uniform_of(fork: GradDrop, count: int) -> Tensor:
    return _uniform(fork.draws, count, fork.seed, 0)


def test_draws_are_uniform_and_differ_between_steps_seeds_and_ranks():
    samples = [_uniform(torch.tensor(step), 20_000, *keys) for step in (1, 2) for keys in ((0, 0), (0, 1), (1, 0))]
    for sample in samples:
        assert sample.dtype == torch.float32
        assert ((sample >= 0) & (sample < 1)).all()
        histogram = sample.histc(20, 0, 1)
        assert ((histogram - 1000).square() / 1000).sum() < 45  # χ² of 19 degrees of freedom: beyond 45 in 1 of 1000
    correlations = torch.corrcoef(torch.stack(samples)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.03
    assert torch.corrcoef(torch.stack([samples[0][:-1], samples[0][1:]]))[0, 1].abs() < 0.03


def test_a_task_against_another_prevails_as_often_as_its_share():
    z = torch.zeros(20_000, requires_grad=True)
    for_one, for_other = GradDrop(2)(z)
    (3 * for_one.sum() - for_other.sum()).backward()
    assert set(z.grad.tolist()) == {3.0, -1.0}
    assert (z.grad > 0).float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_a_leak_of_one_is_the_plain_sum_and_one_task_alone_passes_whole():
    gradients = [random(m, 4, 3) for m in range(3)]
    torch.testing.assert_close(feed(GradDrop(3, leak=1.0), gradients), sum(gradients))
    assert torch.equal(feed(GradDrop(3), [gradients[0], None, None]), gradients[0])
    partly = feed(GradDrop(3, leak=[1.0, 0.0, 0.0]), [gradients[0], -1e6 * gradients[0], torch.zeros(4, 3)])
    assert ((partly == gradients[0]) | (partly < -1e5 * gradients[0].abs()) | (partly > 1e5 * gradients[0].abs())).all()


def test_a_run_repeats_itself_and_goes_on_from_a_checkpoint():
    gradients = [[random(10 * step + m, 50) for m in range(2)] for step in range(4)]
    one, two = GradDrop(2, seed=3), GradDrop(2, seed=3)
    found = [feed(one, step) for step in gradients]
    assert all(torch.equal(feed(two, step), expected) for step, expected in zip(gradients[:2], found[:2], strict=True))
    resumed = GradDrop(2, seed=3)
    resumed.load_state_dict(copy.deepcopy(two.state_dict()))
    assert all(torch.equal(feed(resumed, s), expected) for s, expected in zip(gradients[2:], found[2:], strict=True))
    before = torch.get_rng_state()
    feed(one, gradients[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_graddrop_compiles_whole_with_the_same_draws():
    plain, compiled = GradDrop(2), GradDrop(2)
    gradients = [random(m, 4, 3) for m in range(2)]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(z: Tensor) -> Tensor:
        return sum((branch * g).sum() for branch, g in zip(compiled(z), gradients, strict=True))

    for _ in range(2):
        z = torch.zeros(4, 3, requires_grad=True)
        step(z).backward()
        torch.testing.assert_close(z.grad, feed(plain, gradients))


@pytest.mark.parametrize("leak", [-0.1, 1.5, [0.5], [0.5, 2.0], float("nan")])
def test_leaks_out_of_range_are_refused(leak):
    with pytest.raises(ValueError, match=r"leak must be a number in \[0, 1\], or 2 of them"):
        GradDrop(["a", "b"], leak=leak)


def test_repr_reads_like_the_constructor():
    fork = eval(repr(GradDrop(["a", "b"], leak=0.25, seed=7)))
    assert (fork.leak, fork.seed) == ([0.25, 0.25], 7)
