"""Tables that every kind of experiment has: accuracies and cells."""

from collections.abc import Sequence

import pandas as pd

from mas.experiments.record import Accuracies, CellRecord, finished

RESULT_COLUMNS = ["label", "strategy", "seed", "trained_on", "tested_on", "accuracy"]
CELL_COLUMNS = ["label", "seed", "status", "seconds"]


def results_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return one row per accuracy: columns `RESULT_COLUMNS`.

    Experiences count from 0; ``trained_on`` is -1 for the untrained network. Cells that diverged
    have no rows.
    """
    rows = []
    for record in finished(records):
        name = (record.label, record.strategy, record.seed)
        for trained_on, row in enumerate(_stages(record), start=-1):
            for tested_on, accuracy in enumerate(row):
                if accuracy is not None:
                    rows.append((*name, trained_on, tested_on, accuracy))
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def cells_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return one row per cell: columns `CELL_COLUMNS`."""
    rows = [(r.label, r.seed, r.outcome.status, r.outcome.seconds) for r in records]
    return pd.DataFrame(rows, columns=CELL_COLUMNS)


def _stages(record: CellRecord) -> list[Accuracies]:
    """Return the accuracies before any training, then those after each experience."""
    before: Accuracies = list(record.outcome.untrained or [])
    return [before, *record.outcome.accuracy]


def final_accuracies(records: Sequence[CellRecord]) -> dict[str, dict[int, float]]:
    """Return the final accuracy on the last experience, by label and seed."""
    found: dict[str, dict[int, float]] = {}
    for record in finished(records):
        by_seed = found.setdefault(record.label, {})
        by_seed[record.seed] = record.outcome.matrix()[-1, -1]
    return found
