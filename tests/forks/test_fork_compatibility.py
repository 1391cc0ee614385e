"""A model with a fork works unchanged under compile, AMP, accumulation, checkpointing, sparse embeddings."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from equipoise.forks.multibalance import MultiBalance

# Torch warns about itself while it compiles: deprecated torch.jit, instances of autograd.Function, …
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]

LEARNING_RATE = 1e-4
MODES = [("equal", "cosine"), ("own", "gram")]


class Ranker(nn.Module):
    """Two tasks over a shared bottom, one loss a thousand times the other; returns the losses."""

    def __init__(self, bottom: nn.Module | None = None, **options):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.bottom = nn.Sequential(nn.Linear(6, 8), nn.Tanh()) if bottom is None else bottom
            self.click = nn.Linear(8, 1)
            self.like = nn.Linear(8, 1)
        self.fork = MultiBalance(["click", "like"], **({"beta": 0.1} | options))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for_click, for_like = self.fork(self.bottom(x))
        return (self.click(for_click) - 1).square().mean(), 1e3 * (self.like(for_like) + 2).square().mean()


def batches(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=generator) for _ in range(count)]


def train(model: nn.Module, call=None, *, steps: list[Tensor] | None = None) -> nn.Module:
    """Train in the plain loop; `call` is the wrapped model."""
    call = model if call is None else call
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for x in batches() if steps is None else steps:
        optimizer.zero_grad()
        sum(call(x)).backward()
        optimizer.step()
    return model


def assert_same(found: nn.Module, expected: nn.Module, **tolerance) -> None:
    """Assert equal parameters, equal state of the forks and equal last steps."""
    pairs = zip(found.state_dict().items(), expected.state_dict().items(), strict=True)
    for (name, a), (_, b) in pairs:
        torch.testing.assert_close(a, b, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    for name in ("last_gram", "last_weights", "last_present"):
        a, b = getattr(found.fork, name), getattr(expected.fork, name)
        torch.testing.assert_close(a, b, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def compiled():
    """Compile a model, with nothing left over from other tests."""
    torch._dynamo.reset()
    yield lambda model, backend: torch.compile(model, fullgraph=True, backend=backend)
    torch._dynamo.reset()


# --- torch.compile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "magnitude", "direction"),
    [("inductor", "equal", "cosine"), ("aot_eager", "equal", "cosine"), ("aot_eager", "own", "gram")],
)
def test_torch_compile_trains_as_eager_does(compiled, backend, magnitude, direction):
    eager = train(Ranker(magnitude=magnitude, direction=direction))
    model = Ranker(magnitude=magnitude, direction=direction)
    train(model, compiled(model, backend))
    assert_same(model, eager, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.fork.averages, torch.zeros(2, 2))


def test_torch_compile_knows_absent_tasks(compiled):
    eager, model = Ranker(), Ranker()
    call = compiled(model, "aot_eager")
    for step, x in enumerate(batches()):
        for losses in (eager(x), call(x)):
            (losses[0] if step == 2 else sum(losses)).backward()
    assert_same(model, eager, rtol=1e-4, atol=1e-5)
    # On a CPU the compiled weights are float32's, the eager ones float64's.
    torch.testing.assert_close(model.bottom[0].weight.grad, eager.bottom[0].weight.grad, rtol=1e-4, atol=1e-5)


def test_torch_compile_bears_several_forwards_before_a_backward(compiled):
    eager, model = Ranker(), Ranker()
    call = compiled(model, "aot_eager")
    first, second = batches(2)
    (sum(eager(first)) + sum(eager(second))).backward()
    (sum(call(first)) + sum(call(second))).backward()
    assert_same(model, eager, rtol=1e-4, atol=1e-5)
    # On a CPU the compiled weights are float32's, the eager ones float64's.
    torch.testing.assert_close(model.bottom[0].weight.grad, eager.bottom[0].weight.grad, rtol=1e-4, atol=1e-5)


def test_torch_compile_passes_eval_by(compiled):
    model = Ranker().eval()
    before = copy.deepcopy(model)
    call = compiled(model, "aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(call(batches()[0]), before(batches()[0]))
    assert_same(model, before)


def test_torch_compile_under_autocast_keeps_the_statistics_in_float32(compiled):
    eager, model = Ranker(), Ranker()
    call = compiled(model, "aot_eager")
    for x in batches(3):
        for run in (eager, call):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = run(x)
            sum(losses).backward()
    assert_same(model, eager, rtol=1e-5, atol=1e-5)


def test_torch_compile_with_a_grad_scaler_keeps_the_averages_unscaled(compiled):
    eager, model = Ranker(), Ranker()
    call = compiled(model, "aot_eager")
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for x in batches():
        optimizer.zero_grad()
        scaler.scale(sum(call(x))).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 256.0 * 2**5
    assert_same(model, train(eager), rtol=1e-4, atol=1e-5)


# --- mixed precision -------------------------------------------------------------------------------------


def autocast_step(model: nn.Module, x: Tensor, *, backward_inside: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(x)
        if backward_inside:
            sum(losses).backward()
    if not backward_inside:
        sum(losses).backward()


def test_autocast_gives_nearly_the_weights_of_float32():
    plain, mixed = Ranker(), Ranker()
    for x in batches(3):
        sum(plain(x)).backward()
        autocast_step(mixed, x, backward_inside=False)
    assert mixed.fork.averages.dtype == mixed.fork.last_gram.dtype == torch.float32
    assert_same(mixed, plain, rtol=0.05, atol=0.01)
    assert not torch.equal(mixed.fork.last_gram, plain.fork.last_gram)  # autocast was at work


def test_statistics_do_not_depend_on_where_autocast_ends():
    outside, inside = Ranker(), Ranker()
    for x in batches(3):
        autocast_step(outside, x, backward_inside=False)
        autocast_step(inside, x, backward_inside=True)
    assert_same(inside, outside, rtol=1e-5, atol=1e-6)


def train_scaled(model: nn.Module, scaler: torch.amp.GradScaler, steps: list[Tensor], scale=None) -> list[float]:
    """Train in the usual loop with a GradScaler; return the scales of all steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    scales = []
    for x in steps:
        optimizer.zero_grad()
        losses = model(x)
        scaled = scaler.scale(sum(losses)) if scale is None else scale(scaler, losses)
        scaled.backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


