"""Measure the speed table, and write it as JSON and as a page.

Usage: python -m tests.bench [--quick] [--repeats N] [--out DIRECTORY] [--page-only]
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.bench import importance, memory, step
from tests.bench.page import page
from tests.bench.workloads import QUICK, STEPS, WORKLOADS


def main() -> None:
    """Measure, write, and print the page."""
    options = _options()
    if not options.page_only:
        torch.set_num_threads(1)
        results = measure(options.quick, options.repeats)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    text = page(json.loads((options.out / "benchmarks.json").read_text()))
    (options.out / "benchmarks.md").write_text(text)
    sys.stdout.write(text)


def measure(quick: bool, repeats: int) -> dict[str, Any]:
    """Give every table by device; the plain passes of a table are timed in the same run."""
    workloads = QUICK if quick else WORKLOADS
    steps, tasks = (QUICK, (1, 3)) if quick else (STEPS, (1, 5, 10, 20))
    cases, batches = (list(QUICK)[:1], (2, 4)) if quick else (list(WORKLOADS)[:3], (16, 64, 128))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        "command": "make bench",
        "machine": machine(),
        "repeats": repeats,
        "importance": {d: list(importance.measure(workloads, repeats, d)) for d in devices},
        "step": {d: list(step.measure(steps, tasks, repeats, d)) for d in devices},
        "memory": {d: list(memory.measure(cases, batches, d)) for d in devices},
    }


def machine() -> dict[str, str]:
    """Name what the figures were measured on."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    libraries = {name: version(name) for name in ("torch", "avalanche-lib", "backpack-for-pytorch")}
    return {"CPU": f"{names[0]} ({os.cpu_count()} cores)", **gpu, "Python": platform.python_version(), **libraries}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the speed table.")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it works")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each timing (5)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where the JSON and the page go (docs)")
    parser.add_argument("--page-only", action="store_true", help="make the page anew from the JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
