"""Each integration's example trains to the very parameters of the plain loop, balanced or not."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equipoise import PUB, Fork, MultiBalance

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
    assert fork.magnitudes[1] > 3 * fork.magnitudes[0]
    weighted = fork.last_weights * fork.magnitudes  # equal on average over steps
    torch.testing.assert_close(weighted[0], weighted[1])


@pytest.mark.parametrize("name", ["pub_lightning", "pub_accelerate"])
def test_pub_trains_there_as_in_a_plain_loop(example, name):
    (found, optimizer), (expected, alone) = example(name).train(), example("pub").train()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=0, atol=0)
    assert torch.equal(optimizer.last_weights, alone.last_weights)
    assert (alone.last_weights != 1).all()


ON_RANKS = ["accelerate_loop", "pub_accelerate", "lightning_module", "pub_lightning"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    """Return the folder of two ranks' trained models; one launch, because importing the engines is the slow part."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [Path(__file__).parents[1] / "rank_script.py", Path(__file__).with_name("engine_ranks.py")]
    done = subprocess.run(
        [*command, *script, folder, *ON_RANKS], capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ON_RANKS)
def test_two_ranks_train_as_one_process_with_the_plain_loop_does(example, ranks, name):
    pub, fork = name.startswith("pub"), MultiBalance(["click", "buy"])
    expected = example("pub").train()[0] if pub else example("plain").train(fork)
    found = torch.load(ranks / f"{name}.pt", weights_only=True)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


def test_at_an_encoder_a_fork_that_weighs_all_alike_trains_as_no_fork_does(example):
    train = example("hugging_face").train
    found, expected = train(Fork(["positive", "length"])), train(None)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_an_encoder_trains_with_pub(example):
    module = example("hugging_face")
    torch.manual_seed(0)
    model = module.Reader(None)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer = PUB(adam, shared=[p for p in model.encoder.parameters() if p.requires_grad], update_every=5)
    plain = module.train(None)
    for tokens, labels in module.texts():
        logits = model(tokens)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0)
        optimizer.zero_grad()
        optimizer.backward(losses * torch.tensor([1.0, 23.0]))
        optimizer.step()
    assert optimizer.last_weights[0] > 5 * optimizer.last_weights[1]
    assert not torch.equal(model.encoder.embeddings.word_embeddings.weight,
                           plain.encoder.embeddings.word_embeddings.weight)  # fmt: skip


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
