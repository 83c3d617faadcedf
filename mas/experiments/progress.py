"""What a cell reports while it is trained. It draws no random number, and changes nothing that is trained."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from mas.experiments.avalanche_types import Strategy
from mas.experiments.cell import Cell
from mas.experiments.events import CellAt, CellEvent, EpochEnded, ignore

INTERVAL = 0.5
"""Seconds between two reports of a cell, at least."""

_PENDING = 16  # batches whose outputs are kept before they are counted together


class Interval:
    """Says when it is time to report again.

    Args:
        seconds: between two reports, at least.
    """

    def __init__(self, seconds: float = INTERVAL):
        self.seconds = seconds
        self._last = -seconds

    def is_over(self) -> bool:
        """Return whether the time is over; it begins again then."""
        now = time.perf_counter()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True


@dataclass(frozen=True)
class Stage:
    """One training of a cell: of an experience, or of all at once.

    Attributes:
        epochs: of it.
        samples: in each epoch, for the share of the cell's training that it takes.
    """

    epochs: int
    samples: int

    @property
    def work(self) -> int:
        """How many samples are trained."""
        return self.epochs * self.samples


class ProgressPlugin(SupervisedPlugin[Strategy]):
    """Reports how far a cell has come: at most twice a second, at the end of each epoch, and at the very end.

    Losses and outputs stay on their device until there is something to report, so that no step waits for it.

    Args:
        cell: that is trained.
        stages: of its training.
        report: called with the events; where it is `mas.experiments.events.ignore`, nothing is noted.
        interval: says when it is time for another `mas.experiments.events.CellAt`.
    """

    is_not_state = True

    def __init__(
        self,
        cell: Cell,
        stages: Sequence[Stage],
        report: Callable[[CellEvent], None],
        *,
        interval: Interval | None = None,
    ):
        super().__init__()
        self.cell = cell
        self.stages = stages
        self.report = report
        self.interval = interval or Interval()
        self.recent = _Means()
        self.of_epoch = _Means()

    def before_training_epoch(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Begin the means of an epoch; report where it begins, if it is time."""
        self.of_epoch = _Means()
        self._report_place(strategy)

    def after_training_iteration(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Note a batch; report, if it is time."""
        if self.report is not ignore:
            self.recent.add(strategy.loss, strategy.mb_output, strategy.mb_y)
            self._report_place(strategy)

    def after_training_epoch(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Report the means of the epoch."""
        self._fold()
        clock = strategy.clock
        earlier = sum(stage.epochs for stage in self.stages[: clock.train_exp_counter])
        loss, accuracy = self.of_epoch.values()
        epoch = clock.train_exp_epochs - 1
        done = earlier + clock.train_exp_epochs
        self.report(EpochEnded(self.cell, clock.train_exp_counter, epoch, done, loss, accuracy))

    def after_training_exp(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        """Report the end of the training."""
        if strategy.clock.train_exp_counter >= len(self.stages):
            loss, accuracy = self.of_epoch.values()
            self._report(len(self.stages) - 1, self.stages[-1].epochs - 1, 1.0, loss, accuracy)

    def _report_place(self, strategy: Strategy) -> None:
        if not self.interval.is_over():
            return
        clock = strategy.clock
        number = clock.train_exp_counter
        batches = max(1, len(strategy.dataloader))
        epochs_done = clock.train_exp_epochs + clock.train_epoch_iterations / batches
        loss, accuracy = self.recent.values()
        self._fold()
        self._report(number, clock.train_exp_epochs, self.share(number, epochs_done), loss, accuracy)

    def _report(self, number: int, epoch: int, share: float, loss: float | None, accuracy: float | None) -> None:
        stage = self.stages[number]
        place = (number, len(self.stages), epoch, stage.epochs, share)
        self.report(CellAt(self.cell, *place, loss, accuracy))

    def _fold(self) -> None:
        """Add the recent batches to those of the epoch."""
        self.of_epoch.join(self.recent)
        self.recent = _Means()

    def share(self, number: int, epochs_done: float) -> float:
        """Return the share of the training that is done, from 0 to 1.

        Args:
            number: of the stage that is trained.
            epochs_done: of this stage.
        """
        total = sum(stage.work for stage in self.stages)
        before = sum(stage.work for stage in self.stages[:number])
        here = self.stages[number].samples * epochs_done
        return min(1.0, (before + here) / max(1, total))

    def __deepcopy__(self, memo: dict[int, object]) -> "ProgressPlugin":
        return self  # copies of a strategy, which try a strength, do not report


class StepReports:
    """Reports of a cell that works through the experiences of a stream, and trains no network along it.

    Args:
        cell: that is done.
        experiences: how many there are.
        report: called with the events, at most twice a second but for the first and the last.
    """

    def __init__(self, cell: Cell, experiences: int, report: Callable[[CellEvent], None]):
        self.cell = cell
        self.experiences = experiences
        self.report = report
        self.interval = Interval()

    def at(self, done: int) -> None:
        """Report that so many experiences are done."""
        if not self.interval.is_over() and done < self.experiences:
            return
        number = min(done, self.experiences - 1)
        share = done / self.experiences
        self.report(CellAt(self.cell, number, self.experiences, epoch=0, epochs=1, share=share))


def as_part(cell: Cell, part: str, report: Callable[[CellEvent], None]) -> Callable[[CellEvent], None]:
    """Return what reports the training of another network, such as a probe network, as the beginning of a cell.

    Args:
        cell: that needs the network.
        part: what is trained, see `mas.experiments.events.CellAt`.
        report: called with the events of the cell.
    """

    def pass_on(event: CellEvent) -> None:
        if isinstance(event, CellAt):
            report(replace(event, cell=cell, share=0.0, part=part))

    return pass_on


class _Means:
    """Mean loss and accuracy over batches; nothing is computed on the host before `values`."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.loss: Tensor | float = 0.0
        self.right: Tensor | int = 0
        self.seen = 0

    def add(self, loss: Tensor, output: Tensor, labels: Tensor) -> None:
        """Note a batch; one that is not of classes, as in a strategy of the user's own, is left out."""
        if output.ndim != 2 or labels.shape != output.shape[:1]:
            return
        self.pending.append((loss.detach(), output.detach(), labels))
        if len(self.pending) >= _PENDING:
            self._count()

    def join(self, others: "_Means") -> None:
        """Add the batches of another one."""
        others._count()
        self.loss = self.loss + others.loss
        self.right = self.right + others.right
        self.seen += others.seen

    def values(self) -> tuple[float | None, float | None]:
        """Return mean loss and accuracy; None where there was no batch."""
        self._count()
        if not self.seen:
            return None, None
        return float(self.loss) / self.seen, float(self.right) / self.seen

    def _count(self) -> None:
        if not self.pending:
            return
        losses, outputs, labels = zip(*self.pending, strict=True)
        sizes = [len(output) for output in outputs]
        weights = torch.tensor(sizes, dtype=losses[0].dtype).to(losses[0].device)
        predicted = torch.cat([output.argmax(1) for output in outputs])
        self.loss = self.loss + (torch.stack(losses).reshape(-1) * weights).sum()
        self.right = self.right + (predicted == torch.cat(labels).to(predicted.device)).sum()
        self.seen += sum(sizes)
        self.pending = []
