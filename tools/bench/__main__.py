"""Measure the speed table, and write it as JSON and as a page.

Usage: python -m tools.bench [--quick] [--repeats N] [--out DIRECTORY] [--only [TABLE ...]]
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tools.bench import data, importance, memory, step, task2vec
from tools.bench.page import page
from tools.bench.workloads import QUICK, STEPS, WORKLOADS

TABLES = ("importance", "step", "data", "memory", "task2vec")
DATA = "MLP 784-400-400-10"
Table = Callable[[str], Iterable[dict[str, Any]]]


def main() -> None:
    """Measure, write, and print the page."""
    options = _options()
    file = options.out / "benchmarks.json"
    if options.only != []:
        torch.set_num_threads(1)
        known = json.loads(file.read_text()) if options.only else {}
        if known and (known["machine"], known["repeats"]) != (machine(), options.repeats):
            sys.exit(f"{file}: was measured on another machine or with other repeats; measure all tables")
        options.out.mkdir(parents=True, exist_ok=True)
        results = known | measure(options.quick, options.repeats, options.only or TABLES)
        file.write_text(json.dumps(results, indent=1) + "\n")
    text = page(json.loads(file.read_text()))
    (options.out / "benchmarks.md").write_text(text)
    sys.stdout.write(text)


def measure(quick: bool, repeats: int, only: Sequence[str] = TABLES) -> dict[str, Any]:
    """Return tables by name and device; the plain passes of a table are timed in the same run."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    make = _quick(repeats) if quick else _whole(repeats)
    told = {"command": "make bench", "machine": machine(), "repeats": repeats}
    return told | {table: {d: list(make[table](d)) for d in devices} for table in only}


def _whole(repeats: int) -> dict[str, Table]:
    return {
        "importance": lambda d: importance.measure(WORKLOADS, repeats, d),
        "step": lambda d: step.measure(STEPS, (1, 5, 10, 20), repeats, d),
        "data": lambda d: data.measure(DATA, STEPS[DATA], 12_000, repeats, d),
        "memory": lambda d: memory.measure(list(WORKLOADS)[:3], (16, 64, 128), d),
        "task2vec": lambda d: task2vec.measure({"ResNet-18": WORKLOADS["ResNet-18"]}, repeats, d),
    }


def _quick(repeats: int) -> dict[str, Table]:
    return {
        "importance": lambda d: importance.measure(QUICK, repeats, d),
        "step": lambda d: step.measure(QUICK, (1, 3), repeats, d),
        "data": lambda d: data.measure(DATA, STEPS[DATA], 256, repeats, d),
        "memory": lambda d: memory.measure(list(QUICK)[:1], (2, 4), d),
        "task2vec": lambda d: task2vec.measure(QUICK, repeats, d),
    }


def machine() -> dict[str, str]:
    """Name what the figures were measured on."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    libraries = {name: version(name) for name in ("torch", "avalanche-lib", "backpack-for-pytorch")}
    return {"CPU": f"{names[0]} ({os.cpu_count()} cores)", **gpu, "Python": platform.python_version(), **libraries}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Measure the speed table.")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it works")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each timing (5)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where the JSON and the page go (docs)")
    parser.add_argument("--only", nargs="*", choices=TABLES, help="measure these tables alone; none: only the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
