"""Trains in child processes that are killed at random moments, and prints the outcome.

python killed_training.py KILLS FOLDER
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from equipoise.data import Dataset, load
from equipoise.training import METHODS, Run, train
from equipoise.training.checkpoint.folder import last_checkpoint, load_checkpoint

SETTINGS = {"epochs": 6, "batch_size": 64, "lr": 1e-2, "evaluations": 30, "evaluation_rows": 100}
STEPS = 9  # a child makes up to so many steps, of which every third is followed by a checkpoint, before it is killed


def trained(dataset: Dataset, folder: Path, pipe: int | None = None) -> Run:
    """Train, and write a byte to the pipe with every step."""
    return train(
        dataset, METHODS["pub-adatask"], **SETTINGS, checkpoint=folder, resume=last_checkpoint(folder) is not None,
        on_step=None if pipe is None else lambda *_: os.write(pipe, b"."),
    )  # fmt: skip


def comparable(run: Run) -> dict:
    return json.loads(run.to_json()) | {"seconds": 0, "examples_per_second": 0}


def child(dataset: Dataset, folder: Path) -> tuple[int, int]:
    """Start a child; return its process id and the end of a pipe that counts its steps."""
    reading, writing = os.pipe()
    started = os.fork()
    if started:
        os.close(writing)
        return started, reading
    try:
        os.close(reading)
        result = comparable(trained(dataset, folder, writing))
        (folder / "result.part").write_text(json.dumps(result))
        (folder / "result.part").rename(folder / "result.json")
    finally:
        os._exit(0)


def main() -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    kills, root = int(sys.argv[1]), Path(sys.argv[2])
    dataset = load("funnel", rows=1500)
    started = time.monotonic()
    whole = trained(dataset, root / "whole")
    a_step = (time.monotonic() - started) / whole.steps  # checkpoints and evaluations included
    expected = json.loads(json.dumps(comparable(whole)))
    moments = random.Random(0)
    killed, loaded, writing, equal, turn = 0, 0, 0, [], 0
    while killed < kills or not equal:
        folder = root / f"turn{turn}"
        folder.mkdir(exist_ok=True)
        pid, pipe = child(dataset, folder)
        if killed < kills:
            for _ in range(moments.randint(0, STEPS)):
                os.read(pipe, 1)  # returns nothing at once when the child has ended
            time.sleep(moments.uniform(0, 3 * a_step))  # somewhere in a step, an evaluation or a checkpoint
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pipe)
        if not (folder / "result.json").exists():
            killed += 1
            writing += any(folder.glob(".step-*.part"))
            if (path := last_checkpoint(folder)) is not None:
                load_checkpoint(
                    folder, json.loads(json.loads((path / "state.json").read_text())["content"])["settings"]
                )
                loaded += 1
        else:
            equal.append(json.loads((folder / "result.json").read_text()) == expected)
            turn += 1
    (root / "found.json").write_text(
        json.dumps({"killed": killed, "loaded": loaded, "writing": writing, "equal": equal})
    )


if __name__ == "__main__":
    main()