HOW_TO_SCALE = {
    "the sum": None,
    "a list": lambda scaler, losses: sum(scaler.scale(list(losses))),
    "a generator": lambda scaler, losses: sum(scaler.scale(loss for loss in losses)),
    "each": lambda scaler, losses: scaler.scale(losses[0]) + scaler.scale(losses[1]),
}


@pytest.mark.parametrize("how", HOW_TO_SCALE)
@pytest.mark.parametrize(("magnitude", "direction"), MODES)
def test_a_grad_scaler_changes_nothing_while_its_scale_grows(how, magnitude, direction):
    plain = train(Ranker(magnitude=magnitude, direction=direction))
    scaled = Ranker(magnitude=magnitude, direction=direction)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    scales = train_scaled(scaled, scaler, batches(), HOW_TO_SCALE[how])
    assert scales == [1024.0, 2048.0, 2048.0, 4096.0, 4096.0]
    assert_same(scaled, plain, rtol=1e-5, atol=1e-6)


def test_a_step_that_overflows_is_skipped_and_leaves_no_trace():
    steps = batches()
    spoilt = [*steps[:2], torch.full((16, 6), torch.nan), *steps[2:]]
    plain, scaled = train(Ranker(), steps=steps), Ranker()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, backoff_factor=0.5)
    assert train_scaled(scaled, scaler, spoilt) == [1024.0, 1024.0, 512.0, 512.0, 512.0, 512.0]
    assert_same(scaled, plain, rtol=1e-5, atol=1e-6)


