"""`equipoise train` under torchrun: the same settings file, plus one line that says how the model is shared."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from equipoise.serving import Ranker

SETTINGS = "data: funnel\ndata_options: {rows: 4000}\nbatch_size: 256\nepochs: 1\n"
ALONE = [sys.executable, "-W", "ignore", "-m"]
RANKS = [*ALONE, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
ONE_RANK = [word if word != "2" else "1" for word in RANKS]


def run(folder: Path, *words: str, sharding: str | None = None, ranks: int = 2) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    config = folder / "settings.yaml"
    config.write_text(SETTINGS + (f"sharding: {sharding}\n" if sharding else ""))
    launcher = ALONE if sharding is None else RANKS if ranks == 2 else ONE_RANK
    command = [*launcher, "equipoise", "train", config, "--out", folder, *words]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def numbers(found: dict) -> dict:
    return {f"{task}/{name}": value for task, metrics in found["test"].items() for name, value in metrics.items()} | {
        "steps": found["steps"],
        **found["curve"][-1]["train_loss"],
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[..., Path]:
    """Return the folder of an uninterrupted training, which tests compare with and must not change."""

    @cache
    def train(method: str, sharding: str | None = None, ranks: int = 2) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        done = run(folder, "--method", method, sharding=sharding, ranks=ranks)
        assert done.returncode == 0, done.stderr
        (folder / "said").write_text(" ".join(done.stdout.split()))
        return folder

    return train


@pytest.mark.parametrize(
    ("sharding", "method"), [("ddp", "multibalance"), ("ddp", "pub-adatask"), ("fsdp", "multibalance")]
)
def test_two_ranks_give_the_result_of_one_process(trained, sharding, method):
    found, expected = (numbers(record(trained(method, how))) for how in (sharding, None))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_the_first_rank_leaves_the_ranker_that_one_process_would(trained, sharding):
    found, expected = (Ranker.load(trained("multibalance", how)) for how in (sharding, None))
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert found.settings["sharding"] == sharding


def test_sharded_tables_leave_no_ranker_and_say_so(trained):
    folder = trained("multibalance", "row-wise", 2)
    assert not (folder / "ranker.json").exists()
    assert "No ranker.json is written: sharding row-wise" in (folder / "said").read_text()


def test_sharded_tables_give_on_two_ranks_the_result_of_one(trained):
    """One process with sharded tables, not a plain one: TorchRec steps sharded tables by Adagrad."""
    found, expected = (numbers(record(trained("multibalance", "row-wise", ranks))) for ranks in (2, 1))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("sharding", "method"), [("fsdp", "multibalance"), ("table-wise", "pub"), ("row-wise+fsdp", "multibalance")]
)
def test_sharded_training_resumes_as_if_it_had_not_stopped(trained, tmp_path, sharding, method):
    whole = record(trained(method, sharding))
    shutil.copytree(trained(method, sharding), tmp_path, dirs_exist_ok=True)
    last = max((tmp_path / "checkpoint").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    shutil.rmtree(last)
    done = run(tmp_path, "--method", method, "--resume", sharding=sharding)
    assert done.returncode == 0, done.stderr
    assert numbers(record(tmp_path)) == pytest.approx(numbers(whole), rel=1e-6)


def test_a_checkpoint_of_another_sharding_is_refused_by_name(trained, tmp_path):
    shutil.copytree(trained("multibalance", "fsdp"), tmp_path, dirs_exist_ok=True)
    done = run(tmp_path, "--resume", sharding="row-wise")
    assert done.returncode != 0
    assert "belongs to a run with other settings (sharding: fsdp there, row-wise here)" in done.stderr
    done = run(tmp_path, "--resume")
    assert done.returncode == 2
    assert "sharding: fsdp there, ddp here" in done.stderr


def test_what_cannot_be_trained_so_is_refused_before_anything_is_written(tmp_path):
    done = run(tmp_path, "--method", "pub", sharding="fsdp")
    assert done.returncode != 0
    assert "needs every task's whole gradient of the shared parameters, which FSDP2 shards" in done.stderr
    assert "equipoise/cli.py" not in done.stderr  # no traceback but torchrun's own
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


DYING = """
import os, signal, sys
from equipoise import cli
from equipoise.training import Learner

step, seen = Learner.step, []

def dying(learner, batch):
    seen.append(None)
    turn = os.environ["TORCHELASTIC_RESTART_COUNT"]
    with open(f"{sys.argv[-1]}-{turn}-{os.environ['RANK']}", "a") as file:
        file.write(".")
    if len(seen) == 7 and os.environ["RANK"] == "1" and turn == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(learner, batch)

Learner.step = dying
cli.main()
"""

HANGING = """
import os, signal, threading
from equipoise import cli
from equipoise.training import Learner

step, seen = Learner.step, []

def hanging(learner, batch):
    seen.append(None)
    if len(seen) == 9 and os.environ["RANK"] == "1":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun need not wait until it may kill
        threading.Event().wait()
    return step(learner, batch)

Learner.step = hanging
cli.main()
"""


def test_a_rank_that_hangs_ends_the_training_with_a_message_that_names_it(tmp_path):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    command = [
        *RANKS[:-1], script, "train", tmp_path / "settings.yaml", "--out", tmp_path / "out",
        "--rank-timeout", "5",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "Error: Rank 0 has lost contact with rank 1 of 2: without an answer for 5 s." in said
    assert "Go on from step-8 with: torchrun --nproc-per-node 2 -m equipoise train" in said
    assert "Timed out" not in done.stderr  # no traceback of gloo's


TOLD = """
import os, signal
from equipoise import cli
from equipoise.training import Learner
from equipoise.training.faults import interruptions

step, seen = Learner.step, []
interruptions._SECONDS = 0.0  # asks after every step, however slow a step is

def told(learner, batch):
    seen.append(None)
    if len(seen) == 5 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    return step(learner, batch)

Learner.step = told
cli.main()
"""


def test_sigterm_on_one_rank_ends_all_with_a_checkpoint_and_the_command_that_goes_on(trained, tmp_path):
    whole = trained("multibalance", "row-wise")
    script, out = tmp_path / "told.py", tmp_path / "a folder"
    script.write_text(TOLD)
    command = [*RANKS[:-1], script, "train", whole / "settings.yaml", "--out", out]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert said.count("Stopped after step 5, which a checkpoint holds. Go on from step-5 with: torchrun") == 1
    line = next(line for line in done.stderr.splitlines() if "Go on from step-5 with: " in line)
    words = shlex.split(line.partition("with: ")[2])
    assert words[:5] == ["torchrun", "--nproc-per-node", "2", "-m", "equipoise"]
    again = [*ALONE, "torch.distributed.run", "--standalone", *words[1:]]
    done = subprocess.run(again, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert numbers(record(out)) == pytest.approx(numbers(record(whole)), rel=1e-6)


def test_a_rank_that_dies_is_started_anew_with_the_others_from_the_last_checkpoint(trained, tmp_path):
    path = trained("multibalance", "ddp")
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    command = [
        *RANKS[:-1], "--max-restarts", "1", script, "train",
        path / "settings.yaml", "--checkpoint-every", "6", "--out", tmp_path / "dying",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr
    found, whole = record(tmp_path / "dying"), record(path)
    assert numbers(found) == numbers(whole)
    # From step 6, which lies between two evaluations.
    again = [(tmp_path / f"dying-1-{rank}").read_text() for rank in range(2)]
    assert again == ["." * (whole["steps"] - 6)] * 2
    assert "Rank 0 has lost contact with rank 1 of 2" in " ".join(done.stderr.split())
    assert found["steps"] == whole["steps"]
