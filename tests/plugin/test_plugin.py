"""A package that is installed beside equipoise adds a method, a model and a data set to every command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


class Installed:
    """Runs Python in a process that sees the package."""

    def __init__(self, site: Path) -> None:
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(SOURCE)]), "COLUMNS": "200"}

    def python(self, *words: str) -> str:
        """Run ``python WORDS`` and return its output."""
        done = subprocess.run(
            [sys.executable, *words], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The package, built and installed by pip from its folder, without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(HERE / "package", folder / "package")  # setuptools builds in the source folder
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
            "--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "package"),
        ],
        check=True,
    )  # fmt: skip
    return Installed(folder / "site")


def records(out: Path) -> dict[str, dict]:
    """The runs of a comparison with one seed, by method."""
    found = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    return {run["method"]: run for run in found}


def test_what_it_adds_is_compared_by_two_workers_and_reported_by_name_and_by_import_path(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(
        "data: coins\n"
        "model: equipoise_example.models:TwoViews\n"
        "model_options: {width: 8}\n"
        "methods: [equal, unit-gradients, 'equipoise_example.methods:UNIT_GRADIENTS:power=0.5']\n"
        "epochs: 1\n"
        "batch_size: 100\n"
        "seeds: 1\n"
    )
    out = tmp_path / "compared"
    said = installed.python(
        "-m", "equipoise", "compare", str(tmp_path / "settings.yaml"), "--jobs", "2", "--out", str(out)
    )
    assert "Unit gradients (power=0.5)" in said
    runs = records(out)
    assert sorted(runs) == ["equal", "equipoise_example.methods:UNIT_GRADIENTS:power=0.5", "unit-gradients"]
    assert len({run["test"]["edge"]["ne"] for run in runs.values()}) == 3
    for fork in ("ids_fork", "numbers_fork"):
        assert any(f"fork/{fork}/norm/heads" in reading for reading in runs["unit-gradients"]["monitor"])
    report = (out / "report.html").read_text()
    for expected in ("Unit gradients", "Gradients at the fork at length 1.", "TwoViews", "coins"):
        assert expected in report


COMMANDS = """
import sys
from pathlib import Path
from equipoise.cli import main
from equipoise.comparison.runner import train_into
from equipoise.settings import Settings
from equipoise.training import StoppedError

folder = Path(sys.argv[1])


def command(*words, code=0):
    sys.argv = ["equipoise", *words]
    try:
        main()
    except SystemExit as ended:
        assert (ended.code or 0) == code, ended.code


train = ("train", "--data", "coins", "--model", "two-views", "--epochs", "2", "--batch-size", "100", "--method")
command("methods")
command(*train, "unit-gradients", "--out", str(folder / "whole"))
settings = Settings.of(data="coins", model="two-views", epochs=2, batch_size=100, method="unit-gradients")
try:
    train_into(folder / "stopped", settings, stop=iter([False] * 9 + [True]).__next__)
    raise AssertionError("not stopped")
except StoppedError:
    assert not (folder / "stopped" / "run.json").exists()
command(*train, "unit-gradients", "--out", str(folder / "stopped"), "--resume")
print("NOW ANOTHER")
command(*train, "unit-gradients:power=0.5", "--out", str(folder / "stopped"), "--resume", code=2)
"""


def test_its_method_is_listed_and_a_checkpoint_with_it_is_resumed_to_the_same_result(
    installed: Installed, tmp_path: Path
) -> None:
    said, _, refused = installed.python("-c", COMMANDS, str(tmp_path)).partition("NOW ANOTHER")
    assert "Gradients at the fork at length 1." in said
    whole, resumed = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "stopped"))
    for key in ("method", "steps", "test", "validation", "monitor"):
        assert resumed[key] == whole[key]
    assert "power=0.5" in refused  # the checkpoint belongs to the method without it


SCRIPT = '''
"""A script that registers what it defines itself, and compares it with two jobs."""

import sys
from pathlib import Path

from equipoise import Fork
from equipoise.comparison import compare
from equipoise.errors import SettingError
from equipoise.methods import Method, register


class Halves(Fork):
    def weigh(self, gram, present):
        return 0.5 * super().weigh(gram, present)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = {"methods": ["equal", "halves"], "epochs": 1, "batch_size": 100, "seeds": 1, "out": folder, "jobs": 2}
    register(Method("halves", "Halves", "Half of every gradient.", fork=lambda tasks: Halves(tasks)))
    try:
        compare("coins", **settings)
        raise AssertionError("a lambda was handed to a worker")
    except SettingError as error:
        print(error)
        assert not (folder / "runs.jsonl").exists()
    register(Method("halves", "Halves", "Half of every gradient.", fork=Halves), replace=True)
    compare("coins", **settings)
'''


def test_a_script_registers_its_own_method_for_its_workers_or_is_told_why_not(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    said = installed.python(str(tmp_path / "script.py"), str(tmp_path / "compared"))
    assert "The method 'halves' cannot be handed to worker processes" in said
    assert "or use one job" in said
    assert records(tmp_path / "compared").keys() == {"equal", "halves"}
