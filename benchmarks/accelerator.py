"""Run the tests for accelerators and the speed benchmark on one, within eight minutes, and write what was found.

    PYTHONPATH=src python benchmarks/accelerator.py --out benchmarks/results/accelerator

Needs torch and pytest, and nothing else. Writes into the folder: ``accelerator.md`` and ``accelerator.json`` (device,
versions, each test and its measurements), ``speed.md`` and ``speed.json``. The exit code is 1 if a test fails, or if
the time is up before all have run. Arguments after ``--`` go to pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import torch

from equipoise.measuring import cpu_name

ROOT = Path(__file__).parents[1]
TESTS = "tests/accelerator"
SECONDS_OF_TESTS, SECONDS_OF_SPEED, SECONDS_TO_STOP = 270, 150, 20
OUTCOMES = ("passed", "failed", "skipped")


def machine(device: str) -> dict[str, str]:
    """Return the device's name, and the versions on which its results depend."""
    found = {"device": cpu_name() if device == "cpu" else torch.cuda.get_device_name()}
    found |= {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        found["cuda"] = str(torch.version.cuda or torch.version.hip)
        found["driver"] = driver()
    return found


def driver() -> str:
    """Return the version of NVIDIA's driver, "unknown" where its tool is not installed."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return printed[0] if printed else "unknown"


def run(command: list[str], seconds: float, **variables: str) -> tuple[int | None, float]:
    """Run a command in the repository; return its exit code, None if the time was up, and its seconds."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | variables
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        code: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
        process.send_signal(signal.SIGINT)  # pytest then writes what it has found so far
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return code, time.perf_counter() - started


def tests(device: str, out: Path, further: list[str]) -> dict[str, Any]:
    """Run the tests; return each one's outcome, message and measurements."""
    report = out / "tests.xml"
    report.unlink(missing_ok=True)
    # Without the repository's settings and the tests' common fixtures, which need more than torch and pytest.
    alone = [
        "-c",
        os.devnull,
        "--rootdir",
        str(ROOT),
        "--confcutdir",
        TESTS,
        "-p",
        "no:cacheprovider",
        "-o",
        "junit_family=xunit1",
    ]
    command = [sys.executable, "-m", "pytest", "-q", *alone, f"--junitxml={report}", TESTS, *further]
    code, seconds = run(command, SECONDS_OF_TESTS, EQUIPOISE_ACCELERATOR=device)
    cases = [outcome(case) for case in ET.parse(report).iter("testcase")] if report.exists() else []
    report.unlink(missing_ok=True)
    return {"exit code": code, "seconds": round(seconds, 1), "tests": cases}


def outcome(case: ET.Element) -> dict[str, Any]:
    """Return the name, the outcome, the first line of a message and what the test measured."""
    bad = [part for kind in ("failure", "error") for part in case.findall(kind)]
    skipped = case.findall("skipped")
    file = case.get("classname", "").rpartition(".")[2]
    found: dict[str, Any] = {
        "test": f"{file}::{case.get('name')}",
        "outcome": "failed" if bad else "skipped" if skipped else "passed",
    }
    for part in (*bad, *skipped):
        found["message"] = (part.get("message") or "").partition("\n")[0]
    measured = {item.get("name"): item.get("value") for item in case.iter("property")}
    return found | ({"measured": measured} if measured else {})


def speed(device: str, out: Path) -> dict[str, Any]:
    """Run the speed benchmark, which writes its own files."""
    command = [sys.executable, "benchmarks/speed.py", "--device", device, "--seconds", str(SECONDS_OF_SPEED)]
    code, seconds = run([*command, "--out", os.path.relpath(out / "speed.json", ROOT)], 1.25 * SECONDS_OF_SPEED)
    return {"exit code": code, "seconds": round(seconds, 1)}


def markdown(result: dict[str, Any]) -> str:
    """Return the page: the machine, a table of the test files, what was measured, and what failed."""
    about = ", ".join(f"{name} {value}" for name, value in result["machine"].items() if name != "device")
    lines = [
        f"# Tests on {result['machine']['device']}", "",
        f"{about[0].upper()}{about[1:]}. Written by `{result['command']}`;",
        f"the tests took {result['tests']['seconds']} s{stopped(result['tests'])}.", "",
        "| file | passed | failed | skipped |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    cases = result["tests"]["tests"]
    for file in sorted({case["test"].partition("::")[0] for case in cases}):
        of_file = [case["outcome"] for case in cases if case["test"].startswith(f"{file}::")]
        lines.append(f"| {file} | " + " | ".join(str(of_file.count(kind)) for kind in OUTCOMES) + " |")
    measured = [case for case in cases if "measured" in case]
    if measured:
        lines += ["", "| test | measured |", "|---|---|"]
        lines += [f"| {case['test']} | {measurements(case)} |" for case in measured]
    failed = [case for case in cases if case["outcome"] == "failed"]
    if failed:
        lines += ["", "Failed:", "", *(f"- {case['test']}: {case['message']}" for case in failed)]
    if "speed" in result:
        code = result["speed"]["exit code"]
        lines += [
            "",
            "Speed: see `speed.md`." if code == 0 else f"The speed benchmark failed{stopped(result['speed'])}.",
        ]
    return "\n".join(lines) + "\n"


def measurements(case: dict[str, Any]) -> str:
    """Return what a test measured as a cell of a table."""
    return ", ".join(map(": ".join, case["measured"].items())).replace("|", "\\|")


def stopped(part: dict[str, Any]) -> str:
    """Return a remark if a part was stopped."""
    return ", and were stopped there: time was up" if part["exit code"] is None else ""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: proves that the tests work")
    arguments.add_argument("--tests-only", action="store_true", help="leave the speed benchmark out")
    arguments.add_argument("further", nargs="*", metavar="-- ARGUMENTS", help="of pytest")
    chosen = arguments.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print(
            f"Expected an accelerator that torch {torch.__version__} can use through torch.cuda, found none. Run this "
            "on a machine with one; --device cpu runs the tests that need none, to prove that they work.",
            file=sys.stderr,
        )
        return 2
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(chosen.device),
        "tests": tests(chosen.device, out, chosen.further),
    }
    if not chosen.tests_only:
        result["speed"] = speed(chosen.device, out)
    (out / "accelerator.json").write_text(json.dumps(result, indent=1) + "\n")
    page = markdown(result)
    (out / "accelerator.md").write_text(page)
    print(f"\n{page}")
    return int(any(result[part]["exit code"] != 0 for part in ("tests", "speed") if part in result))


if __name__ == "__main__":
    sys.exit(main())
