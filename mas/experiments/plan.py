"""A config becomes cells: those that try values, and those to report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from mas.experiments.cell import Cell, CellSettings, SelectionMade
from mas.experiments.config.schema import Experiment, Selection
from mas.experiments.config.search import Choice, Search, candidates
from mas.experiments.kind import PlannedRun
from mas.experiments.record import CellRecord
from mas.experiments.registry import KINDS, kind_of
from mas.experiments.results import Tried
from mas.experiments.sweep import origins
from mas.experiments.tuning import Tuner


@dataclass(frozen=True)
class Try:
    """One choice, and the cells that try it on held-out data."""

    choice: Choice
    cells: list[Cell]


class Plan:
    """The cells of a config.

    Args:
        config: from `mas.experiments.read_config.load_config`.
        read: returns the record of a finished cell; the search of a range goes on from there.
    """

    def __init__(self, config: Experiment, read: Callable[[Cell], CellRecord | None] = lambda cell: None):
        self.config = config
        self.kind = kind_of(config)
        self._read = read
        self._known_tries: dict[tuple[str, str], Try] = {}

    @cached_property
    def runs(self) -> list[PlannedRun]:
        """What is trained with each seed. Where a value is to be chosen, it is the first of its list."""
        return self.kind.plan(self.config)

    @cached_property
    def labels(self) -> list[str]:
        """The labels of the runs, in their order."""
        return [run.label for run in self.runs]

    @cached_property
    def searches(self) -> dict[str, list[Search]]:
        """By label, the searches that change the label's settings; labels without one are left out."""
        found: dict[str, list[Search]] = {}
        for search in self.config.searches:
            variants = [self._planned(choice) for choice in candidates([search])]
            for number, label in enumerate(self.labels):
                settings = [variant[number].settings for variant in variants]
                if any(other != settings[0] for other in settings):
                    found.setdefault(label, []).append(search)
        return found

    @property
    def tries(self) -> dict[str, list[Try]]:
        """By label, every choice that is tried, with its cells; of a range, those that are suggested so far."""
        found = {}
        for label, own in self.searches.items():
            tuner = self.tuners.get(label)
            choices = tuner.choices(partial(self._score, label)) if tuner else candidates(own)
            found[label] = [self._try(label, choice) for choice in choices]
        return found

    @cached_property
    def tuners(self) -> dict[str, Tuner]:
        """By label, what suggests values from ranges; labels without a range are left out."""
        return {
            label: Tuner(own, self._selection)
            for label, own in self.searches.items()
            if any(search.is_range for search in own)
        }

    @property
    def to_come(self) -> int:
        """The number of cells that will try values which are not suggested yet."""
        return sum(tuner.to_come for tuner in self.tuners.values()) * len(self._selection.seeds) if self.tuners else 0

    def trying_cells(self) -> list[Cell]:
        """Return the cells that try values."""
        return [cell for tries in self.tries.values() for one in tries for cell in one.cells]

    def cells(self, chosen: Mapping[str, Choice]) -> list[Cell]:
        """Return the cells to report that can be run, seed by seed, so that early results compare all labels.

        Args:
            chosen: by label, the values of options that are selected.
        """
        ready = {}
        for run in self.runs:
            if run.label not in self.searches or run.label in chosen:
                ready[run.label] = self._settings(run, chosen)
        return [Cell(label, seed, own) for seed in self.config.seed_list() for label, own in ready.items()]

    def waiting(self, chosen: Mapping[str, Choice]) -> list[Cell]:
        """Return the cells that wait for a choice; in their settings, the first value stands in its place."""
        waiting = {}
        for run in self.runs:
            if run.label in self.searches and run.label not in chosen:
                waiting[run.label] = self._with_selection(run.label, run.settings)
        return [Cell(label, seed, own) for seed in self.config.seed_list() for label, own in waiting.items()]

    def every_cell(self) -> list[Cell]:
        """Return the cells that try values, then those to report."""
        to_report = [*self.cells({}), *self.waiting({})]
        place = {label: number for number, label in enumerate(self.labels)}
        seeds = self.config.seed_list()
        to_report.sort(key=lambda cell: (seeds.index(cell.seed), place[cell.label]))
        return [*self.trying_cells(), *to_report]

    def _planned(self, choice: Choice) -> list[PlannedRun]:
        return self.kind.plan(self.config.with_choice(choice))

    def superseded(self, cell: Cell) -> bool:
        """Return whether a finished cell has another value than a search has chosen since."""
        record = self._read(cell) if cell.label in self.tuners else None
        if record is None or record.cell.settings == cell.settings:
            return False
        run = self.runs[self.labels.index(cell.label)]
        tried = [self._settings(run, {cell.label: one.choice}) for one in self.tries[cell.label]]
        return record.cell.settings in tried

    def _score(self, label: str, choice: Choice) -> float | None:
        """Return the mean ACC of a choice; None if a cell that tries it is not finished."""
        cells = self._try(label, choice).cells
        records = [record for cell in cells if (record := self._read(cell))]
        return Tried(choice, records).mean_acc() if len(records) == len(cells) else None

    def _try(self, label: str, choice: Choice) -> Try:
        key = (label, str(choice))
        if key not in self._known_tries:
            self._known_tries[key] = self._new_try(label, choice)
        return self._known_tries[key]

    def _new_try(self, label: str, choice: Choice) -> Try:
        settings = self._chosen_settings(label, choice)
        held_out = settings.held_out(self._selection.validation)
        return Try(choice, [Cell(f"{label}~{choice}", seed, held_out) for seed in self._selection.seeds])

    def _settings(self, run: PlannedRun, chosen: Mapping[str, Choice]) -> CellSettings:
        if run.label not in self.searches:
            return run.settings
        return self._with_selection(run.label, self._chosen_settings(run.label, chosen[run.label]))

    def _chosen_settings(self, label: str, choice: Choice) -> CellSettings:
        """Return the settings of a run with a choice made; of a sweep, only its own combination is planned."""
        own, plain = self._origins[label]
        runs = kind_of(own).plan(own.with_choice(choice))
        return next(run.settings for run in runs if run.label == plain)

    @cached_property
    def _origins(self) -> dict[str, tuple[Experiment, str]]:
        """By label, the config that a run comes from, and the run's label there."""
        if self.config.sweep:
            return origins(KINDS[self.config.experiment], self.config)
        return {label: (self.config, label) for label in self.labels}

    def _with_selection(self, label: str, settings: CellSettings) -> CellSettings:
        own = self._selection
        options = {search.option: search.plain() for search in self.searches[label]}
        made = SelectionMade(validation=own.validation, seeds=own.seeds, options=options)
        return settings.model_copy(update={"selection": made})

    @cached_property
    def _selection(self) -> Selection:
        selection = self.kind.selection(self.config)
        if selection is None:
            raise ValueError(f"experiment: {self.config.experiment} cannot choose values by {{select: [...]}}")
        return selection
