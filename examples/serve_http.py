"""Serve an exported ranker over HTTP: rows as JSON in, predictions out; requests that wait are predicted together.

    equipoise export run --out export --onnx
    python examples/serve_http.py export --program onnx --port 8000
    curl localhost:8000/predict -d '{"rows": [{"zip": "rural", "age": 41, "recency": 3}]}'
    {"predictions": {"visit": [0.31], "conversion": [0.08]}}

Needs what the exported folder needs (torch, or numpy and onnxruntime), starlette and uvicorn; not equipoise. GET
/health says what is served. A row that cannot be encoded is answered with status 422 and a sentence that names row and
column.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

Ids, Numbers = list[list[int]], list[list[float]]
Predict = Callable[[Ids, Numbers], dict[str, list[float]]]


def load_encoder(folder: Path) -> Any:
    """Return the module ``encoder.py`` of an exported folder."""
    found = importlib.util.spec_from_file_location("exported_encoder", folder / "encoder.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def load_program(folder: Path, program: str, threads: int) -> Predict:
    """Return the function from ids and numbers to predictions by task."""
    if program == "onnx":
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        taken, names = ([entry.name for entry in ends] for ends in (session.get_inputs(), session.get_outputs()))

        def predict(ids: Ids, numbers: Numbers) -> dict[str, list[float]]:
            inputs = {"categorical": np.array(ids, np.int64), "numeric": np.array(numbers, np.float32)}
            found = session.run(names, {name: inputs[name] for name in taken})
            return {name: values.tolist() for name, values in zip(names, found, strict=True)}

        return predict

    import torch

    torch.set_num_threads(threads)
    if program == "aoti":
        call = torch._inductor.aoti_load_package(str(folder / "model.aoti.pt2"))
    else:
        call = torch.export.load(folder / "model.pt2").module()

    @torch.no_grad()
    def predict(ids: Ids, numbers: Numbers) -> dict[str, list[float]]:
        found = call(torch.tensor(ids, dtype=torch.int64), torch.tensor(numbers, dtype=torch.float32))
        return {name: values.tolist() for name, values in found.items()}

    return predict


class FullError(Exception):
    """More rows wait than the server keeps."""


@dataclass
class Batcher:
    """Predicts the rows of requests that wait at the same time in one batch.

    Attributes:
        most_rows: of a batch; a request is never split.
        most_wait: seconds that the first request of a batch waits for others.
        most_waiting: requests that wait; more are refused.
    """

    predict: Predict
    most_rows: int = 256
    most_wait: float = 0.001
    most_waiting: int = 1024
    batches: int = 0
    rows: int = 0
    _waiting: asyncio.Queue = field(init=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Predict while the block runs; the program has a thread of its own, so that requests are read meanwhile."""
        self._waiting = asyncio.Queue(self.most_waiting)
        with ThreadPoolExecutor(1) as thread:
            worker = asyncio.create_task(self._work(thread))
            try:
                yield
            finally:
                worker.cancel()
                with suppress(asyncio.CancelledError):
                    await worker

    async def submit(self, ids: Ids, numbers: Numbers) -> dict[str, list[float]]:
        """Return the predictions of a request's rows."""
        answer = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((ids, numbers, answer))
        except asyncio.QueueFull:
            raise FullError from None
        return await answer

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        left: list = []
        while True:
            batch, left = await self._next_batch(left)
            ids = [row for request in batch for row in request[0]]
            numbers = [row for request in batch for row in request[1]]
            done = loop.run_in_executor(thread, self.predict, ids, numbers)
            await asyncio.wait([done])
            self.batches, self.rows = self.batches + 1, self.rows + len(ids)
            _answer(batch, done.exception() or done.result())

    async def _next_batch(self, left: list) -> tuple[list, list]:
        """Return requests for a batch, and one that did not fit, for the next."""
        batch = left or [await self._waiting.get()]
        rows = len(batch[0][0])
        with suppress(TimeoutError):
            async with asyncio.timeout(self.most_wait):
                while rows < self.most_rows:
                    request = await self._waiting.get()
                    if rows + len(request[0]) > self.most_rows:
                        return batch, [request]
                    batch.append(request)
                    rows += len(request[0])
        return batch, []


def _answer(batch: Sequence, found: dict[str, list[float]] | BaseException) -> None:
    start = 0
    for ids, _, answer in batch:
        end = start + len(ids)
        if not answer.done():  # its client has gone
            if isinstance(found, BaseException):
                answer.set_exception(found)
            else:
                answer.set_result({task: values[start:end] for task, values in found.items()})
        start = end


def build_app(folder: Path, program: str = "torch", *, threads: int = 1, **limits: Any) -> Starlette:
    """Return the application that serves an exported folder."""
    about = json.loads((folder / "export.json").read_text())
    module = load_encoder(folder)
    encoder = module.Encoder.load(folder / "encoding.json")
    batcher = Batcher(load_program(folder, program, threads), **limits)

    async def predict(request: Request) -> JSONResponse:
        try:
            body = json.loads(await request.body())
        except ValueError as error:
            return _refusal(400, f"Expected JSON: {error}.")
        rows = body.get("rows") if isinstance(body, dict) else None
        if not isinstance(rows, list) or not rows:
            return _refusal(400, 'Expected {"rows": [{...}, ...]} with at least one row.')
        if len(rows) > batcher.most_rows:
            return _refusal(413, f"Expected at most {batcher.most_rows} rows in a request, found {len(rows)}.")
        try:
            ids, numbers = encoder.encode(rows)
        except module.EncodingError as error:
            return _refusal(422, str(error))
        try:
            return JSONResponse({"predictions": await batcher.submit(ids, numbers)})
        except FullError:
            return _refusal(503, f"{batcher.most_waiting} requests wait already: try again.")

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({
            "status": "ok", "program": program, "tasks": {task["name"]: task["meaning"] for task in about["outputs"]},
            "columns": list(encoder.columns), "batches": batcher.batches, "rows": batcher.rows,
        })  # fmt: skip

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with batcher.running():
            yield

    routes = [Route("/predict", predict, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve an exported ranker over HTTP.")
    parser.add_argument("folder", type=Path, help="what `equipoise export` wrote")
    parser.add_argument("--program", choices=["torch", "onnx", "aoti"], default="torch")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1, help="of the program")
    parser.add_argument("--max-batch", type=int, default=256, help="rows that are predicted at once")
    parser.add_argument("--max-wait-ms", type=float, default=1.0, help="how long a request waits for others")
    stated = parser.parse_args()
    limits = {"most_rows": stated.max_batch, "most_wait": stated.max_wait_ms / 1000}
    app = build_app(stated.folder, stated.program, threads=stated.threads, **limits)
    uvicorn.run(app, port=stated.port, log_level="warning")


if __name__ == "__main__":
    main()