def test_an_overflow_of_one_task_is_seen_by_the_scaler_and_spares_that_tasks_state():
    model = Ranker()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train_scaled(model, scaler, batches(2))
    before = copy.deepcopy(model)
    optimizer.zero_grad()
    for_click, for_like = model(batches()[2])
    scaler.scale(for_click + for_like * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert not torch.isfinite(model.bottom[0].weight.grad).all()
    assert torch.equal(model.bottom[0].weight, before.bottom[0].weight)
    assert torch.equal(model.fork.averages[:, 1], before.fork.averages[:, 1])
    assert torch.equal(model.fork.balance[1], before.fork.balance[1])
    assert torch.isfinite(model.fork.averages).all()


def test_a_grad_scaler_that_has_grown_large_does_not_switch_balancing_off():
    plain, scaled = Ranker(), Ranker()
    x = batches()[0]
    sum(plain(x)).backward()
    # Gradients times 2^66 are far from the end of float32, their squares are beyond it.
    torch.amp.GradScaler("cpu", init_scale=2.0**66).scale(sum(scaled(x))).backward()
    assert torch.isfinite(scaled.bottom[0].weight.grad).all()
    assert_same(scaled, plain, rtol=1e-5, atol=1e-6)


def test_a_disabled_grad_scaler_changes_nothing():
    plain, scaled = train(Ranker()), Ranker()
    train_scaled(scaled, torch.amp.GradScaler("cpu", enabled=False), batches())
    assert_same(scaled, plain, rtol=0, atol=0)


def test_a_backward_without_the_scaler_is_not_divided_even_after_one_that_failed():
    plain, model = Ranker(), Ranker()
    x = batches()[0]
    sum(plain(x)).backward()

    def stop(_: Tensor) -> None:
        raise ValueError("somebody's hook")

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = model(x)
    losses[0].register_hook(stop)
    with pytest.raises(ValueError, match="somebody's hook"):
        scaler.scale(sum(losses)).backward()
    sum(model(x)).backward()
    assert_same(model, plain, rtol=0, atol=0)


# --- accumulation and checkpointing ----------------------------------------------------------------------


def test_gradient_accumulation_adds_up_balanced_gradients():
    accumulated, separate = Ranker(), Ranker()
    total = torch.zeros(8, 6)
    for x in batches(4):
        (sum(accumulated(x)) / 4).backward()
        separate.zero_grad()
        (sum(separate(x)) / 4).backward()
        total += separate.bottom[0].weight.grad
    torch.testing.assert_close(accumulated.bottom[0].weight.grad, total)
    assert_same(accumulated, separate, rtol=0, atol=0)
    torch.testing.assert_close(accumulated.fork.averages[1], torch.full((2,), 1 - 0.99**4))


class Checkpointed(Ranker):
    def __init__(self, where: str, **options):
        super().__init__(**options)
        self.where = where

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.where == "around the model":
            return checkpoint(super().forward, x, use_reentrant=False)
        if self.where == "below the fork":
            z = checkpoint(self.bottom, x, use_reentrant=False)
            for_click, for_like = self.fork(z)
        else:
            for_click, for_like = self.fork(self.bottom(x))
        click, like = self.click, self.like
        if self.where == "above the fork":
            return (
                checkpoint(lambda z: (click(z) - 1).square().mean(), for_click, use_reentrant=False),
                checkpoint(lambda z: 1e3 * (like(z) + 2).square().mean(), for_like, use_reentrant=False),
            )
        return (click(for_click) - 1).square().mean(), 1e3 * (like(for_like) + 2).square().mean()


@pytest.mark.parametrize("where", ["around the model", "below the fork", "above the fork"])
def test_activation_checkpointing_changes_nothing(where):
    assert_same(train(Checkpointed(where)), train(Ranker()), rtol=0, atol=0)


# --- bottoms ---------------------------------------------------------------------------------------------


class Ids(nn.Module):
    """Embeds three ids an example, taken from the signs of the input."""

    def __init__(self, *, sparse: bool):
        super().__init__()
        self.table = nn.Embedding(8, 8, sparse=sparse)
        with torch.no_grad():
            self.table.weight.copy_(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x[:, :3] > 0).long() + torch.tensor([0, 2, 4])).sum(1).tanh()


