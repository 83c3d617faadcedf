"""What cells do, by the type of their settings: the only place that lists it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from mas.experiments.cell import Cell, CellSettings, EmbeddingSettings, ExpertSettings, TrainingSettings
from mas.experiments.context import CellContext
from mas.experiments.embedding import embed_cell
from mas.experiments.experts import measure_expert
from mas.experiments.provenance import forget_peak_memory, provenance_of
from mas.experiments.training import Trained, train_cell

JOBS: dict[type[CellSettings], Callable[[Cell, bool, CellContext], Trained]] = {
    TrainingSettings: train_cell,
    EmbeddingSettings: embed_cell,
    ExpertSettings: measure_expert,
}
"""Type of settings -> function of (cell, whether weights are kept, context of the cell)."""


def run_cell(cell: Cell, keep_weights: bool = False, context: CellContext | None = None) -> Trained:
    """Do what a cell is there for, and note what it was done with."""
    started = datetime.now(UTC)
    forget_peak_memory()
    trained = JOBS[type(cell.settings)](cell, keep_weights, context or CellContext())
    return replace(trained, provenance=provenance_of(cell, started=started))
