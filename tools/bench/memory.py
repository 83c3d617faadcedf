"""Peak memory of an importance pass by batch size, each in a process of its own."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mas import mas_importance
from tools.bench.passes import Data, plain, vmap_grad
from tools.bench.workloads import QUICK, WORKLOADS, Workload

_STATUS = Path("/proc/self/status")
WAYS: dict[str, Callable[..., Any]] = {"plain pass": plain, "here, MAS": mas_importance, "vmap(grad), MAS": vmap_grad}


def measure(cases: list[str], sizes: tuple[int, ...], device: str) -> Iterator[dict[str, Any]]:
    """Return a row for each workload, batch size and way: MB above what a pass over one sample took."""
    for case in cases:
        for size in sizes:
            for way in WAYS:
                command = [sys.executable, "-m", "tools.bench.memory", case, str(size), way, device]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                yield {"case": case, "batch": size, "way": way, "mb": json.loads(done.stdout)}


def peak(workload: Workload, size: int, way: str, device: str) -> float:
    """Return the peak of a pass over a batch of `size`, in MB above a pass over one sample."""
    model, data = workload.model(device), workload.data(device, size)[:1]
    one: Data = [(x[:1], y[:1]) for x, y in data]
    WAYS[way](model, one)
    model.zero_grad()
    before = _high_water(device)
    WAYS[way](model, data)
    return (_high_water(device) - before) / 1e6


def _high_water(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    if _STATUS.exists():  # the process's own: rusage begins with what its parent had
        (line,) = [text for text in _STATUS.read_text().splitlines() if text.startswith("VmHWM")]
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    case, size, way, device = sys.argv[1:]
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(peak((WORKLOADS | QUICK)[case], int(size), way, device)))
