"""The installed package: versions, contents, dependencies, the first command."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from release.check_distributions import LIBRARY, faults_of_library, faults_of_wheel, package_files

import equipoise

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "equipoise"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINTERS = {"mypy", "ruff"}  # they judge the code, and are not part of what is run with the lowest versions
NOT_RUN_LOWEST = {"docs", "examples", "integrations"}  # extras of which constraints.txt alone is run


def requirements(*, without: set[str] | None = None) -> Iterator[Requirement]:
    extras = PROJECT["optional-dependencies"]
    for line in [
        *PROJECT["dependencies"],
        *(line for extra in extras.keys() - (without or set()) for line in extras[extra]),
    ]:
        if (found := Requirement(line)).name != "equipoise":
            yield found


def pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in found}


def lowest(requirement: Requirement) -> Version:
    (bound,) = requirement.specifier
    assert bound.operator in {">=", "=="}, requirement
    return Version(bound.version)


def test_the_floor_job_pins_every_lower_bound() -> None:
    pins = pinned("constraints-floor.txt")
    for requirement in requirements(without=NOT_RUN_LOWEST):
        name = canonicalize_name(requirement.name)
        if name in LINTERS:
            assert pins[name] in requirement.specifier
        else:
            assert pins[name] == lowest(requirement), name


def test_the_versions_that_the_set_up_installs_are_within_the_bounds() -> None:
    pins = pinned("constraints.txt")
    wrong = {
        requirement.name: str(requirement.specifier)
        for requirement in requirements(without={"examples"})
        if pins[canonicalize_name(requirement.name)] not in requirement.specifier
    }
    assert not wrong


def test_makefile_and_project_ask_for_the_same_python() -> None:
    (lowest_python,) = re.findall(r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    assert PROJECT["requires-python"] == f">={'.'.join(lowest_python)}"


def test_the_matrix_for_a_public_host_runs_every_python_that_is_promised() -> None:
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["test"]["strategy"]
    promised = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert matrix["matrix"]["python"] == promised
    assert {"newest", "lowest"} == set(matrix["matrix"]["versions"])


def test_the_hooks_before_a_commit_are_the_tools_of_the_set_up() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]}
    assert tools == set(re.findall(r"^\t\$\(BIN\)/(ruff|mypy|lint-imports)\b", (ROOT / "Makefile").read_text(), re.M))


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == [equipoise.__version__]


def built_wheel(folder: Path, **variables: str) -> tuple[Path, str]:
    """Build a wheel into the folder; return it and what the build said."""
    build = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=ROOT, env=os.environ | variables, check=True, capture_output=True, text=True
    )
    (built,) = folder.iterdir()
    return built, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))[0]


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    assert not list(faults_of_wheel(wheel, package_files()))


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler")
def test_a_wheel_built_where_there_is_a_compiler_holds_the_library_for_that_machine(wheel: Path) -> None:
    assert wheel.name.endswith(f"_{platform.machine()}.whl")
    assert LIBRARY in zipfile.ZipFile(wheel).namelist()


def test_a_wheel_built_without_a_compiler_is_for_any_machine_and_says_what_it_lacks(tmp_path: Path) -> None:
    wheel, said = built_wheel(tmp_path, CC="false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not list(faults_of_wheel(wheel, package_files()))
    assert "Building without the C library" in said
    assert ("false failed" if sys.platform == "linux" else "on Linux alone") in said


def test_a_library_that_needs_a_newer_glibc_than_its_wheel_says_is_found() -> None:
    assert list(faults_of_library(b"..GLIBC_2.2.5..GLIBC_2.34..")) == ["holds a library that needs glibc 2.34"]
    assert not list(faults_of_library(b"..GLIBC_2.2.5..GLIBC_2.17.."))


WITHOUT_EXTRAS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
"""

TRAIN = """
import torch
import equipoise
from torch import nn

assert equipoise.__file__.startswith(sys.path[0]), equipoise.__file__
bottom, towers = nn.Linear(3, 4), nn.ModuleList(nn.Linear(4, 1) for _ in range(2))
fork = equipoise.MultiBalance(["click", "like"])
optimizer = equipoise.PUB(torch.optim.Adam([*bottom.parameters(), *towers.parameters()]), shared=bottom.parameters())
losses = [tower(copy).square().mean() for tower, copy in zip(towers, fork(bottom(torch.ones(2, 3))))]
sum(losses).backward()
optimizer.zero_grad()
optimizer.backward([tower(bottom(torch.ones(2, 3))).square().mean() for tower in towers])
optimizer.step()
print(sorted(equipoise.Monitor(fork, optimizer).read().scalars())[0])
"""


def optional_modules() -> list[str]:
    """Return the import names of the packages in the extras."""
    optional = {canonicalize_name(found.name) for found in requirements()} - {"torch"}
    return sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if optional & {canonicalize_name(package) for package in packages}
    )


def run_without(
    modules: list[str], script: str, *words: str, path: Path = SOURCE.parent
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_EXTRAS + script, str(path), ",".join(modules), *words]
    # The tests' own path would bring the source in place of the wheel.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_core_of_the_wheel_trains_with_torch_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    blocked = optional_modules()
    assert {"numpy", "polars", "torchjd", "torchmetrics", "typer", "yaml"} <= set(blocked)
    done = run_without(blocked, TRAIN, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


COMMAND = """
from equipoise.__main__ import main
main()
"""


@pytest.mark.parametrize(("missing", "command"), [("typer", "--help"), ("pydantic", "methods")])
def test_a_command_without_its_packages_says_in_one_line_what_to_install(missing: str, command: str) -> None:
    done = run_without([missing], COMMAND, command)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert "pip install '.[compare]' in a clone of equipoise" in done.stderr
    assert not done.stdout


def test_a_fault_of_equipoise_itself_is_not_taken_for_a_missing_package() -> None:
    done = run_without(["equipoise.cli.tables"], COMMAND, "methods")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_package_that_a_users_module_lacks_is_not_taken_for_one_of_equipoise(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def main():\n    import not_installed\n")
    with_own_code = "import equipoise.cli, own\nequipoise.cli.main = own.main\n"
    done = run_without([], f"sys.path.append({str(tmp_path)!r})\n{with_own_code}{COMMAND}")
    assert done.returncode == 1
    assert "No module named 'not_installed'" in done.stderr
    assert "Traceback" in done.stderr


def test_every_public_name_is_listed_before_it_is_first_used() -> None:
    names = "import equipoise; names = {*equipoise.__all__, 'audit', 'compare', 'data', 'forks', 'optim', 'train'}\n"
    there = "assert names <= set(dir(equipoise)), dir(equipoise)\nassert 'torch' not in sys.modules\n"
    done = run_without([], names + there + "print(sum(getattr(equipoise, name) is not None for name in names))")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(equipoise.__all__) + 6


def test_help_does_not_wait_for_torch() -> None:
    done = run_without(["torch"], COMMAND, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


def test_the_command_says_its_version() -> None:
    command = [sys.executable, "-m", "equipoise", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"equipoise {equipoise.__version__} (torch {torch.__version__}, "
        f"Python {'.'.join(map(str, sys.version_info[:3]))})\n"
    )
