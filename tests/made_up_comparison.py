"""A comparison's folder with made-up but plausible numbers, as ``equipoise compare`` would leave it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TASKS = ("category", "purchase", "multiple", "coupon", "repeat")
LABELS = {
    "single-task": "Single-task",
    "equal": "Equal weights",
    "multibalance": "MultiBalance",
    "multibalance-own-gram": "MultiBalance, own lengths",
    "pub": "PUB",
    "pub-adatask": "PUB + AdaTask",
    "adatask": "AdaTask",
    "clippy": "Clippy",
    "static": "Static weights",
}
METHODS = tuple(name for name in LABELS if name != "static")
RATES = dict.fromkeys(LABELS, 3e-3) | {"multibalance": 1e-2, "clippy": 1e-2, "pub": 1e-3}
# Per method and task, test AUC and NE: the shape of what prototypes gave on Complete Journey.
AUC = {
    "single-task": (0.8840, 0.9210, 0.8390, 0.8020, 0.9190),
    "equal": (0.8834, 0.9286, 0.8616, 0.8410, 0.9256),
    "multibalance": (0.8836, 0.9282, 0.8630, 0.9000, 0.9250),
    "multibalance-own-gram": (0.8830, 0.9279, 0.8618, 0.8816, 0.9250),
    "pub": (0.8850, 0.9315, 0.8691, 0.8455, 0.9258),
    "pub-adatask": (0.8809, 0.9273, 0.8621, 0.8709, 0.9261),
    "adatask": (0.8800, 0.9270, 0.8601, 0.8309, 0.9231),
    "clippy": (0.8835, 0.9285, 0.8617, 0.8400, 0.9257),
    "static": (0.8835, 0.9283, 0.8625, 0.8850, 0.9252),
}
NE = {
    "single-task": (0.6070, 0.5710, 0.7300, 0.8700, 0.5410),
    "equal": (0.6100, 0.5600, 0.7010, 0.8330, 0.5245),
    "multibalance": (0.6098, 0.5606, 0.6990, 0.7480, 0.5250),
    "multibalance-own-gram": (0.6104, 0.5612, 0.7005, 0.7900, 0.5251),
    "pub": (0.6060, 0.5560, 0.6950, 0.8480, 0.5240),
    "pub-adatask": (0.6140, 0.5630, 0.7020, 0.7850, 0.5239),
    "adatask": (0.6180, 0.5660, 0.7060, 0.8600, 0.5290),
    "clippy": (0.6100, 0.5601, 0.7011, 0.8335, 0.5244),
    "static": (0.6099, 0.5604, 0.6995, 0.7800, 0.5248),
}


@dataclass
class Comparison:
    """Options of the comparison to write; by default it is finished, with eight methods and five seeds."""

    methods: tuple[str, ...] = METHODS
    seeds: int = 5
    tuned: bool = True
    natural: bool = True
    speed: bool = True
    diverged: tuple[tuple[str, int], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    users: bool = False  # with sums over groups of users
    rich: bool = False  # with a regression, groups, slices and calibration curves
    plan: dict[str, Any] | None = None
    speeds: dict[str, tuple[float, float, float]] | None = None  # method -> ratio, low, high

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(_plan(self)))
        runs = [
            _run(name, seed, RATES[name], diverged=(name, seed) in self.diverged, natural=self.natural)
            for seed in range(self.seeds)
            for name in self.methods
            if (name, seed) not in self.left_out
        ]
        if self.rich:
            runs = [_enriched(run) for run in runs]
        if self.users:
            runs = [_with_users(run) for run in runs]
        _write_lines(folder / "runs.jsonl", [{"phase": "run", **run} for run in runs])
        if self.tuned:
            tuning = [
                _run(name, 1000, lr, diverged=name == "adatask" and lr == 1e-2, natural=False, detail=False)
                for name in self.methods
                for lr in (1e-3, 3e-3, 1e-2)
            ]
            if self.rich:
                tuning = [_enriched(run) for run in tuning]
            _write_lines(folder / "tuning.jsonl", [{"phase": "tune", **run} for run in tuning])
        if self.speed:
            (folder / "throughput.json").write_text(json.dumps({name: self.speed_of(name) for name in self.methods}))
        return folder

    def speed_of(self, name: str) -> dict[str, float]:
        speed = _speed(name)
        if self.speeds and name in self.speeds:
            speed |= dict(zip(("ratio", "low", "high"), self.speeds[name], strict=True))
        return speed


def _write_lines(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def _plan(made: Comparison) -> dict[str, Any]:
    plan = {
        "dataset": "complete-journey",
        "dataset_notes": [
            "A year of one real grocer: 2,469 households; an example is one exposure to a promotion.",
            "All positives are kept, other exposures sampled at 0.1 %: weigh rows back for daily business.",
        ],
        "best_ne": {},
        "generated": False,
        "model": "shared-bottom",
        "tasks": list(TASKS),
        "methods": [
            {
                "name": name,
                "label": LABELS[name],
                "family": "gradients at the fork" if "multibalance" in name else "loss weights",
                "summary": f"What {LABELS[name]} does, in one sentence.",
                "settings": f"{name}()",
            }
            for name in made.methods
        ],
        "seeds": list(range(made.seeds)),
        "epochs": 2,
        "batch_size": 2048,
        "schedule": "linear",
        "rates": {name: RATES[name] for name in made.methods},
        "grid": [1e-3, 3e-3, 1e-2] if made.tuned else None,
        "rows": {"train": 455_120, "validation": 62_310, "test": 81_200},
        "label_rates": {
            task: {"rate": rate, "labelled": 1.0 if task != "repeat" else 0.92}
            for task, rate in zip(TASKS, (0.62, 0.5, 0.138, 0.0075, 0.101), strict=True)
        },
        "label_counts": {
            split: {
                task: {"labelled": rows, "positives": round(rows * rate)}
                for task, rate in zip(TASKS, (0.62, 0.5, 0.138, 0.0075, 0.101), strict=True)
            }
            for split, rows in (("train", 455_120), ("validation", 62_310), ("test", 81_200))
        },
        "versions": {"equipoise": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "machine": {"cpu": "Example CPU 3 GHz", "cores": 2, "torch": "2.13.0"},
        "options": {
            "data": "complete-journey", "data_options": {}, "model": "shared-bottom", "model_options": {},
            "methods": list(made.methods), "seeds": made.seeds, "epochs": 2, "batch_size": 2048,
            "tune": made.tuned, "rates": {}, "loss_scale": {},
        },
    }  # fmt: skip
    return plan | (_RICH_PLAN if made.rich else {}) | (made.plan or {})


STORES = {"Main Street": (40_000, 1.0), "Airport": (24_000, 1.4), "Harbour": (12_000, 1.0), "Mill Lane": (400, 1.0)}
"""Stores by rows, and how much worse NE is there; the rest are 12 stores of 4,800 rows."""
_RICH_PLAN: dict[str, Any] = {
    "tasks": [*TASKS, "spend"],
    "about_tasks": {task: {"description": f"what {task} means"} for task in TASKS}
    | {
        task: {"description": f"what {task} means", "after": "purchase", "over": "all"}
        for task in ("multiple", "coupon", "repeat")
    }
    | {"spend": {"description": "money spent", "kind": "regression", "after": "purchase"}},
    "natural_rate": {"task": "purchase", "rate": 0.0014, "biased": []},
    "groups": {
        "key": "household",
        "counted": dict.fromkeys(TASKS, 1_800),
        "left_out": dict.fromkeys(TASKS, 0) | {"coupon": 1_612},
    },
    "label_rates": {task: {"rate": 0.1, "labelled": 1.0} for task in TASKS}
    | {"spend": {"rate": 4.37, "labelled": 0.5}},
    "label_counts": {
        split: {task: {"labelled": rows, "positives": rows // 10} for task in TASKS}
        | {"spend": {"labelled": rows // 2, "positives": None}}
        for split, rows in (("train", 455_120), ("validation", 62_310), ("test", 81_200))
    },
}  # fmt: skip


def _enriched(run: dict[str, Any]) -> dict[str, Any]:
    """Add a regression, grouped AUC, slices and calibration curves to a run that ended well."""
    if run["status"] != "ok":
        return run
    spend = {"rmse": 6.2 * run["test"]["repeat"]["ne"], "mae": 2.9, "r2": 0.31, "ne": 0.69}
    for name in ("test", "test_natural", "validation"):
        for metrics in run[name].values():
            metrics["gauc"] = metrics["auc"] - 0.08
        if run[name]:
            run[name]["spend"] = spend
    for point in run["curve"]:
        point["validation"]["spend"] = {"ne": 0.69 + 1e3 / point["examples"], "rmse": 4.0 + 1e4 / point["examples"]}
        point["train_loss"]["spend"] = 0.5
    rng = np.random.default_rng([run["seed"], len(run["method"])])
    run["slices"] = {"store": [
        _slice(run["test"], name, 1, rows, worse if run["method"] == "pub" else 1.0, rng)
        for name, (rows, worse) in STORES.items()
    ] + [_slice(run["test"], "", 12, 4_800, 1.0, rng)]}  # fmt: skip
    for name, scale in (("calibration", 1.0), ("calibration_natural", 0.0014)):
        run[name] = {task: _curve(scale, rng) for task in TASKS} | {
            "spend": [{"prediction": 2.0 * at, "rate": 2.1 * at, "error": 0.1, "rows": 2_700} for at in range(1, 16)]
        }
    return run


def _with_users(run: dict[str, Any]) -> dict[str, Any]:
    """Add sums over 16 groups of users that give the run's NE; the same users are hard for every method."""
    if run["status"] != "ok":
        return run
    own = np.random.default_rng([run["seed"], sum(map(ord, run["method"]))])
    common, groups = np.random.default_rng(5), {}
    for task in TASKS:
        weight, rate = common.integers(800, 1_200, 16).astype(float), common.uniform(0.05, 0.3, 16)
        positives = np.round(weight * rate)
        share = positives.sum() / weight.sum()
        entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
        loss = weight * common.uniform(0.8, 1.2, 16) * own.uniform(0.99, 1.01, 16)
        loss *= run["test"][task]["ne"] * entropy * weight.sum() / loss.sum()
        groups[task] = {"loss": loss.tolist(), "weight": weight.tolist(), "positives": positives.tolist()}
    return run | {"random_groups": groups}


