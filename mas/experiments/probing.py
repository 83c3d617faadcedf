"""The deficit and the probes of a cell, as plugins of its strategy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mas.benchmarks import DeficitPlugin, apply_deficit, as_dataset, make_deficit
from mas.benchmarks.deficits import Deficit
from mas.benchmarks.images import Images
from mas.experiments.avalanche_types import Benchmark, Data, Experience
from mas.experiments.config.schema import ProbeOptions, ScheduledDeficit
from mas.experiments.record import ProbeRow
from mas.experiments.seeds import stream_seed
from mas.strategies import ProbePlugin, Schedule
from mas.strategies.measured_data import test_data, train_data

_IMPAIRED = ("impaired_train", "impaired_test")


def clear_views(probes: Sequence[ProbeOptions]) -> list[ProbeOptions]:
    """Return the probes of a run without deficit: its current data are the training data, and none are impaired."""
    kept = []
    for probe in probes:
        views = ["train" if view == "current" else view for view in probe.data if view not in _IMPAIRED]
        if views:
            kept.append(probe.model_copy(update={"data": list(dict.fromkeys(views))}))
    return kept


def make_deficit_plugin(options: ScheduledDeficit, benchmark: Benchmark, seed: int) -> DeficitPlugin:
    """Return the plugin of a scheduled deficit, with random streams of its own."""
    classes = 1 + max(max(e.classes_in_this_experience) for e in benchmark.train_stream)
    deficit = make_deficit(options.spec(), classes, seed=stream_seed(seed, "deficit"))
    return DeficitPlugin(deficit, options.start, options.end, seed=stream_seed(seed, "deficit draws"))


@dataclass(frozen=True)
class CellProbe:
    """One probe of a cell on one view of the data."""

    options: ProbeOptions
    view: str
    plugin: ProbePlugin

    def rows(self) -> list[ProbeRow]:
        """Return what the probe has seen so far."""
        return [
            ProbeRow(
                label=self.options.title(),
                probe=self.options.name,
                data=self.view,
                experience=row.experience,
                epoch=row.epoch,
                iteration=row.iteration,
                part=row.part,
                value=row.value,
            )
            for row in self.plugin.rows
        ]


def make_probes(probes: Sequence[ProbeOptions], deficit: DeficitPlugin | None, seed: int) -> list[CellProbe]:
    """Return a plugin for each probe and each view of the data it looks at.

    Args:
        probes: of the cell.
        deficit: of the cell, if it has one.
        seed: of the cell: random parts of impaired data are drawn from it.
    """
    views = _Views(deficit, seed)
    return [
        CellProbe(options, view, _plugin(options, getattr(views, view))) for options in probes for view in options.data
    ]


def _plugin(options: ProbeOptions, data: Callable[[Experience], Data]) -> ProbePlugin:
    every = None if options.every == "end" else options.every
    schedule = Schedule(every, options.unit, options.spacing)
    measure = partial(options.entry, **options.arguments())
    return ProbePlugin({options.title(): measure}, data, schedule=schedule, max_samples=options.max_samples)


class _Views:
    """The data a probe may look at, as functions of the experience that is trained. Impaired ones are made once."""

    def __init__(self, deficit: DeficitPlugin | None, seed: int):
        self.deficit, self.seed = deficit, seed
        self.made: dict[tuple[int, str], Data] = {}

    def train(self, experience: Experience) -> Data:
        return train_data(experience)

    def test(self, experience: Experience) -> Data:
        return test_data(experience)

    def current(self, experience: Experience) -> Data:
        lasts = self.deficit is not None and self.deficit.active
        return self.impaired_train(experience) if lasts else self.train(experience)

    def impaired_train(self, experience: Experience) -> Data:
        return self._impaired("train", train_data(experience), experience.current_experience)

    def impaired_test(self, experience: Experience) -> Data:
        return self._impaired("test", test_data(experience), experience.current_experience)

    def _impaired(self, name: str, clear: Data, number: int) -> Data:
        key = (number, name)
        if key not in self.made:
            x, y, task = clear.eval().batch(range(len(clear)))
            seen = apply_deficit(Images(x, y), self._deficit(), seed=stream_seed(self.seed, "probe", *key))
            self.made[key] = as_dataset(seen, int(task[0]))
        return self.made[key]

    def _deficit(self) -> Deficit:
        if self.deficit is None:
            raise ValueError("impaired data need a deficit; this run has none")
        return self.deficit.deficit
