"""What every command on a folder begins with."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mas.experiments.cell import Cell
from mas.experiments.config.schema import Experiment
from mas.experiments.config.search import Choice
from mas.experiments.errors import UserError
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.record import CellRecord
from mas.experiments.runner import choices, read_tries
from mas.experiments.store import Store


@dataclass(frozen=True)
class RunFolder:
    """A folder that ``mas run`` has written, with its config."""

    store: Store
    config: Experiment
    plan: Plan

    def chosen(self) -> dict[str, Choice]:
        """Return, by label, what was chosen, where every try is finished.

        Raises:
            UserError: a try is damaged.
        """
        return choices(self.plan, read_tries(self.plan, self.store))


def open_folder(folder: Path, data_root: Path | None = None) -> RunFolder:
    """Return a folder of a run.

    Args:
        folder: that ``mas run`` has written.
        data_root: where its data sets are; by default as its config says.

    Raises:
        UserError: it is none, or its config cannot be read.
    """
    store = Store(folder)
    refuse_no_run(store)
    config = load_config(folder / "config.yaml", (), data_root, try_data=False)
    return RunFolder(store, config, Plan(config, partial(_read_if_whole, store)))


def _read_if_whole(store: Store, cell: Cell) -> CellRecord | None:
    """Return the record of a cell; None also if it is damaged."""
    try:
        return store.read(cell)
    except UserError:
        return None


def refuse_no_run(store: Store) -> None:
    """Raise UserError if a folder is not one of a run."""
    if not (store.folder / "config.yaml").is_file():
        raise UserError(f"{store.folder}: holds no config.yaml; expected a folder that mas run has written")
