"""``logging: [wandb]``: a run of Weights & Biases for each cell."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mas.experiments.events import CellEnded, CellStarted, CellTested, EpochEnded, Event
from mas.experiments.loggers.logger import finite, import_package
from mas.experiments.loggers.tensorboard import values_of_test

if TYPE_CHECKING:
    from mas.experiments.cell import Cell

Mode = Literal["online", "offline", "disabled"]


class WeightsAndBiases:
    """Weights & Biases: a run for each cell, in a group named after the folder; kept in logs/wandb, too.

    Args:
        folder: for what it keeps.
        project: of the runs.
        entity: that the project belongs to; None is the user's own.
        mode: by default $WANDB_MODE, or else online where the user has logged in, and offline where not.
    """

    def __init__(
        self, folder: Path, project: str = "memory-aware-synapses", entity: str | None = None, mode: Mode | None = None
    ):
        self._wandb = import_package("wandb", "wandb")
        self._folder = folder
        self._project = project
        self._entity = entity
        self._mode = mode or os.environ.get("WANDB_MODE") or ("online" if self._is_logged_in() else "offline")
        self._runs: dict[str, Any] = {}

    def note(self, event: Event) -> None:
        """Write what an event says."""
        if isinstance(event, CellStarted):
            self._run(event.cell)
        elif isinstance(event, EpochEnded):
            values = {"training/loss": event.loss, "training/accuracy": event.accuracy}
            self._run(event.cell).log({"epoch": event.epochs_done, **finite(values)})
        elif isinstance(event, CellTested):
            self._run(event.cell).log({"trained_on": event.trained_on, **finite(values_of_test(event))})
        elif isinstance(event, CellEnded):
            self._end(event)

    def close(self) -> None:
        """End the runs of cells that were stopped."""
        for run in self._runs.values():
            run.summary["status"] = "stopped"
            run.finish(exit_code=1)
        self._runs = {}

    def _run(self, cell: "Cell") -> Any:
        """Return the run of a cell; it is made first, if need be."""
        if cell.id not in self._runs:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._runs[cell.id] = self._wandb.init(
                project=self._project,
                entity=self._entity,
                dir=str(self._folder),
                name=cell.id,
                group=self._folder.parent.name,
                config={"label": cell.label, "seed": cell.seed, **cell.settings.plain()},
                mode=self._mode,
                reinit="create_new",  # several cells run at a time
                settings=self._wandb.Settings(silent=True, console="off", disable_code=True),
            )
        return self._runs[cell.id]

    def _end(self, event: CellEnded) -> None:
        run = self._run(event.cell)
        run.summary.update({"status": event.status, "reason": event.reason, "seconds": event.seconds})
        self._runs.pop(event.cell.id).finish(exit_code=int(event.status == "failed"))

    def _is_logged_in(self) -> bool:
        """Return whether W&B has a key; without one it would ask for it in the middle of the run."""
        try:
            return bool(self._wandb.login(prompt=False))
        except TypeError:  # older releases
            return bool(self._wandb.api.api_key)
