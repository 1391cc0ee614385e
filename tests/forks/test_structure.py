"""Inputs of a fork besides plain tensors: None, plain values, packed sequences, other layouts."""

import enum
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from equipoise.forks import GradDrop, MultiBalance
from tests.forks.fork_gradients import Fixed, leaf, random


class Kind(enum.Enum):
    WIDE = 1


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.5,
        1j,
        "mean",
        b"x",
        Kind.WIDE,
        torch.float32,
        torch.device("cpu"),
        torch.Size([2]),
        slice(2),
        {},
    ],
    ids=repr,
)
def test_plain_values_pass_through_as_they_are(value):
    z = leaf(3, 2)
    branches = Fixed([2.0, 3.0])({"z": z, "extra": value, "more": [value, None]})
    assert all(branch["extra"] == value for branch in branches)
    assert all(branch["more"] == [value, None] for branch in branches)
    sum(branch["z"].sum() for branch in branches).backward()
    assert z.grad.tolist() == [[5.0, 5.0]] * 3


def test_an_object_that_might_hide_tensors_is_refused_and_taken_once_it_is_registered():
    @dataclass
    class Hidden:
        z: Tensor

    z = leaf(3)
    with pytest.raises(TypeError, match=r"found Hidden, of which it cannot say.*register_pytree_node"):
        Fixed([1.0, 1.0])((z, Hidden(z)))
    pytree.register_pytree_node(Hidden, lambda h: ([h.z], None), lambda parts, _: Hidden(*parts))
    branches = Fixed([2.0, 3.0])(Hidden(z))
    sum(branch.z.sum() for branch in branches).backward()
    assert z.grad.tolist() == [5.0] * 3


SEQUENCES = [random(m, length, 2) for m, length in enumerate((3, 5, 1))]
PACKED = {
    "sorted by PyTorch": lambda z: pack_sequence([part * z for part in SEQUENCES], enforce_sorted=False),
    "sorted by the caller": lambda z: pack_sequence([SEQUENCES[m] * z for m in (1, 0, 2)]),
    "padded": lambda z: pack_padded_sequence(
        nn.utils.rnn.pad_sequence(SEQUENCES, batch_first=True) * z, [3, 5, 1], batch_first=True, enforce_sorted=False
    ),
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_sequences_are_forked_by_their_data(kind):
    z = leaf(2, seed=9)
    fork = Fixed([2.0, 3.0])
    packed = PACKED[kind](z)
    branches = fork(packed)
    for branch in branches:
        assert isinstance(branch, PackedSequence)
        for name in ("data", "batch_sizes", "sorted_indices", "unsorted_indices"):
            found, expected = getattr(branch, name), getattr(packed, name)
            assert (found is None) == (expected is None)
            assert expected is None or torch.equal(found, expected)
    cell = nn.GRU(2, 4)
    (cell(branches[0])[0].data.sum() + pad_packed_sequence(branches[1])[0].square().sum()).backward()
    other = z.detach().clone().requires_grad_()
    (
        2 * cell(PACKED[kind](other))[0].data.sum() + 3 * pad_packed_sequence(PACKED[kind](other))[0].square().sum()
    ).backward()
    torch.testing.assert_close(z.grad, other.grad)


def test_a_packed_sequence_beside_others_and_one_that_needs_no_gradient():
    z = leaf(2)
    constant = pack_sequence(SEQUENCES, enforce_sorted=False)
    branches = Fixed([1.0, 1.0])([z, {"history": constant}])
    assert all(branch[1]["history"] is constant for branch in branches)


# --- layouts -------------------------------------------------------------------------------------------

LAYOUTS = {
    "channels last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(0, 3).contiguous().transpose(0, 3),
    "a slice": lambda g: torch.cat([g, g], dim=-1)[..., : g.shape[-1]],
    "a stride of two": lambda g: torch.stack([g, g], dim=-1)[..., 0],
    "contiguous": lambda g: g,
}


@pytest.mark.parametrize("tasks", [2, 6])
@pytest.mark.parametrize("of_z", ["contiguous", "channels last", "transposed"])
@pytest.mark.parametrize("fork", [MultiBalance, GradDrop])
def test_gradients_of_any_layout_are_balanced_as_contiguous_ones(fork, of_z, tasks):
    gradients = [random(m, 2, 3, 4, 5) for m in range(tasks)]
    expected, found = (torch.zeros(2, 3, 4, 5, requires_grad=True) for _ in range(2))
    torch.autograd.backward(list(fork(tasks)(expected)), gradients)
    z = LAYOUTS[of_z](found)
    mixed = [list(LAYOUTS.values())[m % len(LAYOUTS)](gradient) for m, gradient in enumerate(gradients)]
    assert tasks < len(LAYOUTS) or len({gradient.stride() for gradient in mixed}) == len(LAYOUTS)
    torch.autograd.backward(list(fork(tasks)(z)), mixed)
    torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.parametrize("tasks", [2, 6])
def test_expanded_gradients_count_every_element(tasks):
    fork = Fixed([2.0] * tasks)
    z = torch.zeros(4, 3, requires_grad=True)
    torch.autograd.backward(list(fork(z)), [torch.tensor(float(m + 1)).expand(4, 3) for m in range(tasks)])
    numbers = torch.arange(1.0, tasks + 1)
    torch.testing.assert_close(fork.last_gram, 12 * torch.outer(numbers, numbers))
    torch.testing.assert_close(z.grad, torch.full((4, 3), 2 * numbers.sum().item()))


@pytest.mark.parametrize("moved", ["the input", "the model"])
def test_a_model_brought_to_channels_last_trains_as_before(moved):
    class Convolved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.bottom = nn.Conv2d(3, 4, 3, padding=1)
                self.towers = nn.ModuleList(nn.Conv2d(4, 1, 1) for _ in range(3))
            self.fork = MultiBalance(3)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [
                10.0**m * tower(z).square().mean()
                for m, (tower, z) in enumerate(zip(self.towers, self.fork(self.bottom(x).relu()), strict=True))
            ]

    plain, model = Convolved(), Convolved()
    x = random(1, 2, 3, 6, 6)
    y = x.to(memory_format=torch.channels_last) if moved == "the input" else x
    if moved == "the model":
        model.to(memory_format=torch.channels_last)
    for _ in range(2):
        sum(plain(x)).backward()
        sum(model(y)).backward()
    torch.testing.assert_close(model.bottom.weight.grad, plain.bottom.weight.grad)
    torch.testing.assert_close(model.fork.averages, plain.fork.averages)
