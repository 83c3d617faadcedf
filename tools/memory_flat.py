"""Do many cells in one process, and note the memory that it holds after each.

Run ``python -m tools.memory_flat --cells 200 --output docs/reliability``: writes memory.csv and memory.png.
"""

import argparse
import csv
import gc
import tempfile
import warnings
from itertools import islice
from pathlib import Path

import matplotlib as mpl
import numpy as np

from mas.experiments.cell import Cell
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.context import CellContext
from mas.experiments.jobs import run_cell
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from tools.kill_cells import small_experiments


def cells(number: int) -> list[Cell]:
    """Return so many cells: those of the small experiments of `tools.kill_cells`, again and again with other seeds."""
    plans = [Plan(load_config(config, try_data=False)).every_cell() for config in small_experiments().values()]
    first = [cell for plan in plans for cell in plan]
    repeated = (Cell(cell.label, cell.seed + 1000 * turn, cell.settings) for turn in range(number) for cell in first)
    return list(islice(repeated, number))


def measure(number: int) -> list[tuple[str, float]]:
    """Do cells in this process; return the label of each and the memory held after it, in MiB."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells(number):
            checkpoints = Checkpoints(Path(folder) / "cell", interval=0.2, share=float("inf"))
            run_cell(cell, True, CellContext(checkpoints))
            checkpoints.clear()
            gc.collect()
            found.append((cell.label, resident()))
    return found


def resident() -> float:
    """Return the memory that this process holds, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024


def slope(values: list[float]) -> float:
    """Return the growth in MiB for each cell over the second half, by least squares."""
    half = values[len(values) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def draw(values: list[float], file: Path) -> None:
    """Draw the memory after each cell."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(range(1, len(values) + 1), values, linewidth=1)
    axes.set(xlabel="cells done in one process", ylabel="resident memory (MiB)", ylim=(0, 1.2 * max(values)))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Measure, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("docs/reliability"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    found = measure(given.cells)
    given.output.mkdir(parents=True, exist_ok=True)
    with (given.output / "memory.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("cell", "label", "mib"), *((n, *row) for n, row in enumerate(found, 1))])
    values = [value for _, value in found]
    draw(values, given.output / "memory.png")
    place = len(values) // 10
    print(f"MiB after cell {place + 1}: {values[place]:.1f}; at the end: {values[-1]:.1f}; most: {max(values):.1f}")  # noqa: T201
    print(f"growth over the second half: {1024 * slope(values):.1f} KiB a cell")  # noqa: T201


if __name__ == "__main__":
    main()
