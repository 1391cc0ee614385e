"""Compare two results of `benchmarks/bench.py`, and name the ratios that became worse by more than 3 %.

    python benchmarks/bench_compare.py                      # the committed results against those in the working tree
    python benchmarks/bench_compare.py --before A --after B  # those of two folders

Only ratios are compared: of times measured in turns on one machine. A ratio counts as worse if its median moved by more
than 3 % to the worse and the two intervals do not meet; otherwise the measurement does not tell. The exit code is 1 if
one is worse, and 2 if there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
TOLERANCE: Final = 0.03

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """A measured ratio with its interval.

    Attributes:
        higher_is_better: else lower is.
    """

    ratio: float
    low: float
    high: float
    higher_is_better: bool = False

    def is_worse_than(self, before: Ratio, /) -> bool:
        """Tell whether this is worse by more than 3 %, beyond what both intervals allow."""
        if self.higher_is_better:
            return self.ratio * (1 + TOLERANCE) < before.ratio and self.high < before.low
        return self.ratio > before.ratio * (1 + TOLERANCE) and self.low > before.high


def _ratio(row: Result, *, higher_is_better: bool = False) -> Ratio:
    return Ratio(row["ratio"], row["low"], row["high"], higher_is_better)


def _of_speed(result: Result) -> Iterator[tuple[str, Ratio]]:
    """Yield the cost of each method's step over that of the plain sum; torchjd's own methods are not ours."""
    clock = ", by processor time" if result.get("clock") == "processor" else ""
    for row in result["rows"]:
        workload = "" if row.get("workload", "cpu") == "cpu" else f", {row['workload']}"
        if not row["contender"].startswith(("plain sum", "torchjd")):
            name = f"{row['contender']}, {row['tasks']} tasks{workload}"
            yield f"{name}: step over that of the plain sum{clock}", _ratio(row)


def _of_fork(result: Result) -> Iterator[tuple[str, Ratio]]:
    for row in result["rows"]:
        form = ", in PyTorch's operations" if row.get("form") == "operations" else ""
        yield f"MultiBalance, {row['tasks']} tasks{form}: backward pass over that of the plain sum", _ratio(row)


def _of_side_by_side(result: Result) -> Iterator[tuple[str, Ratio]]:
    """Yield equipoise's speed over that of the others, and its epochs over that of its plain sum."""
    for row in result["rows"]:
        name = f"{row['library']}, {row['name']}"
        for kind, words in (("seconds", ""), ("processor", ", by processor time")):
            if "speed" in row:
                yield f"equipoise's speed over that of {name}{words}", _ratio(row["speed"][kind], higher_is_better=True)
            elif row["library"] == "equipoise" and "over_plain" in row:
                yield f"{name}: epoch over that of the plain sum{words}", _ratio(row["over_plain"][kind])


RATIOS_OF: Final[Mapping[str, Callable[[Result], Iterator[tuple[str, Ratio]]]]] = {
    "fork-backward-cpu.json": _of_fork,
    "speed-cpu.json": _of_speed,
    "speed-pub-cpu.json": _of_speed,
    "side-by-side.json": _of_side_by_side,
}
"""By the name of a result: how its ratios are read."""


@dataclass(frozen=True)
class Measured:
    """The ratios of one folder of results.

    Attributes:
        ratios: by what they say.
        machines: by result, where it was measured.
    """

    ratios: Mapping[str, Ratio]
    machines: Mapping[str, str]


def read(texts: Mapping[str, str]) -> Measured:
    """Read the results of which there is a text, by their name."""
    results = {name: json.loads(text) for name, text in texts.items()}
    return Measured(
        {what: ratio for name, result in results.items() for what, ratio in RATIOS_OF[name](result)},
        {name: str(result.get("machine")) for name, result in results.items()},
    )


def in_folder(folder: Path) -> dict[str, str]:
    """Return the text of each result in a folder."""
    return {name: (folder / name).read_text() for name in RATIOS_OF if (folder / name).is_file()}


def committed(revision: str = "HEAD") -> dict[str, str]:
    """Return the text of each result of a revision of the repository."""
    found = {}
    for name in RATIOS_OF:
        command = ["git", "-C", str(HERE), "show", f"{revision}:./{RESULTS.name}/{name}"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        if shown.returncode == 0:
            found[name] = shown.stdout
    return found


def compare(before: Measured, after: Measured) -> tuple[list[str], list[str]]:
    """Return the lines to show, and of these the ratios that became worse."""
    worse = []
    lines = [
        f"{name}: measured on {machine}, now on {after.machines[name]}"
        for name, machine in before.machines.items()
        if after.machines.get(name, machine) != machine
    ]
    for what, now in after.ratios.items():
        if (then := before.ratios.get(what)) is None:
            continue
        change = now.ratio / then.ratio - 1
        line = f"{what}: {_words(then)} -> {_words(now)}, {change:+.1%}"
        if now.is_worse_than(then):
            worse.append(line)
        lines.append(("WORSE  " if now.is_worse_than(then) else "       ") + line)
    for where, own, other in (("before", before, after), ("after", after, before)):
        lines += [f"only {where}: {what}" for what in own.ratios if what not in other.ratios]
    return lines, worse


def _words(found: Ratio) -> str:
    return f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--before", type=Path, help="folder of results; the committed ones where it is left out")
    arguments.add_argument("--after", type=Path, default=RESULTS, help="folder of results")
    chosen = arguments.parse_args()
    before = read(committed() if chosen.before is None else in_folder(chosen.before))
    after = read(in_folder(chosen.after))
    if not before.ratios.keys() & after.ratios.keys():
        print(
            f"Expected results on both sides out of {', '.join(RATIOS_OF)}; found no ratio in common. "
            "Run `make bench` first.",
            file=sys.stderr,
        )
        return 2
    lines, worse = compare(before, after)
    print("\n".join(lines))
    if worse:
        print(f"\n{len(worse)} became worse by more than {TOLERANCE:.0%}:", *worse, sep="\n", file=sys.stderr)
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