def test_sparse_embedding_gradients_are_those_of_a_dense_table():
    sparse, dense = Ranker(Ids(sparse=True)), Ranker(Ids(sparse=False))
    sum(sparse(batches()[0])).backward()
    sum(dense(batches()[0])).backward()
    assert sparse.bottom.table.weight.grad.is_sparse
    torch.testing.assert_close(sparse.bottom.table.weight.grad.to_dense(), dense.bottom.table.weight.grad)
    assert_same(train(sparse), train(dense), rtol=1e-5, atol=1e-5)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.cell = kind(2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.reshape(-1, 3, 2))[0][:, -1]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_bottoms_learn(kind):
    model = Ranker(Recurrent(kind))
    x = batches()[0]
    weight = model.bottom.cell.weight_ih_l0
    sum(model(x)).backward()
    weights = model.fork.last_weights
    plain = copy.deepcopy(model).eval()  # no fork: one backward per task gives the gradients to be weighed
    separate = [torch.autograd.grad(loss, plain.bottom.cell.weight_ih_l0)[0] for loss in (plain(x)[0], plain(x)[1])]
    torch.testing.assert_close(weight.grad, weights[0] * separate[0] + weights[1] * separate[1])
    before = weight.detach().clone()
    train(model)
    assert not torch.equal(weight, before)


def test_with_overlap_a_step_has_the_weights_that_the_step_before_would_have_had_without():
    """Tested compiled too, and with a copy of the model between two steps."""

    def train(fork: MultiBalance, compiled: bool = False) -> list[Tensor]:
        call = torch.compile(fork, backend="eager", fullgraph=True) if compiled else fork
        found = []
        for step in range(4):
            shared = torch.zeros(5, requires_grad=True)
            gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
            sum((branch * g).sum() for branch, g in zip(call(shared), gradients, strict=True)).backward()
            found.append(fork.last_weights.clone())
            if not compiled:
                call = fork = copy.deepcopy(fork)
        return found

    plain = train(MultiBalance(3))
    for late in (train(MultiBalance(3, overlap=True)), train(MultiBalance(3, overlap=True), compiled=True)):
        torch.testing.assert_close(late, [torch.ones(3), *plain[:-1]])


def test_with_overlap_a_task_that_comes_and_goes_keeps_the_weight_it_last_had():
    def last_weights(overlap: bool) -> list[Tensor]:
        fork, generator, found = MultiBalance(2, gamma=0.1, overlap=overlap), torch.Generator().manual_seed(0), []
        for step in range(40):
            shared = torch.randn(16, 4, generator=generator, requires_grad=True)
            often, rare = fork(shared)
            (often.square().mean() + (50 * rare.square().mean() if step % 2 else 0.0)).backward()
            found.append(fork.last_weights.clone())
        return found

    with_, without = last_weights(True), last_weights(False)
    assert 0.2 < without[-1][1] < 0.8  # 50 times as large, and brought down
    torch.testing.assert_close(with_[-1][1], without[-3][1])  # of two steps ago, since it was not there in the last


# --- deterministic algorithms ------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", ["equal", "averaged", "own", "uncorrected", "none"])
@pytest.mark.parametrize("direction", ["cosine", "gram", "raw", "none"])
def test_a_step_makes_no_operation_that_a_gpu_refuses_where_determinism_is_asked_for(magnitude, direction):
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
            names.add(operation.overloadpacket.__name__)
            return operation(*args, **kwargs or {})

    names: set[str] = set()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        fork = MultiBalance(3, magnitude=magnitude, direction=direction)
        gram = torch.eye(3) + 0.1
        with Names():
            fork.weigh(gram, torch.tensor([True, True, False]))
        model = train(Ranker(magnitude=magnitude, direction=direction))
    finally:
        torch.use_deterministic_algorithms(before)
    assert "sqrt" in names
    assert not names & {"cumsum", "cumsum_", "kthvalue", "median", "histc", "bincount", "put_", "scatter_add", "nansum"}
    assert_same(model, train(Ranker(magnitude=magnitude, direction=direction)), rtol=0, atol=0)
