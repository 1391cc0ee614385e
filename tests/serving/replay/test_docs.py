"""The page on replays runs from top to bottom, and the command says what the page says."""

import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from equipoise.cli import app

PAGE = (Path(__file__).parents[3] / "docs" / "replay.md").read_text()
ITEMS = pl.DataFrame({"item_id": [f"item {k}" for k in range(4)], "price": [5, 10, 20, 40]})


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def shop(rows: int, seed: int, *, chances: tuple[float, ...]) -> pl.DataFrame:
    """Draw rounds of a shop where cheap items and the third are clicked more."""
    random = np.random.default_rng(seed)
    place = random.choice(4, rows, p=chances)
    click = random.random(rows) < np.array([0.3, 0.2, 0.5, 0.05])[place]
    return pl.DataFrame(
        {
            "age": random.integers(18, 80, rows),
            "hour": random.integers(0, 24, rows),
            "item_id": ITEMS["item_id"].to_numpy()[place],
            "price": ITEMS["price"].to_numpy()[place],
            "chance": np.array(chances)[place],
            "click": click.astype(int),
            "buy": (click & (random.random(rows) < 0.5)).astype(int),
        }
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    (settings,) = blocks("yaml")
    Path("shop.yaml").write_text(settings)
    ITEMS.write_csv("items.csv")
    shop(1500, 0, chances=(0.1, 0.2, 0.3, 0.4)).drop("chance").write_csv("logs.csv")
    shop(2000, 1, chances=(0.25,) * 4).write_csv("random.csv")
    return CliRunner()


def test_the_page_runs_and_the_rankers_beat_chance(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ""
    for line in blocks("sh")[0].splitlines():
        monkeypatch.setattr("sys.argv", shlex.split(line))
        result = run.invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
        said = result.output
    assert "MultiBalance instead of the policy that wrote the log: more reward" in said
    assert "Written: replay.md" in said
    written = Path("replay.md").read_text()
    assert "nobody was shown what these rankers pick. 2,000 rounds, 4 items" in written
    assert "Same for every item: `age` and `hour`. From the item table: `item_id` and `price`." in written
    assert blocks("sh")[0].splitlines()[-1] in written
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "docs/replay.md", "exec"), names)
    estimate = names["found"].sides[0].value["DR"]
    assert estimate.interval.low < estimate.value < estimate.interval.high

    def refused(words: str) -> str:
        found = run.invoke(app, ["replay", *shlex.split(words)])
        assert found.exit_code == 2
        return " ".join(found.output.split())

    files = "--log random.csv --items items.csv --propensity chance"
    assert "Expected one or two folders of runs, found 3" in refused(f"runs/equal runs/equal runs/equal {files}")
    assert "--task: expected one task, or POSITION=TASK" in refused(f"runs/equal {files} --task click --task buy")
    assert "found no ranker.json" in refused(f"items.csv {files}")
    assert "The log lacks the column 'propensity_score'" in refused("runs/equal --log random.csv --items items.csv")
    assert "Expected trainings with different seeds in runs, found seed 0 twice" in refused(f"runs {files}")
