"""`counting.py`, `floors.py` and `step_parts.py`: operations and bytes are those counted by hand and by PyTorch."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from equipoise.ranking.losses import task_losses
from equipoise.ranking.models import SharedBottom
from equipoise.schema import Categorical, Numeric, Schema, Task

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("counting")


@pytest.fixture
def shape(counting: ModuleType):
    return counting.Shape(
        rows=10, fields=3, dimension=4, numbers=2, bottom=(6, 5), tower=(3,), tasks=2, table_rows=24, touched=7
    )


@pytest.fixture
def floors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("floors")


@pytest.fixture
def step_parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("step_parts")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("floors_page")


def by_name(terms) -> dict:
    return {term.name: term for term in terms}


def test_operations_of_a_step_are_those_that_pytorch_counts(counting: ModuleType, shape) -> None:
    schema = Schema(
        [Categorical(f"field{field}", 8) for field in range(shape.fields)],
        [Numeric(f"number{number}") for number in range(shape.numbers)],
        [Task(f"task{task}") for task in range(shape.tasks)],
    )
    model = SharedBottom(schema, embedding_dim=shape.dimension, bottom=shape.bottom, tower=shape.tower)
    with FlopCounterMode(display=False) as counter:
        outputs = model(torch.randint(8, (shape.rows, shape.fields)), torch.randn(shape.rows, shape.numbers))
        losses = task_losses(outputs, torch.ones(shape.rows, shape.tasks), schema.tasks)
        torch.stack(losses).sum().backward()
    # Autograd also finds the gradient of the numeric features, which nobody needs.
    superfluous = 2 * shape.rows * shape.numbers * shape.bottom[0]
    counted = sum(product.flops for term in counting.plain_step(shape) for product in term.products)
    assert counted == counter.get_total_flops() - superfluous
    dense = sum(p.numel() for name, p in model.named_parameters() if name != "embedding.table.weight")
    assert shape.dense_parameters == dense
    assert shape.bottom_parameters == sum(p.numel() for p in model.bottom.parameters())


def test_bytes_of_a_step_are_those_counted_by_hand(counting: ModuleType, shape) -> None:
    terms = by_name(counting.plain_step(shape))
    assert terms["embedding rows read"].bytes == 10 * 3 * 8 + 2 * 4 * (10 * 3 * 4 + 10 * 2)
    assert terms["bottom, forward"].bytes == 4 * (10 * 14 + 15 * 6 + 10 * 6 + 10 * 6 + 7 * 5 + 10 * 5)
    assert terms["towers, forward"].bytes == 2 * 4 * (10 * 5 + 6 * 3 + 10 * 3 + 10 * 3 + 4 * 1 + 10 * 1)
    assert terms["losses"].bytes == 4 * 3 * 10 * 2
    first = 10 * 14 + 2 * 10 * 6 + 10 * 12 + 2 * 15 * 6  # input, output and its gradient, gradient of the embeddings
    second = 10 * 6 + 2 * 10 * 5 + 10 * 6 + 2 * 7 * 5
    assert terms["bottom, backward"].bytes == 4 * (first + second)
    assert terms["tasks' gradients added up"].bytes == 4 * (2 * 50 + 50)
    assert terms["embedding rows' gradients"].bytes == 4 * (10 * 3 * 4 + 7 * 4)
    assert [term.bytes for term in counting.gathering(shape)] == [10 * (3 * 12 + 2 * 4 * (2 + 2 + 1))]


def test_a_fork_reads_the_gradients_once_more(counting: ModuleType, shape) -> None:
    (gram,) = counting.fork(shape)
    assert gram.bytes == 4 * 2 * 50
    assert gram.flops == 3 * 2 * 50  # three inner products of 50 multiplications and additions
    (every_fourth,) = counting.fork(shape, gram_every=4)
    assert every_fourth == replace(gram, every=4)


def test_a_solve_of_pub_takes_a_pass_per_task_or_one_layer_per_task(counting: ModuleType, shape) -> None:
    once = by_name(counting.plain_step(shape))["bottom, backward"]
    passes, gram = counting.pub_solve(shape, on="all")
    assert passes.products == once.products  # the second task's
    numbers = 15 * 6 + 7 * 5 + 7 * 4  # bottom and touched rows
    assert (gram.flops, gram.bytes) == (6 * numbers, 4 * 2 * numbers)
    layer, gram = counting.pub_solve(shape, on="last")
    assert layer.all_flops == 2 * (2 * 10 * 6 * 5)
    assert (gram.flops, gram.bytes) == (6 * 35, 4 * 2 * 35)
    assert {term.every for on in ("all", "last") for term in counting.pub_solve(shape, on=on, every=7)} == {7}


def test_optimizers_move_touched_rows_or_the_whole_table(counting: ModuleType, shape) -> None:
    dense = 15 * 6 + 7 * 5 + 2 * (6 * 3 + 4 * 1)
    assert [term.bytes for term in counting.sgd(shape)] == [4 * 3 * dense, 4 * 3 * 28]
    assert [term.bytes for term in counting.adam(shape)] == [4 * 7 * dense, 4 * (6 * 96 + 28)]
    assert [term.bytes for term in counting.adam(shape, row_wise_table=True)] == [4 * 7 * dense, 4 * (3 * 28 + 2 * 7)]
    assert [term.bytes for term in counting.torch_adam(shape, "foreach")] == [4 * 18 * (dense + 96)]
    assert [term.bytes for term in counting.torch_adam(shape, "fused")] == [4 * 7 * (dense + 96)]
    assert [term.bytes for term in counting.torch_adam(shape, "foreach", row_wise_table=True)] == [
        4 * 18 * dense, 4 * (3 * 28 + 2 * 7)
    ]  # fmt: skip


def test_an_evaluation_reads_predictions_and_labels_and_sorts(counting: ModuleType) -> None:
    sums, sorting, pairs = counting.evaluation(100, 3)
    assert sums.bytes == 100 * 3 * 8
    assert sorting.bytes == 100 * 3 * 4 * 7
    assert pairs.bytes == 100 * 3 * 4


def test_a_term_takes_the_longer_of_computing_and_moving(counting: ModuleType) -> None:
    product = counting.Product("forward", 10, 5, 2)
    assert product.flops == 200
    rates = counting.Rates({product: 100.0}, flops=1000.0, cache=500.0, memory=50.0, cache_bytes=1000)
    assert counting.seconds(counting.Term("", (product, product), flops=1000), rates) == 2 + 2 + 1
    assert counting.seconds(counting.Term("", (product,), bytes=500), rates) == 2  # computing takes longer
    assert counting.seconds(counting.Term("", (product,), bytes=1000), rates) == 2  # moving takes as long
    assert counting.seconds(counting.Term("", bytes=1001), rates) == pytest.approx(1001 / 50)  # beyond the cache
    assert counting.seconds(counting.Term("", (product,), every=4), rates) == 0.5


@pytest.mark.parametrize(("kind", "size"), [("forward", (4, 3)), ("input", (4, 2)), ("weight", (3, 2))])
def test_the_products_that_are_timed_have_the_shapes_of_a_layer(
    floors: ModuleType, counting: ModuleType, kind: str, size: tuple[int, int]
) -> None:
    product = counting.Product(kind, 4, 2, 3)
    left, right = floors.operands(product)
    assert (left @ right).shape == size
    assert 2 * left.shape[0] * left.shape[1] * right.shape[1] == product.flops
    assert floors.flops_per_second(product) > 0


def test_contenders_differ_by_what_they_add(floors: ModuleType, shape) -> None:
    def added(contender: str) -> list[tuple[str, int]]:
        terms = floors.speed_terms(shape, contender)
        assert terms[: len(plain)] == plain
        return [(term.name, term.every) for term in terms[len(plain) :]]

    plain = floors.speed_terms(shape, "plain sum")
    gram = "Gram matrix at the fork"
    assert [added(name) for name in floors.FORKS] == [[(gram, 1)], [(gram, 4)]]
    assert [[every for _, every in added(name)] for name in floors.PUBS] == [[10, 10], [10, 10]]
    assert added("PUB") != added("PUB (exact)")


def test_every_part_of_a_step_stands_beside_the_terms_that_belong_to_it(
    floors: ModuleType, step_parts: ModuleType, counting: ModuleType, shape
) -> None:
    terms = floors.trained_terms(shape, "plain sum")
    assert step_parts.PART_OF_TERM.keys() <= {term.name for term in terms}
    rates = counting.Rates(dict.fromkeys(counting.products_of(terms), 1e9), 1e9, 1e9, 1e9, 0)
    found = step_parts.beside_least(dict.fromkeys([*step_parts.PARTS, step_parts.REST], 1.0), terms, rates)
    assert sum(part["floor_ms"] for part in found) == pytest.approx(floors.least(terms, rates))


def test_clocks_tell_the_parts_of_a_step_apart(step_parts: ModuleType) -> None:
    table, layer = torch.nn.Embedding(5000, 4), torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD([*table.parameters(), *layer.parameters()], lr=0.1)

    def step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        layer(table(ids)).relu().sum().backward()
        optimizer.step()

    ids = torch.arange(900)
    found = step_parts.parts_of(step, [ids], 3)
    assert list(found) == [*step_parts.PARTS, step_parts.REST]
    assert all(found[part] > 0 for part in step_parts.PARTS)
    clocks = step_parts.Clocks()
    with clocks.running():
        layer(table(ids))
    assert {part for part, spent in clocks.seconds.items() if spent} == {
        "products of the layers",
        "embedding rows read",
    }
    step(ids)  # beyond the block nothing is timed
    assert clocks.seconds[step_parts.OPTIMIZER] == 0


def result_of(before: float, after: float) -> dict:
    rows = [
        {"workload": "step", "contender": name, "measured_ms": ms, "floor_ms": floor, "ratio": ms / floor}
        for name, ms, floor in (("plain sum", 10.0, 4.0), ("MultiBalance", 11.0, 4.5))
    ]
    saved = [
        {"change": "less", "workload": "step", "before_ms": before, "predicted": 0.1, "measured": 1 - after / before}
    ]
    term = {"name": "losses", "mflop": 1.0, "megabytes": 2.0, "every": 1, "floor_ms": 0.5}
    return {
        "machine": "a machine", "torch": "2", "load": 0.5, "command": "python", "rows": rows, "saved": saved,
        "counts": {"step": [term]},
        "rates": [{"threads": 2, "gflops": 100.0, "cache_gb_per_s": 90.0, "memory_gb_per_s": 20.0}],
    }  # fmt: skip


def test_the_page_sets_measured_over_least_and_predicted_beside_measured(page: ModuleType) -> None:
    text = page.markdown(result_of(10.0, 8.0))
    assert "| step | plain sum | 10.0 | 4.0 | ×2.50 |" in text
    assert "| step | MultiBalance | +5.0 % | +10.0 % |" in text
    assert "| less | step | 10.0 | -10.0 % | -20.0 % |" in text
    assert "| losses | 1 | 2.0 | 1 | 0.50 |" in text


def test_the_parts_most_above_their_least_time_are_named(page: ModuleType, step_parts: ModuleType) -> None:
    parts = [("products", 6.0, 3.0), ("table", 2.0, 1.0), ("optimizer", 1.0, 1.0), ("lookup", 2.0, 0.0)]
    step = {
        "step": "a step",
        "parts": [dict(zip(("part", "measured_ms", "floor_ms"), part, strict=True)) for part in parts],
        "former_parts": [], "ratio": 1.0, "low": 1.0, "high": 1.0,
    }  # fmt: skip
    assert page.above_the_least(step) == "products (50 %), lookup (33 %), table (17 %)"
    assert "| whole step | 11.00 | 5.00 |" in step_parts.tables({"steps": [step]})


def test_the_saving_at_the_table_is_that_of_whole_steps(page: ModuleType, step_parts: ModuleType) -> None:
    def parts(table_ms: float) -> list[dict]:
        found = [("gradient of the table", table_ms, 1.0), ("products", 10.0, 9.0)]
        return [dict(zip(("part", "measured_ms", "floor_ms"), part, strict=True)) for part in found]

    step = {"step": "a step", "parts": parts(2.0), "former_parts": parts(6.0), "ratio": 0.75, "low": 0.7, "high": 0.8}
    (line,) = page.rows_of_table({"steps": [step]})
    assert line.endswith("| a step, one thread | 16.0 | -31.2 % at most | -25.0 % (-30.0 % to -20.0 %) |")
    assert "Over the step with `nn.Embedding`: ×0.750 (0.700 to 0.800); there" in step_parts.tables({"steps": [step]})


def test_a_step_is_compared_with_its_former_form_on_the_same_batch(
    step_parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(step_parts.time, "thread_time", lambda: now)

    def taking(seconds: float):
        def step(factor: float) -> None:
            nonlocal now
            now += seconds * factor

        return step

    found = step_parts.ratio(taking(3.0), taking(4.0), [1.0, 2.0], 8)
    assert found == {"ratio": 0.75, "low": 0.75, "high": 0.75}


def test_the_section_is_written_between_its_marks(page: ModuleType) -> None:
    around = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    assert page.with_section(around, "new") == f"before\n{page.BEGIN}\nnew\n{page.END}\nafter\n"


def test_the_tables_of_the_documentation_are_those_of_the_results(page: ModuleType, step_parts: ModuleType) -> None:
    floors, parts, waiting = page.committed()
    assert page.section(floors, parts, waiting) in page.PAGE.read_text()
    pages = {
        "floors-cpu": page.markdown(floors),
        "step-parts-cpu": step_parts.markdown(parts),
        "waiting-cpu": importlib.import_module("waiting").markdown(waiting),
    }
    for name, text in pages.items():
        assert (page.RESULTS / f"{name}.md").read_text() == text
