"""The page on recipes says what works: its code and its settings file run."""

import re
from pathlib import Path

import yaml

from equipoise.data import load
from equipoise.settings import Settings
from equipoise.training import train

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_code_of_the_page_runs() -> None:
    found = blocks("python")
    assert len(found) == 3
    for block in found:
        exec(compile(block, "docs/recipes.md", "exec"), {"print": lambda *_: None})


def test_the_settings_file_of_the_page_trains_and_stops_by_its_metric() -> None:
    (block,) = blocks("yaml")
    settings = Settings.of(**yaml.safe_load(block))
    run = train(load("funnel", **settings.data_options), "multibalance", **settings.training().model_dump())
    assert 0 < run.best_step <= run.steps
    assert run.settings["table_optimizer"] == "rowwise-adagrad"


def test_every_setting_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`([a-z]+_[a-z_]+)(?::[^`]*)?`", PAGE))
    assert named - set(Settings.model_fields) == {"log_loss"}
