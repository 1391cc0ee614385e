"""The last shared layer of the ranking models and of graphs made by hand; graphs that do not say which it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from equipoise.optim.last_layer import (
    HiddenLayersError,
    NoLastLayerError,
    last_shared_layer,
    refuse_what_goes_past,
)
from equipoise.ranking.models import build_model
from equipoise.schema import Categorical, Numeric, Schema, Task

SCHEMA = Schema([Categorical("user", 9), Categorical("item", 7)], [Numeric("age")], [Task("click"), Task("buy")])
BOTH = ("weight", "bias")
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def names(model: nn.Module, losses: list[Tensor], shared: list[nn.Parameter]) -> list[str]:
    found = {id(p) for p in last_shared_layer(losses, shared)}
    return [name for name, p in model.named_parameters() if id(p) in found]


@pytest.mark.parametrize(
    ("model", "options", "layer"),
    [
        ("shared-bottom", {"bottom": (8, 5)}, ["bottom.2.weight", "bottom.2.bias"]),
        ("shared-bottom", {"bottom": ()}, ["embedding.table.weight"]),
        ("mmoe", {"experts": 2, "expert": (6, 5)}, [f"experts.{e}.2.{part}" for e in (0, 1) for part in BOTH]),
        ("ple", {"expert": (6, 5)}, [f"top_experts.{e}.2.{part}" for e in (0, 1) for part in BOTH]),
    ],
)  # fmt: skip
def test_the_last_shared_layer_of_the_ranking_models(model, options, layer):
    built = build_model(model, SCHEMA, **options)
    outputs = built(torch.tensor([[3, 1], [5, 2]]), torch.ones(2, 1))
    losses = [output.sum() for output in outputs]
    assert names(built, losses, list(built.shared_parameters())) == layer
    assert names(built, losses[1:], list(built.shared_parameters())) == layer  # one task alone shows it


class Made(nn.Module):
    """Layers a, b, c between an input and two towers, put together by ``forward``."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.shared = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"} | layers)
        self.towers = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
        self._forward = forward

    def losses(self) -> list[Tensor]:
        z = self._forward(self.shared, X)
        return [tower(z).square().mean() for tower in self.towers]


def looped(layers: nn.ModuleDict, x: Tensor) -> Tensor:
    state = layers["a"](x)
    for _ in range(3):
        state = layers["b"](state.tanh())
    return state


def multiplied(layers: nn.ModuleDict, x: Tensor) -> Tensor:
    a, b, c = (layers[name].weight for name in "abc")
    return nn.functional.linear(nn.functional.linear(x, a).tanh(), b * c)


