"""``logging: [tensorboard]``: a folder of TensorBoard's for each cell."""

from pathlib import Path
from typing import Any

from mas.experiments.events import CellEnded, CellTested, EpochEnded, Event
from mas.experiments.loggers.logger import finite, import_package


class TensorBoard:
    """TensorBoard in logs/tensorboard/<cell>: loss and accuracy per epoch, test accuracies, the status at the end."""

    def __init__(self, folder: Path):
        import_package("tensorboard", "tensorboard")
        self._make = import_package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder = folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def note(self, event: Event) -> None:
        """Write what an event says."""
        if isinstance(event, EpochEnded):
            values = {"training/loss": event.loss, "training/accuracy": event.accuracy}
            self._add(event.cell.id, values, event.epochs_done)
        elif isinstance(event, CellTested):
            self._add(event.cell.id, values_of_test(event), event.trained_on + 1)
        elif isinstance(event, CellEnded):
            self._end(event)

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, name: str) -> Any:
        if name not in self._writers:
            self._writers[name] = self._make(str(self._folder / name))
        return self._writers[name]

    def _add(self, name: str, values: dict[str, float | None], step: int) -> None:
        for key, value in finite(values).items():
            self._writer(name).add_scalar(key, value, step)

    def _end(self, event: CellEnded) -> None:
        name = event.cell.id
        self._writer(name).add_text("status", f"{event.status} ({event.reason})" if event.reason else event.status)
        self._writers.pop(name).close()


def values_of_test(event: CellTested) -> dict[str, float | None]:
    """Return the accuracies of a test by name, and their mean."""
    accuracies = event.accuracies
    mean = sum(accuracies) / len(accuracies) if accuracies else None
    each = {f"test/accuracy_{number}": accuracy for number, accuracy in enumerate(accuracies)}
    return {"test/mean_accuracy": mean, **each}
