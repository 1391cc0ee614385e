"""Presets and the page about models: every model and preset is there, with its sizes, and the code runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from equipoise.errors import SettingError
from equipoise.ranking.models import MODELS, PRESETS, build_model
from tests.ranking.models.samples import OWN, SCHEMA

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"


def table() -> str:
    """The table of presets for ``docs/models.md``."""
    names = {builder: name for name in OWN if isinstance(builder := MODELS[name], type)}
    lines = ["| name | model | sizes | source |", "|---|---|---|---|"]
    for name, preset in PRESETS.items():
        sizes = ", ".join(
            f"`{option}={'-'.join(map(str, value)) if isinstance(value, tuple) else value}`"
            for option, value in preset.options.items()
            if value != ()
        )
        lines.append(f"| `{name}` | `{names[preset.model]}` | {sizes} | {preset.source} |")
    return "\n".join(lines)


def test_the_page_lists_every_model_and_every_preset_with_its_sizes() -> None:
    page = PAGE.read_text()
    (shown,) = re.findall(r"<!-- begin of the presets -->\n(.*)\n<!-- end of the presets -->", page, re.DOTALL)
    assert shown == table()
    assert [name for name in OWN if f"\n| `{name}` | " not in page] == []


def test_the_code_of_the_page_runs() -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, "models.md", "exec"), names)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_model_in_its_sizes_and_takes_the_models_options(name: str) -> None:
    preset = PRESETS[name]
    defaults = {
        option: entry.default
        for option, entry in inspect.signature(MODELS[name]).parameters.items()
        if option in preset.options
    }
    assert defaults == dict(preset.options)
    small = {option: (4,) if isinstance(size, tuple) else 1 for option, size in preset.options.items()}
    assert type(build_model(name, SCHEMA, **small)) is preset.model
    with pytest.raises(SettingError, match=f"Model '{name}' takes the options embedding_dim, .* found colour"):
        build_model(name, SCHEMA, colour=1)


def test_a_preset_is_built_in_its_sizes() -> None:
    model = build_model("mmoe-aliexpress", SCHEMA)
    assert model.embedding.dim == 128
    assert [layer.out_features for layer in model.experts[0] if isinstance(layer, torch.nn.Linear)] == [512, 256]
    assert len(model.experts) == 8
