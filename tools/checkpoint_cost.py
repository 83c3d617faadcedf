"""Measure what share of a cell's time its checkpoints take, at the default settings.

Run ``python -m tools.checkpoint_cost``: each cell is done with and without checkpoints in turn, on one thread.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch

from mas.benchmarks.images import Images
from mas.experiments.cell import Cell
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.context import CellContext
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.resuming import Resumable
from mas.experiments.training import train_cell

_DIGITS = {"stream": "split", "dataset": "digits", "experiences": 5, "scenario": "domain"}
_GREY = {"stream": "split", "dataset": {"name": "import", "function": "tools.checkpoint_cost:grey_images"}}
_MLP = {"name": "mlp", "hidden": [256, 256]}


def grey_images() -> tuple[Images, Images]:
    """Return 1,500 training and 500 test images of noise in ten classes, 28x28."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 1, 28, 28, generator=generator)
    y = torch.arange(2000) % 10
    return Images(x[:1500], y[:1500]), Images(x[1500:], y[1500:])


CELLS: dict[str, dict[str, Any]] = {
    "digits, MLP 256-256, MAS": {"benchmark": _DIGITS, "model": _MLP, "strategies": [{"name": "mas"}]},
    "digits, MLP 256-256, replay of 500 images": {
        "benchmark": _DIGITS,
        "model": _MLP,
        "strategies": [{"name": "replay", "mem_size": 500}],
    },
    "1,500 images 28x28, small CNN, EWC": {
        "benchmark": {**_GREY, "experiences": 5, "scenario": "domain"},
        "model": {"name": "small_cnn"},
        "strategies": [{"name": "ewc", "labels": "sampled"}],
        "training": {"epochs": 2, "batch_size": 32, "optimizer": "adam", "lr": 0.001},
    },
    "1,500 images 28x28, MLP 1000-1000, SI": {
        "benchmark": {**_GREY, "experiences": 5, "scenario": "domain"},
        "model": {"name": "mlp", "hidden": [1000, 1000]},
        "strategies": [{"name": "si"}],
        "training": {"epochs": 2, "batch_size": 32, "optimizer": "adam", "lr": 0.001},
    },
}
_TRAINING = {"epochs": 10, "batch_size": 32, "optimizer": "adam", "lr": 0.001}


def cell_of(name: str) -> Cell:
    """Return one of the measured cells."""
    config = {"experiment": "forgetting", "seeds": 1, "training": _TRAINING, **CELLS[name]}
    return Plan(load_config(config, try_data=False)).every_cell()[0]


def measure(cell: Cell, repeats: int) -> dict[str, float]:
    """Return the seconds with checkpoints and without, the share that saving takes, and the number of checkpoints."""
    plain, saved, shares, numbers = [], [], [], []
    train_cell(cell)  # reads the data, for all that follow
    for _ in range(repeats):
        plain.append(_seconds(lambda: train_cell(cell)))
        with tempfile.TemporaryDirectory() as folder, _timing() as spent:
            context = CellContext(Checkpoints(Path(folder) / "cell"))
            saved.append(_seconds(partial(train_cell, cell, False, context)))
        shares.append(spent.seconds / saved[-1])
        numbers.append(spent.files)
    return {
        "seconds without": statistics.median(plain),
        "seconds with": statistics.median(saved),
        "share": statistics.median(shares),
        "checkpoints": statistics.median(numbers),
    }


class _timing:  # noqa: N801 - a context manager
    """Within it, add up the time in which states are told and written."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.files = 0
        self.depth = 0
        self.before: list[tuple[Any, str, Callable[..., Any]]] = []

    def __enter__(self) -> "_timing":
        for owner, name in ((Resumable, "begin"), (Resumable, "save"), (Resumable, "resume"), (Checkpoints, "save")):
            self.before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._timed(getattr(owner, name), owner is Checkpoints))
        return self

    def __exit__(self, *error: object) -> None:
        for owner, name, function in self.before:
            setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], writes: bool) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.depth += 1
            self.files += writes
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.perf_counter() - begun

        return timed


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print("| cell | seconds without | with | checkpoints | share of time |\n| --- | ---: | ---: | ---: | ---: |")  # noqa: T201
    warnings.simplefilter("ignore")
    for name in CELLS:
        found = measure(cell_of(name), repeats)
        times = f"{found['seconds without']:.2f} | {found['seconds with']:.2f}"
        print(f"| {name} | {times} | {found['checkpoints']:.0f} | {100 * found['share']:.2f} % |")  # noqa: T201


if __name__ == "__main__":
    main()
