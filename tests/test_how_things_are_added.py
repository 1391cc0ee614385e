"""Adding a method, a model or a data set to equipoise takes one row, and one file if it has code of its own.

The files are added to a copy of the package, in which every command, list and test must find them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "equipoise"

ROWS = {
    "methods/at_fork.py": (
        '    Method(\n        "multibalance", ',
        '    Method("added-method", "Added", "One row more.", fork=MultiBalance, options={"gamma": 0.5}),\n',
    ),
    "ranking/models/catalogue.py": (
        '"shared-bottom": SharedBottom',
        '"added-model": "equipoise.ranking.models.added:Added", ',
    ),
    "data/__init__.py": ('    "complete-journey":', '    "added-data": "equipoise.data.sets.added:SOURCE",\n'),
}
"""File of the package -> what stands where the row is put in, and the row."""

FILES = {
    "ranking/models/added.py": """
from equipoise.ranking.models.shared_bottom import SharedBottom


class Added(SharedBottom):
    '''A model more.'''
""",
    "data/sets/added.py": """
from dataclasses import replace

from equipoise.data.dataset import Dataset
from equipoise.data.sets import funnel
from equipoise.data.source import DataSource


def load(*, rows: int = 2000) -> Dataset:
    return replace(funnel.SOURCE.load(rows=rows), name="added-data", batch_size=100)


SOURCE = DataSource("added-data", load, summary="A data set more.")
""",
}

USED = """
import sys
from pathlib import Path

import equipoise
assert Path(equipoise.__file__).is_relative_to(sys.argv[1]), equipoise.__file__
from equipoise import cli, data, methods
from equipoise.comparison import compare
from equipoise.ranking.models import MODELS
from equipoise.report.page import write_report

if __name__ == "__main__":
    assert "added-method" in methods.METHODS and "added-model" in MODELS and "added-data" in data.DATASETS
    assert "| `added-method` | One row more. |" in methods.methods_table()
    added = ["equal", "added-method:beta=0.3"]
    compare("added-data", model="added-model", methods=added, seeds=1, out=Path(sys.argv[2]), jobs=2)
    assert "Added (beta=0.3)" in write_report(Path(sys.argv[2])).read_text()
    sys.argv[1:] = ["methods"]
    cli.main()
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests, with one more of each kind."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    package = root / "src" / "equipoise"
    for name, (before, row) in ROWS.items():
        text = (package / name).read_text()
        assert text.count(before) == 1
        (package / name).write_text(text.replace(before, row + before))
    for name, text in FILES.items():
        (package / name).write_text(text)
    return root


def run(copy: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_row_and_a_file_are_all_that_commands_workers_lists_and_the_report_need(copy: Path, tmp_path: Path) -> None:
    (copy / "used.py").write_text(USED)
    said = run(copy, "used.py", str(copy), str(tmp_path / "compared"))
    assert "added-method" in said
    assert "One row more." in said


def test_the_tests_of_the_catalogue_and_of_the_ranks_take_a_new_row_up_by_themselves(copy: Path) -> None:
    said = run(
        copy, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/methods/test_catalogue.py"
    )
    assert len(re.findall(r"test_.*\[(?:.*-)?added-method\]", said)) >= 6
    assert "list(METHODS)" in (ROOT / "tests" / "distributed" / "test_every_method.py").read_text()


@pytest.mark.parametrize(
    ("kind", "name", "places"),
    [
        ("a fork method", "graddrop", {"methods/at_fork.py"}),
        ("a torchjd weighting at the fork", "aligned-mtl", {"methods/at_fork.py"}),
        ("a loss weighting", "uw", {"methods/on_losses.py"}),
        ("a parameter-level method", "mgda-parameters", {"methods/on_parameters.py"}),
        ("an update method", "clippy", {"methods/catalogue.py"}),
        ("a model", "ple", {"ranking/models/catalogue.py"}),
        ("a data set", "census-income-full", {"data/__init__.py", "data/sets/census_income.py"}),
    ],
)
def test_the_name_of_each_kind_stands_in_its_row_and_in_its_own_file_only(
    kind: str, name: str, places: set[str]
) -> None:
    code = re.compile(rf"^(?!\s*>>>).*[\"']{re.escape(name)}[\"']", flags=re.MULTILINE)  # examples aside
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if code.search(file.read_text())}
    assert found == places, kind
