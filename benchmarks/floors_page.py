"""Tables of measured over least times, and their section in docs/performance.md.

    python benchmarks/floors_page.py

The script writes the section again from the results of `floors.py`, `step_parts.py` and `waiting.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
PAGE: Final = HERE.parent / "docs" / "performance.md"
OF_SECTION: Final = ("floors-cpu", "step-parts-cpu", "waiting-cpu")
BEGIN, END = "<!-- written by benchmarks/floors_page.py -->", "<!-- end -->"
BEFORE, AFTER = "one batch at a time, 1 thread", "gathered ahead, 1 thread"


def share(part: float, digits: int = 1) -> str:
    """Return a part of a whole as per cent."""
    return f"{100 * part:.{digits}f} %"


def signed(part: float) -> str:
    """Return what is added to a whole, or saved of it, as per cent."""
    return f"{100 * part:+.1f} %"


def table_of_rows(result: Mapping[str, Any]) -> list[str]:
    """Return the measured times over the least ones."""
    lines = ["| workload | contender | measured, ms | least, ms | measured over least |", "|---|---|---:|---:|---:|"]
    return lines + [
        f"| {found['workload']} | {found['contender']} | {found['measured_ms']:.1f} | {found['floor_ms']:.1f} "
        f"| ×{found['ratio']:.2f} |"
        for found in result["rows"]
    ]


def table_of_balancing(result: Mapping[str, Any]) -> list[str]:
    """Return what balancing adds to the plain sum."""
    lines = ["| workload | contender | predicted | measured |", "|---|---|---:|---:|"]
    plain = {found["workload"]: found for found in result["rows"] if found["contender"] == "plain sum"}
    for found in result["rows"]:
        if found["contender"].startswith(("MultiBalance", "PUB")):
            base = plain[found["workload"]]
            predicted, measured = (
                (found[kind] - base[kind]) / base["measured_ms"] for kind in ("floor_ms", "measured_ms")
            )
            lines.append(f"| {found['workload']} | {found['contender']} | {signed(predicted)} | {signed(measured)} |")
    return lines


def table_of_changes(result: Mapping[str, Any]) -> list[str]:
    """Return what changes saved."""
    lines = ["| change | workload | before, ms | predicted | measured |", "|---|---|---:|---:|---:|"]
    return lines + [
        f"| {change['change']} | {change['workload']} | {change['before_ms']:.1f} | {signed(-change['predicted'])} "
        f"| {signed(-change['measured'])} |"
        for change in result["saved"]
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the page of a result."""
    lines = [
        f"# Measured time over the least possible: {result['machine']}", "",
        "Average steps of `speed.py` and metrics of `evaluation.py` on two threads, average steps of the trainings of",
        f"`side_by_side.py` on one; torch {result['torch']}, load {result['load']:.1f} at the start. What is counted,",
        f"and how the least time follows, says `benchmarks/counting.py`. Written by `{result['command']}`.", "",
        "| threads | products, up to GFLOP/s | in the cache, GB/s | beyond, GB/s |",
        "|---:|---:|---:|---:|",
        *(
            f"| {rates['threads']} | {rates['gflops']:.0f} | {rates['cache_gb_per_s']:.0f} "
            f"| {rates['memory_gb_per_s']:.0f} |"
            for rates in result["rates"]
        ),
        "", *table_of_rows(result), "",
        "## What balancing adds", "", "As a share of the plain sum's measured time:", "",
        *table_of_balancing(result), "",
        "## What changes saved", "", "As a share of the time before:", "", *table_of_changes(result), "",
        "## Counts", "",
    ]  # fmt: skip
    for name, terms in result["counts"].items():
        lines += [f"{name}:", "", "| term | MFLOP | MB | in one step out of | least, ms |", "|---|---:|---:|---:|---:|"]
        lines += [
            f"| {term['name']} | {term['mflop']:.0f} | {term['megabytes']:.1f} | {term['every']} "
            f"| {term['floor_ms']:.2f} |"
            for term in terms
        ]
        lines.append("")
    return "\n".join(lines)


def table_ms(parts: Sequence[Mapping[str, Any]], kind: str = "measured_ms") -> float:
    """Return the time of the gradient of the embedding table."""
    return sum(part[kind] for part in parts if part["part"] == "gradient of the table")


def rows_of_table(parts: Mapping[str, Any]) -> list[str]:
    """Return what it saved to add up the gradient of the embedding table in one operation.

    Predicted is all of that part above its least time.
    """
    lines = []
    for step in parts["steps"]:
        former = step["former_parts"]
        whole = sum(part["measured_ms"] for part in former)
        most = (table_ms(former) - table_ms(former, "floor_ms")) / whole
        saved, low, high = (signed(step[name] - 1) for name in ("ratio", "low", "high"))
        lines.append(
            f"| gradient of the table in one operation | {step['step']}, one thread | {whole:.1f} "
            f"| {signed(-most)} at most | {saved} ({low} to {high}) |"
        )
    return lines


def above_the_least(step: Mapping[str, Any]) -> str:
    """Return which three parts of a step are most above their least time, and by which share of all that is above."""
    excess = {part["part"]: part["measured_ms"] - part["floor_ms"] for part in step["parts"]}
    largest = sorted(excess, key=excess.__getitem__, reverse=True)[:3]
    return ", ".join(f"{part} ({share(excess[part] / sum(excess.values()), 0)})" for part in largest)


def table_of_waiting(result: Mapping[str, Any]) -> list[str]:
    """Return the share of the time that trainings waited for data, before and after batches were gathered ahead."""
    before, after = (
        {(row["data"], row["batch"]): row for row in result["runs"][label]["rows"]} for label in (BEFORE, AFTER)
    )
    lines = [
        "| data | batch | waiting in a step, before | now | first batch of an epoch, before | now |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return lines + [
        f"| {data} | {batch} | {share(before[data, batch]['later_share'])} | {share(row['later_share'])} "
        f"| {before[data, batch]['first_ms']:.1f} ms | {row['first_ms']:.1f} ms |"
        for (data, batch), row in after.items()
    ]


def section(floors: Mapping[str, Any], parts: Mapping[str, Any], waiting: Mapping[str, Any]) -> str:
    """Return the tables of the section."""
    lines = [
        *table_of_rows(floors), "",
        "Parts with most of the time above the least, on one thread",
        "([step-parts-cpu.md](../benchmarks/results/step-parts-cpu.md)):", "",
        *(f"- {step['step']}: {above_the_least(step)}" for step in parts["steps"]), "",
        "What balancing adds, as a share of the plain sum's time; predicted is the least:", "",
        *table_of_balancing(floors), "", "### What changes saved", "", "As a share of the time before:", "",
        *table_of_changes(floors), *rows_of_table(parts), "",
        "### Waiting for data", "", *table_of_waiting(waiting),
    ]  # fmt: skip
    return "\n".join(lines)


def committed() -> tuple[dict[str, Any], ...]:
    """Return the results of the section."""
    return tuple(json.loads((RESULTS / f"{name}.json").read_text()) for name in OF_SECTION)


def with_section(page: str, found: str) -> str:
    """Return the page with another section between its marks."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{found}\n{END}{rest.split(END)[1]}"


def main() -> None:
    PAGE.write_text(with_section(PAGE.read_text(), section(*committed())))


if __name__ == "__main__":
    main()
