"""What cells do, by the type of their settings: the only place that lists it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from mas.experiments.cell import Cell, CellSettings, EmbeddingSettings, TrainingSettings
from mas.experiments.embedding import embed_cell
from mas.experiments.provenance import provenance_of
from mas.experiments.training import Trained, train_cell

JOBS: dict[type[CellSettings], Callable[[Cell, bool], Trained]] = {
    TrainingSettings: train_cell,
    EmbeddingSettings: embed_cell,
}
"""Type of settings -> function of (cell, whether weights are kept)."""


def run_cell(cell: Cell, keep_weights: bool = False) -> Trained:
    """Do what a cell is there for, and note what it was done with."""
    started = datetime.now(UTC)
    trained = JOBS[type(cell.settings)](cell, keep_weights)
    return replace(trained, provenance=provenance_of(cell, started=started))
