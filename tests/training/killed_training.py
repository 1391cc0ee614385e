"""Trains in children that are killed at random moments, until so many have been, and says what came of it.

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
from equipoise.training.checkpoint import last_checkpoint, load_checkpoint

SETTINGS = {"epochs": 6, "batch_size": 64, "lr": 1e-2, "evaluations": 30, "evaluation_rows": 100}


def trained(dataset: Dataset, folder: Path) -> Run:
    resume = last_checkpoint(folder) is not None
    return train(dataset, METHODS["pub-adatask"], **SETTINGS, checkpoint=folder, resume=resume)


def comparable(run: Run) -> dict:
    return json.loads(run.to_json()) | {"seconds": 0, "examples_per_second": 0}


def child(dataset: Dataset, folder: Path) -> int:
    started = os.fork()
    if started:
        return started
    try:
        result = comparable(trained(dataset, folder))
        (folder / "result.part").write_text(json.dumps(result))
        (folder / "result.part").rename(folder / "result.json")
    finally:
        os._exit(0)


def main() -> None:
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    kills, root = int(sys.argv[1]), Path(sys.argv[2])
    dataset = load("funnel", rows=1500)
    expected = comparable(trained(dataset, root / "whole"))
    moments = random.Random(0)
    killed, loaded, equal, turn = 0, 0, [], 0
    while killed < kills or not equal:
        folder = root / f"turn{turn}"
        folder.mkdir(exist_ok=True)
        pid = child(dataset, folder)
        limit = time.monotonic() + (moments.uniform(0, 0.4) if killed < kills else 60)
        while time.monotonic() < limit and os.waitpid(pid, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        if not (folder / "result.json").exists():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
            if (path := last_checkpoint(folder)) is not None:
                settings = json.loads((path / "state.json").read_text())["settings"]
                load_checkpoint(folder, settings)
                loaded += 1
        else:
            equal.append(json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(expected)))
            turn += 1
    (root / "found.json").write_text(json.dumps({"killed": killed, "loaded": loaded, "equal": equal}))


if __name__ == "__main__":
    main()
