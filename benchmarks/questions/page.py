"""Writes the tables of docs/questions.md from the results under benchmarks/results.

    python benchmarks/questions/page.py --suite questions-suite   # first take over what `equipoise evidence` has left
    python benchmarks/questions/page.py

A table stands between two comments that name it. The text around them is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import at_the_fork
import drift
import static_weights
import timing
import updates
from records import Record, Records, Tables, gain, gain_in_words, markdown, ne_of

from equipoise.comparison.result_folder import ResultFolder

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "questions.md", ROOT / "benchmarks" / "results"
SUITE, TIMING = "questions-suite.json", "questions-timing.json"
FORKED = ("three-tasks", "conflict", "adam")
BATCHES = ("batch-1k", "batch-4k", "batch-16k", "batch-64k")
TASKS = ("tasks-2", "tasks-8", "tasks-32", "tasks-128")
OPTIMIZERS = ("adam", "sgd", "adagrad")
LABELS = {
    "equal": "equal weights",
    "multibalance": "MultiBalance",
    "multibalance-no-direction": "MultiBalance, no direction",
    "multibalance-no-magnitude": "MultiBalance, no magnitude",
    "pub:update_every=1": "PUB, α solved in every step",
    "pub": "PUB, every 10",
    "pub:update_every=100": "PUB, every 100",
}


def of_suite(folder: Path) -> dict[str, Any]:
    """Return what the tables need of a suite's folder: rates, and test NE by method and seed."""
    entries = json.loads((folder / "suite.json").read_text())["settings"]
    return {entry["name"]: of_comparison(folder / entry["name"], entry["title"]) for entry in entries}


def of_comparison(folder: Path, title: str) -> Record:
    results = ResultFolder(folder).results()
    tuned = {run.method: [run.lr, run.table_decay] for run in results.runs}
    runs = [{"method": run.method, "seed": run.seed, "test_ne": ne_of(run)} for run in results.runs]
    return {"title": title, "rows": results.plan.rows, "rates": tuned, "trials": len(results.tuning), "runs": runs}


def tables(results: Path) -> Tables:
    """Return all tables of the page."""
    suite = json.loads((results / SUITE).read_text())
    scripts = {
        "static-weights": static_weights.tables, "at-the-fork": at_the_fork.tables, "updates": updates.tables,
        "drift": drift.tables,
    }  # fmt: skip
    found: Tables = {}
    for name, of_script in scripts.items():
        found |= of_script(Records(results / f"questions-{name}.jsonl").rows)
    found["direction"] = comparison(
        suite, FORKED, ("multibalance", "multibalance-no-direction", "multibalance-no-magnitude")
    )
    found["update_every"] = comparison(suite, ("adam",), ("pub:update_every=1", "pub", "pub:update_every=100"))
    found["batch size"] = comparison(suite, BATCHES, ("multibalance",))
    found["number of tasks"] = comparison(suite, TASKS, ("multibalance", "multibalance-no-direction"))
    found["optimizer"] = comparison(suite, OPTIMIZERS, ("multibalance", "pub"))
    measured = results / TIMING
    for question, lines in (timing.tables(json.loads(measured.read_text())) if measured.exists() else {}).items():
        found[question] = lines
    for question in ("number of tasks", "batch size", "update_every"):
        found.setdefault(f"cost by {question}", ["Not measured yet: that needs a machine that does nothing else."])
    return found


def comparison(suite: Mapping[str, Any], names: tuple[str, ...], methods: tuple[str, ...]) -> list[str]:
    """Return a table of each method's gain over equal weights in some comparisons of the suite."""
    rows = []
    for name in names:
        runs = suite[name]["runs"]
        equal = [run for run in runs if run["method"] == "equal"]
        for method in methods:
            own = [run for run in runs if run["method"] == method]
            means = [fmean(fmean(run["test_ne"].values()) for run in of if run["test_ne"]) for of in (equal, own)]
            rates = [f"{suite[name]['rates'][which][0]:.3g}" for which in ("equal", method)]
            cells = [LABELS[method], *rates, *(f"{mean:.4f}" for mean in means), gain_in_words(gain(own, equal))]
            rows.append([suite[name]["title"], *cells])
    return markdown(
        ["setting", "method", "rate of equal weights", "its rate", "NE of equal weights", "its NE", "gain"], rows
    )


def with_tables(text: str, found: Mapping[str, list[str]]) -> str:
    """Return the text with each table between its comments.

    Raises:
        ValueError: a table has no place in the text, or a place no table.
    """
    places = re.findall(r"<!-- begin of (.+?) -->", text)
    if sorted(places) != sorted(found):
        raise ValueError(f"Expected places for {sorted(found)}, found {sorted(places)}.")
    for name, lines in found.items():
        begin, end = f"<!-- begin of {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = "\n".join([before + begin, "", *lines, "", end]) + rest.split(end)[1]
    return text


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--suite", type=Path, help="folder of `equipoise evidence`, to take its results over")
    chosen = arguments.parse_args()
    if chosen.suite is not None:
        (RESULTS / SUITE).write_text(json.dumps(of_suite(chosen.suite)) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text(), tables(RESULTS)))


if __name__ == "__main__":
    main()