SCALE = "parametrizations.weight.original"
GRAPHS = {
    "one after the other": (lambda s, x: s["c"](s["b"](s["a"](x)).relu()).relu(), {}, {"c": BOTH}),
    "side by side": (lambda s, x: s["c"](s["a"](x)) + s["b"](s["a"](x)), {}, {"b": BOTH, "c": BOTH}),
    "residual": (lambda s, x: (h := s["a"](x)) + s["b"](h.relu()), {}, {"b": BOTH}),
    "past the layer above": (lambda s, x: (h := s["a"](x)) * torch.sigmoid(s["b"](h)), {}, {"b": BOTH}),
    "normalised": (lambda s, x: s["n"](s["b"](s["a"](x))), {"n": nn.LayerNorm(4)}, {"b": BOTH, "n": BOTH}),
    "recurrent": (looped, {}, {"b": BOTH}),
    "several weights in one": (multiplied, {}, {"b": ("weight",), "c": ("weight",)}),
    "a matrix of its own": (
        lambda s, x: s["n"](s["a"](x)),
        {"n": weight_norm(nn.Linear(4, 4))},
        {"n": ("bias", f"{SCALE}0", f"{SCALE}1")},
    ),
    "convolved": (
        lambda s, x: s["n"](s["a"](x).view(8, 1, 4)).mean(1),
        {"n": nn.Conv1d(1, 3, 3, padding=1)},
        {"n": BOTH},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_what_no_shared_matrix_stands_above_is_the_last_layer(name):
    forward, layers, expected = GRAPHS[name]
    model = Made(forward, **layers)
    found = names(model, model.losses(), list(model.shared.parameters()))
    assert sorted(found) == sorted(f"shared.{layer}.{part}" for layer, parts in expected.items() for part in parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses()
    assert names(model, losses, list(model.shared.parameters())) == found


def goes_past(losses: list[Tensor], shared: list[nn.Parameter], layer: list[nn.Parameter]) -> bool:
    try:
        refuse_what_goes_past(losses, shared, layer)
    except NoLastLayerError:
        return True
    return False


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("model", "past"), [("shared-bottom", False), ("mmoe", True), ("ple", True)])
def test_paths_go_past_the_last_layer_of_models_with_gates(model, past, scaled):
    built, temperature = build_model(model, SCHEMA), nn.Parameter(torch.ones(()))
    losses = [output.sum() for output in built(torch.tensor([[3, 1], [5, 2]]), torch.ones(2, 1))]
    shared = list(built.shared_parameters())
    if scaled:  # a scalar that all tasks share stops no path
        losses, shared = [loss / temperature for loss in losses], [*shared, temperature]
    assert goes_past(losses, shared, last_shared_layer(losses, shared)) == past


class AddsItsInput(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight):
        context.save_for_backward(weight)
        return x @ weight + x

    @staticmethod
    def backward(context, grad):
        (weight,) = context.saved_tensors
        return grad @ weight.T + grad, torch.zeros_like(weight)


PAST = {
    "residual, normalised": (lambda s, x: s["n"]((h := s["a"](x)) + s["b"](h.relu())), {"n": nn.LayerNorm(4)}),
    "residual, then a bias": (lambda s, x: ((h := s["a"](x)) @ s["b"].weight + h) + s["b"].bias, {}),
    "one product that adds": (lambda s, x: torch.addmm(h := s["a"](x), h, s["b"].weight), {}),
    "a custom function": (lambda s, x: AddsItsInput.apply(s["a"](x), s["b"].weight), {}),
}


@pytest.mark.parametrize("name", [*GRAPHS, *PAST])
def test_paths_go_past_the_last_layer_in_residual_graphs_alone(name):
    forward, layers = (GRAPHS | PAST)[name][:2]
    model = Made(forward, **layers)
    losses, shared = model.losses(), list(model.shared.parameters())
    past = name in {*PAST, "residual", "past the layer above"}
    assert goes_past(losses, shared, last_shared_layer(losses, shared)) == past


def test_a_task_with_a_part_of_the_embedding_of_its_own_goes_past():
    table, bottom = nn.Embedding(5, 4), nn.Linear(4, 4)
    rows = table(torch.tensor([0, 1]))
    losses = [bottom(rows).sum(), (bottom(rows).sum(1) * rows[:, 0]).sum()]
    layer = [*bottom.parameters()]
    assert not goes_past(losses[:1], [table.weight, *layer], layer)
    assert goes_past(losses, [table.weight, *layer], layer)
    assert not goes_past(losses, layer, layer)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own look
def test_a_compiled_layer_hides_what_goes_past_it_unless_nothing_else_is_shared():
    model = Made(lambda s, x: torch.compile(s["b"], backend="aot_eager")(s["a"](x)))
    losses, layer = model.losses(), [*model.shared["b"].parameters()]
    with pytest.raises(HiddenLayersError, match=r"torch.compile hides whether paths .* go past"):
        refuse_what_goes_past(losses, [*model.shared["a"].parameters(), *layer], layer)
    refuse_what_goes_past(losses, layer, layer)


def test_a_scale_of_one_row_is_a_vector():
    bottom, scale = nn.Linear(4, 4), nn.Parameter(torch.ones(1, 4))
    losses = [(bottom(X).relu() * scale).sum()]
    assert last_shared_layer(losses, [*bottom.parameters(), scale]) == [*bottom.parameters(), scale]


def test_towers_and_what_is_frozen_hide_nothing():
    model = Made(GRAPHS["one after the other"][0])
    for p in model.shared["c"].parameters():
        p.requires_grad_(False)
    assert names(model, model.losses(), list(model.shared.parameters())) == ["shared.b.weight", "shared.b.bias"]
    lower = [*model.shared["a"].parameters()]
    assert names(model, model.losses(), lower) == ["shared.a.weight", "shared.a.bias"]
    assert last_shared_layer([], lower) == []


def test_a_compiled_graph_hides_which_of_several_layers_is_the_last():
    model = Made(lambda s, x: torch.compile(nn.Sequential(s["a"], s["b"]), backend="aot_eager")(x))
    message = "torch.compile hides .* the last: 2 shared weight matrices enter compiled graphs together"
    with pytest.raises(HiddenLayersError, match=message):
        last_shared_layer(model.losses(), list(model.shared.parameters()))
    model = Made(lambda s, x: s["c"](torch.compile(nn.Sequential(s["a"], s["b"]), backend="aot_eager")(x)))
    assert names(model, model.losses(), list(model.shared.parameters())) == ["shared.c.weight", "shared.c.bias"]


def test_matrices_in_a_ring_have_no_last_one():
    a, b, c = (nn.Parameter(torch.eye(2)) for _ in range(3))
    x = torch.ones(1, 2)
    losses = [((x @ low) @ high).sum() for low, high in ((a, b), (b, c), (c, a))]
    with pytest.raises(NoLastLayerError, match="each shared parameter stands below another weight matrix"):
        last_shared_layer(losses, [a, b, c])
