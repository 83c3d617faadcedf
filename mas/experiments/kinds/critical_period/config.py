"""What a config of ``experiment: critical_period`` may say."""

from typing import Annotated, Literal

from pydantic import Field

from mas.annotations import Count
from mas.experiments.config.checks import check_number_of_runs, check_one_length, check_titles
from mas.experiments.config.schema import (
    AnyDeficit,
    AnyProbe,
    Epochs,
    ProbeOptions,
    TrainingExperiment,
    WholeStream,
    probe_options,
)
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError
from mas.experiments.options import Options


def _default_probes() -> list[ProbeOptions]:
    fisher_trace = probe_options("fisher_trace", data=["train", "current"])
    return [fisher_trace, probe_options("accuracy", data=["train", "test", "current"])]


class Window(Options):
    """A deficit of fixed length, at several times."""

    length: Count  # epochs
    onsets: Annotated[Epochs, Field(min_length=2)]  # the epochs at which it begins


class Trace(Options):
    """A look at the network over the epochs, with the deficit and without."""

    end: Count  # the epoch at which the deficit ends
    probes: Annotated[list[AnyProbe], Field(min_length=1)] = Field(default_factory=_default_probes)


class CriticalPeriod(TrainingExperiment):
    """``experiment: critical_period``: impair a while of training, and see what stays impaired."""

    experiment: Literal["critical_period"]
    benchmark: WholeStream
    deficit: AnyDeficit
    removal: Epochs = Field(default=[])  # epochs at which the deficit ends; training.epochs clear ones follow
    window: Window | None = None
    trace: Trace | None = None
    other_deficits: list[AnyDeficit] = Field(default=[])  # other deficits beside it
    control: Literal["lr_matched"] = "lr_matched"  # for each removal, unless the learning rate is constant

    @property
    def clear_epochs(self) -> int:
        """The clear epochs that follow the deficit."""
        return self.training.epochs_of(0)

    @property
    def probes(self) -> list[ProbeOptions]:
        """The probes of the trace, if there is one."""
        return self.trace.probes if self.trace else []

    @property
    def needs_control(self) -> bool:
        """Whether the lr-matched control is run; under a constant learning rate it is the clear run itself."""
        return bool(self.removal) and self.training.is_annealed


def check(config: CriticalPeriod, source: Source) -> None:
    """Raise UserError for what the types cannot say."""
    onsets = len(config.window.onsets) if config.window else 0
    runs = len(config.removal) * (1 + len(config.other_deficits)) + onsets
    check_number_of_runs(("removal",), runs, source)
    if not (config.removal or config.window or config.trace):
        raise UserError(f"{source.where(())}: nothing to show; give removal, window or trace")
    if config.other_deficits and not config.removal:
        raise UserError(f"{source.where(('other_deficits',))}: deficits side by side need removal: [...]; add it")
    _check_deficits(config, source)
    check_one_length(config.training.epochs, source)
    titles = [probe.title() for probe in config.probes]
    check_titles(("trace", "probes"), titles, source)
    if AT_END.title() in titles:
        where = source.where(("trace", "probes", titles.index(AT_END.title()), "label"))
        raise UserError(f"{where}: found {AT_END.title()!r}, which every run measures; give another label")


def _check_deficits(config: CriticalPeriod, source: Source) -> None:
    titles = [deficit.title() for deficit in config.other_deficits]
    check_titles(("other_deficits",), titles, source)
    folded, own = [title.casefold() for title in titles], config.deficit.title()
    if own.casefold() in folded:
        where = source.where(("other_deficits", folded.index(own.casefold())))
        raise UserError(f"{where}: found {own!r}, which is the deficit; add a label of its own")


AT_END = probe_options("accuracy", label="final_accuracy", data=["train"], every="end")
"""The probe that every run has: accuracy on clear training data at the end."""
