"""`make bench` and `make bench-compare`: time limits, results that can be read, and which ratios count as worse."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
RESULTS = SCRIPTS / "results"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Import a script by name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture
def compare(script) -> ModuleType:
    return script("bench_compare")


def fork_result(*ratios: tuple[float, float, float], machine: str = "a machine") -> str:
    """Return a result of fork_step.py with these ratios, for 1, 2, ... tasks."""
    rows = [
        {"tasks": tasks, "ratio": ratio, "low": low, "high": high}
        for tasks, (ratio, low, high) in enumerate(ratios, start=1)
    ]
    return json.dumps({"machine": machine, "rows": rows})


def test_all_benchmarks_end_within_20_minutes_and_have_a_script(script) -> None:
    bench = script("bench")
    assert sum(benchmark.seconds for benchmark in bench.BENCHMARKS) <= 20 * 60
    assert all((SCRIPTS / benchmark.script).is_file() for benchmark in bench.BENCHMARKS)


def test_what_is_compared_is_measured(script, compare: ModuleType) -> None:
    measured = {f"{benchmark.result}.json" for benchmark in script("bench").BENCHMARKS}
    assert compare.RATIOS_OF.keys() <= measured


def test_committed_results_are_read_and_none_is_worse_than_itself(compare: ModuleType) -> None:
    texts = compare.in_folder(RESULTS)
    assert {"speed-cpu.json"} <= texts.keys()
    found = compare.read(texts)
    assert all(ratio.low <= ratio.ratio <= ratio.high for ratio in found.ratios.values())
    lines, worse = compare.compare(found, found)
    assert len(lines) == len(found.ratios)
    assert not worse


@pytest.mark.parametrize(
    ("before", "after", "higher_is_better", "worse"),
    [
        ((1.00, 0.99, 1.01), (1.04, 1.02, 1.06), False, True),
        ((1.00, 0.99, 1.01), (1.029, 1.02, 1.04), False, False),  # under 3 %
        ((1.00, 0.99, 1.03), (1.04, 1.02, 1.06), False, False),  # the intervals meet
        ((1.04, 1.02, 1.06), (1.00, 0.99, 1.01), False, False),  # better
        ((2.00, 1.95, 2.05), (1.80, 1.75, 1.90), True, True),
        ((2.00, 1.95, 2.05), (1.96, 1.90, 1.94), True, False),  # under 3 %
        ((2.00, 1.85, 2.05), (1.80, 1.75, 1.90), True, False),  # the intervals meet
        ((1.80, 1.75, 1.90), (2.00, 1.95, 2.05), True, False),  # better
    ],
)
def test_a_ratio_is_worse_from_3_percent_and_beyond_both_intervals(
    compare: ModuleType, before: tuple, after: tuple, *, higher_is_better: bool, worse: bool
) -> None:
    then, now = (compare.Ratio(*values, higher_is_better) for values in (before, after))
    assert now.is_worse_than(then) is worse


def run(compare: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["bench_compare.py", *map(str, words)])
    return compare.main()


def folders(tmp_path: Path, before: str, after: str) -> tuple[str, Path, str, Path]:
    for name, text in (("before", before), ("after", after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "fork-backward-cpu.json").write_text(text)
    return "--before", tmp_path / "before", "--after", tmp_path / "after"


def test_the_command_fails_and_names_the_ratio_that_became_worse(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = folders(
        tmp_path,
        fork_result((1.1, 1.09, 1.11), (1.2, 1.19, 1.21), (1.3, 1.29, 1.31)),
        fork_result((1.1, 1.09, 1.11), (1.3, 1.29, 1.31), machine="another"),
    )
    assert run(compare, monkeypatch, *words) == 1
    printed = capsys.readouterr()
    assert "1 became worse by more than 3%" in printed.err
    assert "MultiBalance, 2 tasks" in printed.err
    assert "1 tasks" not in printed.err
    assert "+8.3%" in printed.err
    assert "only before: MultiBalance, 3 tasks" in printed.out
    assert "measured on a machine, now on another" in printed.out


def test_the_command_succeeds_where_nothing_became_worse(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = folders(tmp_path, fork_result((1.1, 1.09, 1.11)), fork_result((1.0, 0.99, 1.01)))
    assert run(compare, monkeypatch, *words) == 0


def test_without_results_the_command_says_what_to_do(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(compare, monkeypatch, "--before", tmp_path, "--after", tmp_path) == 2
    assert "Run `make bench` first" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_without_a_folder_the_committed_results_are_the_ones_before(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, "-C", str(tmp_path), *words], check=True, capture_output=True)

    scripts = tmp_path / "benchmarks"
    file = scripts / "results" / "fork-backward-cpu.json"
    file.parent.mkdir(parents=True)
    file.write_text(fork_result((1.1, 1.09, 1.11)))
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "results")
    monkeypatch.setattr(compare, "HERE", scripts)
    file.write_text(fork_result((1.1, 1.09, 1.11)))
    assert run(compare, monkeypatch, "--after", file.parent) == 0
    file.write_text(fork_result((1.2, 1.19, 1.21)))
    assert run(compare, monkeypatch, "--after", file.parent) == 1


WRITES = "import sys; open(sys.argv[sys.argv.index('--out') + 1], 'w').write('{}')"


@pytest.mark.parametrize(
    ("text", "seconds", "reason"),
    [
        (WRITES, 60, None),
        ("raise SystemExit(3)", 60, "ended with code 3"),
        ("while True: pass", 0, "took more than 0 s"),
    ],
)
def test_a_benchmark_that_fails_or_takes_too_long_is_named(
    script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, seconds: int, reason: str | None
) -> None:
    bench = script("bench")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "timing.py").write_text(text)
    monkeypatch.setattr(bench, "HERE", tmp_path / "benchmarks")
    found = bench.run(bench.Benchmark("timing.py", "timing", (), seconds), tmp_path, seconds)
    assert found == reason
    assert (tmp_path / "timing.json").exists() is (reason is None)


def test_a_fork_is_measured_against_the_plain_sum(script, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_step = script("fork_step")
    monkeypatch.setattr(fork_step, "SHAPE", (32, 8))
    rows = fork_step.measure(2, 10)
    result = {"machine": "a machine", "torch": "2", "command": "python", "rows": rows}
    assert [row["form"] for row in rows] == ["in C", "operations"]
    for row in rows:
        assert row["pairs"] == 9
        assert 0 < row["low"] <= row["ratio"] <= row["high"]
        assert f"| 2 | {row['form']} | ×{row['ratio']:.3f} |" in fork_step.markdown(result)


def test_speeds_and_costs_are_ratios_by_round(script) -> None:
    page = script("side_by_side")
    seconds = {
        ("equipoise", "plain sum"): [1.0, 2.0, 4.0],
        ("equipoise", "MultiBalance"): [1.1, 2.2, 4.4],
        ("other", "plain sum"): [3.0, 6.0, 12.0],
        ("other", "GradNorm"): [6.0, 12.0, 24.0],
    }
    measured = {
        "contenders": [
            {"library": library, "name": name, "seconds": found, "processor": [2 * found[0]] * 3}
            for (library, name), found in seconds.items()
        ]
    }
    rows = {(row["library"], row["name"]): row for row in page.rows_of(measured, 100)}
    assert rows["equipoise", "plain sum"] == {
        "library": "equipoise", "name": "plain sum", "examples_per": {"seconds": 50.0, "processor": 50.0}
    }  # fmt: skip
    expected = {"pairs": 3, "ratio": 1.1, "low": 1.1, "high": 1.1}
    assert rows["equipoise", "MultiBalance"]["over_plain"]["seconds"] == pytest.approx(expected)
    for kind in ("seconds", "processor"):
        assert rows["other", "plain sum"]["speed"][kind]["ratio"] == pytest.approx(3)
        assert rows["other", "GradNorm"]["speed"][kind]["ratio"] == pytest.approx(6 / 1.1)
        assert rows["other", "GradNorm"]["over_plain"][kind]["ratio"] == pytest.approx(2)


def test_the_page_names_the_fastest_other_library_and_what_could_not_be_measured(script) -> None:
    page = script("side_by_side")

    def row(library: str, *ratios: float) -> dict[str, Any]:
        kinds = zip(("seconds", "processor"), ratios, strict=True)
        speed = {kind: {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "pairs": 6} for kind, ratio in kinds}
        return {
            "library": library,
            "name": "plain sum",
            "examples_per": {"seconds": 1234.5, "processor": 678.0},
            "speed": speed,
        }

    text = page.markdown(
        {
            "machine": "a machine", "threads": 1, "load": 0.5, "versions": {"torch": "2"}, "workload": "Rows",
            "rounds": 6, "command": "python", "rows": [row("slow", 4.0, 3.0), row("fast", 2.5, 3.5)],
            "failed": [{"library": "slow", "name": "UWL", "reason": "KeyError: 'x'"}], "missing": ["absent"],
        }
    )  # fmt: skip
    assert "| slow | plain sum | 1,234 | 678 | ×4.00 (3.90 to 4.10) | ×3.00 (2.90 to 3.10) |  |  |" in text
    assert "- in examples per second fast, ×2.50 (2.40 to 2.60)\n" in text
    assert "- in examples per second of processor time slow, ×3.00 (2.90 to 3.10)\n" in text
    assert "- slow, UWL: KeyError: 'x'" in text
    assert "Not installed: absent." in text


def test_a_library_trains_in_its_process_and_an_exception_there_is_its_result(script) -> None:
    side = script("side_by_side")
    workload = side.Workload(512, 2, 128, dimension=4, bottom=(8,), tower=(4,), rate=1e-3)
    with side.servers(["equipoise"], workload, threads=1) as running:
        found = running["equipoise"].train("plain sum")
        assert found["seconds"] > 0
        assert found["processor"] > 0
        assert found["parameters"] > 0
        with pytest.raises(side.FailedError, match="KeyError: 'nothing'"):
            running["equipoise"].train("nothing")
        process = running["equipoise"].process
    assert not process.is_alive()
