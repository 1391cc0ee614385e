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

import arithmetic
import at_the_fork
import backbones
import drift
import gram_every
import pub_last_layer
import rare_task
import static_weights
import timing
import uncertainty
import updates
from records import Record, Records, Tables, gain, gain_in_words, markdown, ne_of

from equipoise.comparison.result_folder import ResultFolder

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "questions.md", ROOT / "benchmarks" / "results"
SUITE, TIMING = "questions-suite.json", "questions-timing.json"
COMPARISONS = {
    "direction": (
        ("three-tasks", "conflict", "adam"),
        ("multibalance", "multibalance-no-direction", "multibalance-no-magnitude"),
        "multibalance",
    ),
    "update_every": (
        ("update-every",),
        ("pub-exact:update_every=1", "pub-exact", "pub-exact:update_every=100"),
        "pub-exact",
    ),
    "batch size": (("batch-1k", "batch-4k", "batch-16k", "batch-64k"), ("multibalance",)),
    "number of tasks": (
        ("tasks-2", "tasks-8", "tasks-32", "tasks-128"),
        ("multibalance", "multibalance-no-direction"),
    ),
    "optimizer": (("adam", "sgd", "adagrad"), ("multibalance", "pub-exact")),
}
"""Of each question that the suite answers: comparisons, methods to set against equal weights, and one of these to set
the others against."""
NOT_YET = "Not measured yet."
LABELS = {
    "equal": "equal weights",
    "multibalance": "MultiBalance",
    "multibalance-no-direction": "MultiBalance, no direction",
    "multibalance-no-magnitude": "MultiBalance, no magnitude",
    "pub-exact:update_every=1": "PUB (exact), α solved in every step",
    "pub-exact": "PUB (exact), every 10",
    "pub-exact:update_every=100": "PUB (exact), every 100",
}


def of_suite(folder: Path) -> dict[str, Any]:
    """Return what the tables need of a suite's folder: rates, and test NE by method and seed."""
    entries = json.loads((folder / "suite.json").read_text())["settings"]
    return {
        entry["name"]: of_comparison(folder / entry["name"], entry["title"])
        for entry in entries
        if (folder / entry["name"]).exists()
    }


def take_over(folder: Path, file: Path) -> None:
    """Add a suite's comparisons to the file, in place of earlier ones of the same names."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | of_suite(folder)) + "\n")


def of_comparison(folder: Path, title: str) -> Record:
    results = ResultFolder(folder).results()
    tuned = {run.method: [run.lr, run.table_decay] for run in results.runs}
    runs = [{"method": run.method, "seed": run.seed, "test_ne": ne_of(run)} for run in results.runs]
    return {"title": title, "rows": results.plan.rows, "rates": tuned, "trials": len(results.tuning), "runs": runs}


def tables(results: Path) -> Tables:
    """Return the tables of the results that are there."""
    scripts = {
        "static-weights": static_weights.tables, "at-the-fork": at_the_fork.tables, "updates": updates.tables,
        "drift": drift.tables, "uncertainty": uncertainty.tables, "rare-task": rare_task.tables,
        "gram-every": gram_every.tables, "pub-last-layer": pub_last_layer.tables, "backbones": backbones.tables,
        "arithmetic": arithmetic.tables,
    }  # fmt: skip
    found: Tables = {}
    for name, of_script in scripts.items():
        if rows := Records(results / f"questions-{name}.jsonl").rows:
            found |= of_script(rows)
    if (results / SUITE).exists():
        suite = json.loads((results / SUITE).read_text())
        found |= {question: comparison(suite, *chosen) for question, chosen in COMPARISONS.items()}
    if (results / TIMING).exists():
        found |= timing.tables(json.loads((results / TIMING).read_text()))
    return found


def comparison(
    suite: Mapping[str, Any], names: tuple[str, ...], methods: tuple[str, ...], second: str = ""
) -> list[str]:
    """Return a table of each method's gain over equal weights, and over a second method, in some comparisons."""
    rows = []
    for name in filter(suite.__contains__, names):
        of = {
            method: [run for run in suite[name]["runs"] if run["method"] == method]
            for method in ("equal", *methods)
            if method in suite[name]["rates"]
        }
        for method, own in of.items():
            mean = fmean(fmean(run["test_ne"].values()) for run in own if run["test_ne"])
            lr, decay = suite[name]["rates"][method]
            failed = sum(not run["test_ne"] for run in own)
            seeds = str(len(own)) + (f", {failed} diverged" if failed else "")
            gains = [
                "" if reference in {"", method} or method == "equal" else gain_in_words(gain(own, of[reference]))
                for reference in ("equal", second)
            ]
            rows.append([suite[name]["title"], LABELS[method], f"{lr:.3g}, {decay:.2g}", seeds, f"{mean:.4f}", *gains])
    heads = ["setting", "method", "rate, decay", "seeds", "NE", "gain over equal weights"]
    if second:
        return markdown([*heads, f"gain over {LABELS[second]}"], rows)
    return markdown(heads, [row[:-1] for row in rows])


def with_tables(text: str, found: Mapping[str, list[str]]) -> str:
    """Return the text with each table between its comments, and a remark where there is none yet.

    Raises:
        ValueError: a table has no place in the text.
    """
    places = re.findall(r"<!-- begin of (.+?) -->", text)
    if homeless := sorted(found.keys() - set(places)):
        raise ValueError(f"Expected places for all tables in the text, found none for {', '.join(homeless)}.")
    for name in places:
        begin, end = f"<!-- begin of {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = "\n".join([before + begin, "", *found.get(name, [NOT_YET]), "", end]) + rest.split(end)[1]
    return text


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--suite", type=Path, help="folder of `equipoise evidence`, to take its results over")
    chosen = arguments.parse_args()
    if chosen.suite is not None:
        take_over(chosen.suite, RESULTS / SUITE)
    PAGE.write_text(with_tables(PAGE.read_text(), tables(RESULTS)))


if __name__ == "__main__":
    main()
