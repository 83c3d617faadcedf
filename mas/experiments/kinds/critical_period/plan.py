"""Which networks are trained, and which of them make the curves.

Every network is a run of its own: so many epochs, with a deficit in some of them.

Source: Achille, Rovere and Soatto 2019, Critical Learning Periods in Deep Networks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mas.experiments.cell import TrainingSettings, settings_for
from mas.experiments.config.schema import SCHEDULED_DEFICIT_MODELS, STRATEGY_MODELS, ScheduledDeficit
from mas.experiments.kind import PlannedRun
from mas.experiments.kinds.critical_period.config import AT_END, CriticalPeriod
from mas.experiments.probing import clear_views


@dataclass(frozen=True)
class TrainingRun:
    """One network's training: so many epochs, impaired from ``start`` to ``end`` if it has a deficit."""

    epochs: int
    deficit: str | None = None  # its title; None: clear throughout
    start: int = 0
    end: int = 0
    first_epoch: int = 0  # where in the learning rate's schedule it begins: above 0 in the lr-matched control

    @property
    def label(self) -> str:
        """The label of the run's results."""
        if self.deficit is not None:
            return f"{self.deficit}_{self.start}-{self.end}_of_{self.epochs}"
        return f"control_{self.first_epoch}_of_{self.epochs}" if self.first_epoch else f"clear_{self.epochs}"


@dataclass(frozen=True)
class Point:
    """One point of a curve: a run, and the run that it is compared with."""

    curve: Literal["removal", "window", "control"]
    deficit: str
    epoch: int  # of removal, of onset, or where the control begins
    run: TrainingRun
    reference: TrainingRun


def plan(config: CriticalPeriod) -> list[PlannedRun]:
    """Return every run, each once: those of the curves, their references, those that are traced."""
    curves = [run for point in points(config) for run in (point.reference, point.run)]
    every = dict.fromkeys([*curves, *traced_runs(config)])
    return [PlannedRun(run.label, _settings(config, run)) for run in every]


def points(config: CriticalPeriod) -> list[Point]:
    """Return every point of every curve."""
    return [*_removal_points(config), *_control_points(config), *_window_points(config)]


def traced_runs(config: CriticalPeriod) -> list[TrainingRun]:
    """Return the runs that the trace's probes measure: one with the deficit, and one as long without."""
    if config.trace is None:
        return []
    impaired = removed_run(config, config.deficit.title(), config.trace.end)
    return [impaired, TrainingRun(impaired.epochs)]


def clear_run(config: CriticalPeriod) -> TrainingRun:
    """Return the run without deficit that removal is compared with."""
    return TrainingRun(config.clear_epochs)


def removed_run(config: CriticalPeriod, deficit: str, epoch: int) -> TrainingRun:
    """Return the run whose deficit lasts until ``epoch``."""
    epochs = epoch + config.clear_epochs
    return TrainingRun(epochs, deficit, 0, epoch) if epoch else TrainingRun(epochs)


def control_run(config: CriticalPeriod, epoch: int) -> TrainingRun:
    """Return a clear run with the learning rates that the impaired one sees from ``epoch`` on."""
    return TrainingRun(config.clear_epochs, first_epoch=epoch)


def _removal_epochs(config: CriticalPeriod) -> list[int]:
    return sorted({0, *config.removal}) if config.removal else []


def _removal_points(config: CriticalPeriod) -> Iterator[Point]:
    for deficit in (config.deficit, *config.other_deficits):
        title = deficit.title()
        for epoch in _removal_epochs(config):
            yield Point("removal", title, epoch, removed_run(config, title, epoch), clear_run(config))


def _control_points(config: CriticalPeriod) -> Iterator[Point]:
    for epoch in _removal_epochs(config) if config.needs_control else ():
        yield Point("control", "", epoch, control_run(config, epoch), clear_run(config))


def _window_points(config: CriticalPeriod) -> Iterator[Point]:
    if config.window is None:
        return
    title = config.deficit.title()
    for onset in config.window.onsets:
        end = onset + config.window.length
        epochs = end + config.clear_epochs
        yield Point("window", title, onset, TrainingRun(epochs, title, onset, end), TrainingRun(epochs))


def _settings(config: CriticalPeriod, run: TrainingRun) -> TrainingSettings:
    deficit = _scheduled(config, run)
    probes = config.probes if run in traced_runs(config) else []
    return settings_for(
        config,
        strategy=STRATEGY_MODELS["naive"](),
        epochs=run.epochs,
        first_epoch=run.first_epoch,
        deficit=deficit,
        probes=[AT_END, *(probes if deficit else clear_views(probes))],
    )


def _scheduled(config: CriticalPeriod, run: TrainingRun) -> ScheduledDeficit | None:
    for deficit in (config.deficit, *config.other_deficits):
        if deficit.title() == run.deficit:
            options = deficit.spec() | {"start": run.start, "end": run.end}
            return SCHEDULED_DEFICIT_MODELS[deficit.name].model_validate(options)  # type: ignore[return-value]
    return None
