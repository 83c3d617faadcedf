"""A config becomes cells: those that try values, and those to report."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mas.experiments.cell import Cell, CellSettings, SelectionMade
from mas.experiments.config.schema import Experiment, Selection
from mas.experiments.config.search import Choice, Search, candidates
from mas.experiments.kind import PlannedRun
from mas.experiments.registry import kind_of


@dataclass(frozen=True)
class Try:
    """One choice, and the cells that try it on held-out data."""

    choice: Choice
    cells: list[Cell]


class Plan:
    """The cells of a config.

    Args:
        config: from `mas.experiments.read_config.load_config`.
    """

    def __init__(self, config: Experiment):
        self.config = config
        self.kind = kind_of(config)

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

    @cached_property
    def tries(self) -> dict[str, list[Try]]:
        """By label, every choice that is tried, with its cells."""
        found = {}
        for label, own in self.searches.items():
            found[label] = [self._try(label, choice) for choice in candidates(own)]
        return found

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

    def _try(self, label: str, choice: Choice) -> Try:
        settings = self._planned(choice)[self.labels.index(label)].settings
        held_out = settings.held_out(self._selection.validation)
        return Try(choice, [Cell(f"{label}~{choice}", seed, held_out) for seed in self._selection.seeds])

    def _settings(self, run: PlannedRun, chosen: Mapping[str, Choice]) -> CellSettings:
        if run.label not in self.searches:
            return run.settings
        made = self._planned(chosen[run.label])[self.labels.index(run.label)].settings
        return self._with_selection(run.label, made)

    def _with_selection(self, label: str, settings: CellSettings) -> CellSettings:
        own = self._selection
        options = {search.option: list(search.values) for search in self.searches[label]}
        made = SelectionMade(validation=own.validation, seeds=own.seeds, options=options)
        return settings.model_copy(update={"selection": made})

    @cached_property
    def _selection(self) -> Selection:
        selection = self.kind.selection(self.config)
        if selection is None:
            raise ValueError(f"experiment: {self.config.experiment} cannot choose values by {{select: [...]}}")
        return selection