def _slice(
    test: dict[str, dict[str, float]], value: str, values: int, rows: int, worse: float, rng: np.random.Generator
) -> dict[str, Any]:
    lower_auc = 0.09 if value == "Harbour" else 0.0
    off = 1.6 if value == "Airport" else 1.0
    tasks = {
        task: {
            "rows": rows, "positives": rows // 10, "auc": test[task]["auc"] - lower_auc,
            "ne": test[task]["ne"] * worse * float(np.exp(rng.normal(0, 0.002))), "log_loss": 0.3,
            "calibration": test[task]["calibration"] * off,
        }
        for task in TASKS
    }  # fmt: skip
    tasks["spend"] = {"rows": rows // 2, **test["spend"]}
    return {"value": value, "values": values, "rows": rows, "tasks": tasks}


def _curve(scale: float, rng: np.random.Generator) -> list[dict[str, float]]:
    predictions = scale * np.geomspace(0.004, 0.9, 15)
    rates = predictions * np.exp(rng.normal(0.05, 0.05, 15))
    return [
        {"prediction": float(prediction), "rate": float(rate), "error": float(rate) / 20, "rows": 5_413}
        for prediction, rate in zip(predictions, rates, strict=True)
    ]


def _run(name: str, seed: int, lr: float, *, diverged: bool, natural: bool, detail: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng([seed, sum(map(ord, name)), round(lr * 1e6)])
    common = np.random.default_rng(seed).normal(0, 0.004, len(TASKS))
    steps = 444
    run = {
        "method": name, "seed": seed, "lr": lr, "status": "diverged" if diverged else "ok",
        "steps": 111 if diverged else steps, "seconds": 41.5, "examples_per_second": 21_900.0,
        "peak_memory_bytes": None,
    }  # fmt: skip
    if diverged:
        nothing = {task: {"auc": None, "ne": None} for task in TASKS}
        return run | {"test": {}, "test_natural": {}, "validation": nothing, "curve": [], "monitor": []}
    off = 1 + 0.008 * abs(np.log(lr / RATES[name]))
    auc = np.array(AUC[name]) + common / 4 + rng.normal(0, 0.0006, len(TASKS))
    ne = (np.array(NE[name]) - common + rng.normal(0, 0.002, len(TASKS))) * off
    test = _metrics(auc, ne)
    run |= {
        "test": test,
        "test_natural": _metrics(auc + 0.003, 1 - (1 - ne) * 0.6) if natural else {},
        "validation": _metrics(auc - 0.002, ne + 0.004),
        "curve": [_point(step * steps // 8, step / 8, auc, ne) for step in range(1, 9)] if detail else [],
        "monitor": [_reading(name, step, rng) for step in range(16, steps, 16)] if detail else [],
    }
    return run


def _metrics(auc: np.ndarray, ne: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        task: {"auc": auc[at], "ne": ne[at], "log_loss": ne[at] * 0.4, "calibration": 1.01 + at / 100}
        for at, task in enumerate(TASKS)
    }


def _point(step: int, done: float, auc: np.ndarray, ne: np.ndarray) -> dict[str, Any]:
    late = np.exp(-4 * done)
    return {
        "step": step,
        "examples": step * 2048,
        "train_loss": dict.fromkeys(TASKS, 0.3 + 0.3 * late),
        "validation": {
            task: {"auc": auc[at] - 0.25 * late, "ne": ne[at] + 0.8 * late} for at, task in enumerate(TASKS)
        },
    }


def _reading(name: str, step: int, rng: np.random.Generator) -> dict[str, float]:
    if name in {"single-task", "equal", "adatask", "clippy"}:
        return {"step": step}
    place = "pub" if "pub" in name else "fork/shared"
    weights = {"category": 0.6, "purchase": 0.9, "multiple": 1.6, "coupon": 14.0, "repeat": 1.9}
    reading: dict[str, float] = {"step": step, f"{place}/stationarity": 0.2}
    for task in TASKS:
        drift = 1 + np.log1p(step) / 12 * (task == "coupon")
        reading[f"{place}/weight/{task}"] = weights[task] * drift * float(np.exp(rng.normal(0, 0.08)))
        reading[f"{place}/norm/{task}"] = 0.02 / weights[task] * float(np.exp(rng.normal(0, 0.15)))
    means = {("category", "purchase"): 0.38, ("purchase", "multiple"): 0.15}
    for at, first in enumerate(TASKS):
        for second in TASKS[at + 1 :]:
            mean = means.get((first, second), 0.03)
            reading[f"{place}/cosine/{first}/{second}"] = mean + float(rng.normal(0, 0.06))
    return reading


def _speed(name: str) -> dict[str, float]:
    ratio = {"equal": 1.0, "single-task": 0.24, "pub": 0.71, "pub-adatask": 0.3, "adatask": 0.32}.get(name, 0.987)
    return {
        "ratio": ratio,
        "low": ratio * (0.996 if name == "equal" else 0.985),
        "high": ratio * (1.003 if name == "equal" else 1.012),
        "pairs": 15,
        "peak_memory": 1.9e8 / ratio,
    }
