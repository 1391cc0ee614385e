"""Each integration's example trains to the very parameters of the plain loop, balanced or not."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equipoise import MultiBalance

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the integrations' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


@pytest.fixture
def example(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


@pytest.mark.parametrize("name", ["lightning_module", "accelerate_loop"])
@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "plain sum"])
def test_it_trains_as_the_plain_loop_does(example, name, balanced):
    def fork():
        return MultiBalance(["click", "buy"]) if balanced else None

    found, expected = example(name).train(fork()), example("plain").train(fork())
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=0, atol=0)


def test_balancing_changes_what_the_shared_layers_learn(example):
    plain = example("plain")
    balanced, other = plain.train(MultiBalance(["click", "buy"])), plain.train(None)
    assert not torch.equal(balanced.bottom[0].weight, other.bottom[0].weight)
    assert (balanced.fork.averages > 0).all()


def test_at_an_encoder_a_loss_23_times_as_large_has_no_more_say(example):
    fork = example("hugging_face").train(MultiBalance(["positive", "length"], direction="none")).fork
    norms = fork.last_gram.diagonal().sqrt()
    assert norms[1] > 3 * norms[0]
    weighted = fork.last_weights * norms
    torch.testing.assert_close(weighted[0], weighted[1])


@pytest.mark.parametrize("name", ["pub_lightning", "pub_accelerate"])
def test_pub_trains_there_as_in_a_plain_loop(example, name):
    (found, optimizer), (expected, alone) = example(name).train(), example("pub").train()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=0, atol=0)
    assert torch.equal(optimizer.last_weights, alone.last_weights)
    assert (alone.last_weights != 1).all()


SCRIPTS = ["plain", "lightning_module", "accelerate_loop", "hugging_face", "pub", "pub_lightning", "pub_accelerate"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_example_runs_as_a_script(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLES / f"{name}.py"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"weights {'of the updates' if name.startswith('pub') else 'at the fork'}: [" in done.stdout
    assert list(tmp_path.iterdir()) == []
