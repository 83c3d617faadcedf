"""What the finished cells of a config come to: the tries, the choices made by them, the records."""

from dataclasses import dataclass
from pathlib import Path

from mas.experiments.cells import Cell, expand, labels_of, tries_of
from mas.experiments.config import Experiment, Forgetting
from mas.experiments.errors import UserError
from mas.experiments.loading import load_config
from mas.experiments.selection import Choice, Record, Tries, best
from mas.experiments.store import Store


@dataclass
class Results:
    """Of one run, as far as it has come."""

    records: list[Record]  # what the cells to report gave, strategy by strategy
    tries: dict[str, Tries]  # by label: each choice that was tried, and what its cells gave
    chosen: dict[str, Choice]  # by label, where every try is finished


def read_folder(folder: Path) -> tuple[Experiment, Results]:
    """Give config and results of a folder that ``mas run`` has written.

    Raises:
        UserError: it is none, or it was written by another version of this library.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: holds no config.yaml; expected a folder that mas run has written")
    config = load_config(folder / "config.yaml", try_data=False)
    return config, read_results(config, Store(folder))


def read_results(config: Experiment, store: Store) -> Results:
    """Give what the finished cells of a config gave, in the config's order.

    Raises:
        UserError: cells of these names were run with other settings.
    """
    tries = read_tries(config, store)
    chosen = choices(config, tries)
    order = labels_of(config)
    cells = sorted(expand(config, chosen), key=lambda cell: order.index(cell.label))
    store.refuse_others(cells)
    return Results([record for cell in settled(cells) if (record := store.finished(cell))], tries, chosen)


def read_tries(config: Experiment, store: Store) -> dict[str, Tries]:
    """Give, by label, each choice with the records of its finished cells."""
    return {
        label: [(choice, [r for cell in cells if (r := store.finished(cell))]) for choice, cells in own]
        for label, own in tries_of(config).items()
    }


def choices(config: Experiment, tries: dict[str, Tries]) -> dict[str, Choice]:
    """Give, by label, the best choice, where every try is finished and not each one diverged."""
    if not isinstance(config, Forgetting):
        return {}
    seeds = len(config.selection.seeds)
    complete = {label: own for label, own in tries.items() if all(len(records) == seeds for _, records in own)}
    return {label: choice for label, own in complete.items() if (choice := best(own)) is not None}


def settled(cells: list[Cell]) -> list[Cell]:
    """Leave out cells that wait for a choice."""
    return [cell for cell in cells if not cell.waits]
