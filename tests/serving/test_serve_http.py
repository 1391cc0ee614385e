"""The HTTP example answers with the ranker's predictions, batches requests, and names what is wrong with a row."""

import asyncio
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import polars as pl
import pytest
from starlette.applications import Starlette

from equipoise.serving import Ranker
from tests.serving.conftest import logs

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = logs(30, seed=4).select("zip", "age", "recency").with_columns(pl.col("age").fill_nan(None))
ROW = ROWS.to_dicts()[0]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("serve_http")


def answers(app: Starlette, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
    """Send requests (method, place, content) one after the other, while the application runs."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return [await client.request(method, place, content=content) for method, place, content in requests]

    return asyncio.run(send())


@pytest.mark.parametrize("program", ["torch", "onnx"])
def test_it_answers_with_the_predictions_of_the_ranker(
    program: str, example: ModuleType, ranker: Ranker, exported: Path
) -> None:
    expected = ranker.predict(ROWS)
    body = json.dumps({"rows": ROWS.to_dicts()})
    app = example.build_app(exported, program)
    answer, health = answers(app, ("POST", "/predict", body), ("GET", "/health", None))
    assert answer.status_code == 200
    for task, values in answer.json()["predictions"].items():
        assert values == pytest.approx(expected[task].to_list(), abs=1e-5)
    said = health.json()
    assert (said["status"], said["program"], said["rows"], said["batches"]) == ("ok", program, 30, 1)
    assert said["columns"] == ["zip", "age", "recency"]
    assert list(said["tasks"]) == ["visit", "conversion"]


BAD = [
    (b"{rows", 400, "Expected JSON"),
    (b"\xff", 400, "Expected JSON"),
    (b"[1]", 400, 'Expected {"rows":'),
    (b'{"rows": []}', 400, "at least one row"),
    (json.dumps({"rows": [ROW] * 65}).encode(), 413, "at most 64 rows in a request, found 65"),
    (json.dumps({"rows": [ROW, {"zip": "a"}]}).encode(), 422, "Row 1: expected the columns zip, age, recency; age"),
    (json.dumps({"rows": [ROW | {"age": "old"}]}).encode(), 422, "Row 0: feature 'age', column 'age': expected a fin"),
    (json.dumps({"rows": [ROW | {"age": float("inf")}]}).encode(), 422, "expected a finite number, found inf"),
    (json.dumps({"rows": [[1]]}).encode(), 422, "Row 0: expected names and values, found [1]"),
]


def test_a_bad_request_is_answered_with_what_is_wrong(example: ModuleType, exported: Path) -> None:
    app = example.build_app(exported, most_rows=64)
    found = answers(app, *(("POST", "/predict", body) for body, _, _ in BAD))
    for answer, (_, status, message) in zip(found, BAD, strict=True):
        assert answer.status_code == status
        assert message in answer.json()["error"]


def test_other_methods_and_places_are_refused(example: ModuleType, exported: Path) -> None:
    found = answers(example.build_app(exported), ("GET", "/predict", None), ("GET", "/other", None))
    assert [answer.status_code for answer in found] == [405, 404]


def submitted(example: ModuleType, requests: list[int], **limits: Any) -> tuple[list[int], list[Any]]:
    """Submit requests of so many rows at once; return the rows of the batches, and the answers."""
    batches: list[int] = []

    def predict(ids: list[list[int]], _: Any) -> dict[str, list[float]]:
        batches.append(len(ids))
        if any(row == [-1] for row in ids):
            raise ArithmeticError("a fault of the program")
        return {"task": [float(row[0]) for row in ids]}

    async def all_at_once() -> list[Any]:
        batcher = example.Batcher(predict, **limits)
        async with batcher.running():
            waiting = [
                batcher.submit([[100 * place + row] for row in range(count)] if count else [[-1]], [])
                for place, count in enumerate(requests)
            ]
            return await asyncio.gather(*waiting, return_exceptions=True)

    return batches, asyncio.run(all_at_once())


def test_requests_that_wait_are_predicted_together_and_each_gets_its_own(example: ModuleType) -> None:
    batches, answers = submitted(example, [2, 3, 1], most_wait=0.2)
    assert batches == [6]
    assert answers == [{"task": [0, 1]}, {"task": [100, 101, 102]}, {"task": [200]}]


def test_a_batch_holds_no_more_rows_than_it_may(example: ModuleType) -> None:
    batches, answers = submitted(example, [3, 3, 4, 1], most_rows=6, most_wait=0.05)
    assert batches == [6, 5]
    assert answers[2] == {"task": [200, 201, 202, 203]}


def test_a_fault_of_the_program_is_answered_and_the_next_batch_is_predicted(example: ModuleType) -> None:
    batches, answers = submitted(example, [0, 2], most_rows=2, most_wait=0.05)
    assert len(batches) == 2
    assert isinstance(answers[0], ArithmeticError)
    assert answers[1] == {"task": [100, 101]}


def test_more_requests_than_may_wait_are_refused(example: ModuleType) -> None:
    _, answers = submitted(example, [1] * 5, most_waiting=2)
    assert sum(isinstance(answer, example.FullError) for answer in answers) == 3
