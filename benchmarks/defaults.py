"""Search for the options of MultiBalance and PUB that are best on validation data: the library's defaults.

    python benchmarks/defaults.py --out benchmarks/results

Every variant trains on every rate of the grid with the tuning seeds that ``equipoise compare --tune`` uses, none of
which reports a result anywhere. The test splits are not looked at. Lines already in the results file are kept.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from equipoise import data
from equipoise.comparison.jobs import Job, cores, run_jobs
from equipoise.settings import Settings

SEEDS = (1000, 1001)
FORKS = (
    "equal",
    "multibalance:direction=none",
    "multibalance:beta=0.03",
    "multibalance:beta=0.1",
    "multibalance:beta=0.3",
    "multibalance:beta=1.0",
    "multibalance:direction=gram,beta=0.03",
    "multibalance:direction=gram,beta=0.3",
    "multibalance:gamma=0.1,beta=0.3",
    "multibalance:rho=1.0,beta=0.3",
    "multibalance:magnitude=own,beta=0.3",
    "multibalance:magnitude=own,direction=gram,beta=0.03",
    "multibalance:magnitude=own,direction=gram,beta=1.0",
)
UPDATES = (
    "pub:form=ours",
    "pub:form=ours,update_every=1",
    "pub:form=matched",
    "pub:form=authors",
    "pub:form=literal",
    "pub:form=shipped",
    "pub-adatask:form=matched",
    "pub-adatask:form=authors",
)
SETS = {"complete-journey": (3e-3, 1e-2), "census-income": (3e-3, 1e-2)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--family", choices=["forks", "updates"], required=True)
    arguments.add_argument("--data", choices=sorted(SETS), required=True)
    chosen = arguments.parse_args()
    variants = FORKS if chosen.family == "forks" else UPDATES
    plan = Settings.of(data=chosen.data, methods=list(variants))
    path = chosen.out / f"defaults-{chosen.family}-{chosen.data}.jsonl"
    chosen.out.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["method"], row["seed"], row["lr"]) for row in known}
    jobs = [
        Job(method, seed, lr)
        for seed in SEEDS
        for lr in SETS[chosen.data]
        for method in variants
        if (method, seed, lr) not in done
    ]
    with path.open("a") as file:
        for job, run in run_jobs(plan, data.load(chosen.data), jobs, cores(), lambda *_: None):
            row = {
                "method": job.method, "seed": job.seed, "lr": job.lr, "status": run.status,
                "mean_ne": run.mean_validation_ne, "validation": run.validation,
            }  # fmt: skip
            known.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    table = markdown(chosen.data, known)
    path.with_suffix(".md").write_text(table)
    print(table)


def markdown(name: str, rows: list[dict[str, object]]) -> str:
    """Return a table of mean validation NE over the seeds by variant and rate, best rate first."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[str(row["method"])][float(str(row["lr"]))].append(float(str(row["mean_ne"])))
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    lines = [
        f"# {name}: mean normalized entropy over tasks on validation data",
        "",
        f"Mean over the seeds {', '.join(map(str, SEEDS))} (lower is better); written by `benchmarks/defaults.py`.",
        "",
        "| variant | " + " | ".join(f"lr {rate:g}" for rate in rates) + " | best |",
        "|---|" + "---:|" * (len(rates) + 1),
    ]
    best = {method: min(fmean(values) for values in by_rate.values()) for method, by_rate in found.items()}
    for method in sorted(best, key=lambda name: best[name]):
        cells = [f"{fmean(found[method][rate]):.4f}" if found[method][rate] else "" for rate in rates]
        lines.append(f"| `{method}` | " + " | ".join(cells) + f" | {best[method]:.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
