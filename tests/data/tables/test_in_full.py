"""The settings in full are a settings file that means the same."""

from __future__ import annotations

from pathlib import Path

from equipoise.data.tables import TableConfig
from equipoise.data.tables.in_full import settings_in_full
from equipoise.settings import Settings


def reread(text: str, folder: Path) -> Settings:
    """Return the settings of a text."""
    file = folder / "full.yaml"
    file.write_text(text)
    return Settings.of(file)


def test_every_setting_is_there_with_its_meaning() -> None:
    text = settings_in_full()
    fields = {**Settings.model_fields, **TableConfig.model_fields}
    del fields["data"]  # it stands for its own keys
    for name, field in fields.items():
        assert any(f"{name}:" in line and (field.description or "") in line for line in text.splitlines()), name


def test_settings_in_full_mean_the_same(tmp_path: Path) -> None:
    section = {"files": "x.csv", "features": {"zip": "category", "age": "number"}, "tasks": {"click": {}}}
    stated = Settings.of(data=section, lr=0.01, methods=["equal", "pub"])
    found = reread(settings_in_full(stated), tmp_path)
    assert TableConfig.of(found.data) == TableConfig.of(section)
    assert found.model_dump(exclude={"data"}) == stated.model_dump(exclude={"data"})


def test_the_example_has_each_kind_and_can_be_read(tmp_path: Path) -> None:
    found = TableConfig.of(reread(settings_in_full(), tmp_path).data)
    kinds = {feature.kind for feature in found.features.values()}
    assert kinds == {"category", "number", "categories", "vector", "cross", "time"}


def test_tuned_settings_are_comments_until_they_are_stated() -> None:
    assert "# lr:" in settings_in_full(Settings.of(data="funnel"))
    assert "\nlr: 0.01" in settings_in_full(Settings.of(data="funnel", lr=0.01))
