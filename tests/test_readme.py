"""The README's Python examples run, and its commands and names exist."""

import re
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
import yaml
from torch import nn

from equipoise import Fork, MultiBalance
from equipoise.cli import app
from equipoise.methods import parse_method
from equipoise.schema import Schema

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


class OwnRanker(nn.Module):
    """A model that says where its tasks part; a fork is placed for it."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.bottom = nn.Linear(len(schema.numeric_columns), 4)
        self.heads = nn.ModuleList(nn.Linear(4, 1) for _ in schema.tasks)

    def representation(self, categorical: torch.Tensor, numeric: torch.Tensor) -> torch.Tensor:
        return self.bottom(numeric)


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Linear(4, 3)
        self.fork = MultiBalance(["click", "conversion"])
        self.towers = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.bottom.parameters())

    def forward(self, batch: torch.Tensor) -> list[torch.Tensor]:
        return [tower(branch) for tower, branch in zip(self.towers, self.fork(self.bottom(batch)), strict=True)]


@pytest.mark.usefixtures("own_methods")
def test_the_python_examples_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    rows = pl.DataFrame({"age": [float(age) for age in range(400)], "click": [0, 1, 1, 0] * 100, "buy": [0, 1] * 200})
    rows.write_csv("logs.csv")
    data = {"files": "logs.csv", "features": {"age": "number"}, "tasks": {"click": "click", "buy": "buy"}}
    Path("ranker.yaml").write_text(yaml.safe_dump({"data": data | {"batch_size": 32}}))
    written: list[str] = []
    names = {
        "torch": torch,
        "Fork": Fork,
        # without the fork, whose second backward would be PUB's first: the README shows either, not both
        "model": (model := Ranker()),
        "loader": [torch.ones(2, 4)] * 3,
        "losses": lambda model, batch: [
            tower(model.bottom(batch)).square().mean() * weight
            for tower, weight in zip(model.towers, (1, 2), strict=True)
        ],
        "step": 1,
        "MyRanker": OwnRanker,
        "new_rows": rows,
        "summary_writer": SimpleNamespace(add_scalar=lambda name, _value, _step: written.append(name)),
    }
    assert len(BLOCKS) >= 3
    sum(output.mean() for output in model(torch.ones(2, 4))).backward()
    model.zero_grad()
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert "fork/fork/weight/click" in written
    assert "pub/weight/0" in written
    assert (tmp_path / "served" / "encoding.json").is_file()


@pytest.mark.usefixtures("own_methods")
def test_the_page_of_methods_registers_a_method_as_it_says() -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE | re.DOTALL
    )
    exec(compile(block, "docs/methods.md", "exec"), {"__name__": "page"})
    assert parse_method("norms:power=0.5").options == {"power": 0.5}


@pytest.mark.parametrize("target", ["compare", "test", "check"])
def test_the_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert f"make {target}" in README


@pytest.mark.parametrize("name", ["Makefile", ".ci/run"])
def test_the_test_files_that_the_build_names_exist(name: str) -> None:
    for path in re.findall(r"\btests/[\w./]+", (ROOT / name).read_text()):
        assert (ROOT / path).exists(), f"{name} names {path}, which does not exist"


def test_the_commands_that_the_readme_names_exist() -> None:
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    named = set(re.findall(r"`equipoise (\w+)", README))
    assert named <= known


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_to_files_lead_somewhere(page: str) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", prose):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}, which does not exist"


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(README.split()) <= 900
