"""A config expands to cells: one strategy, one seed, and all there is to know to train it."""

from dataclasses import dataclass
from typing import Any

from mas.experiments import consolidated_deficit, critical_period
from mas.experiments.config import ConsolidatedDeficit, CriticalPeriod, Experiment, Forgetting, resolved
from mas.experiments.selection import Choice, as_text, candidates, continual_option, has_grid, is_grid

THREADS = 1  # of torch, in each cell: the order of sums, and so the last bit, depends on their number


@dataclass(frozen=True)
class Cell:
    """One independent run. It knows nothing of other cells, so any process may train it."""

    label: str
    seed: int
    settings: dict[str, Any]  # plain data: benchmark, model, training, strategy (without its label), ...

    @property
    def waits(self) -> bool:
        """Whether an option of the strategy is still to be chosen."""
        return has_grid(self.settings["strategy"])

    @property
    def id(self) -> str:
        """A name for files."""
        return f"{self.label}-seed{self.seed}"


def expand(config: Experiment, chosen: dict[str, Choice] | None = None) -> list[Cell]:
    """Give the cells to report, seed by seed, so that early results compare all strategies.

    Args:
        config: whose cells.
        chosen: by label, the values of options that are selected. Cells of a strategy that waits
            for its choice hold the values to choose from.
    """
    return [
        Cell(label, seed, _only_set(settings))
        for seed in config.seed_list()
        for label, settings in _plan(config, chosen or {}).items()
    ]


def labels_of(config: Experiment) -> list[str]:
    """Give the labels of the cells to report, in their order."""
    return list(_plan(config, {}))


def tries_of(config: Experiment) -> dict[str, list[tuple[Choice, list[Cell]]]]:
    """Give, by label, the choices that are to be tried and the cells that try them, on held-out data."""
    if not isinstance(config, Forgetting):
        return {}

    def cells(label: str, strategy: dict[str, Any], choice: Choice) -> list[Cell]:
        name, options = f"{label}~{as_text(choice)}", strategy | choice
        held_out = config.selection.validation
        settings = _only_set(_settings(config, options, held_out))
        return [Cell(name, seed, settings) for seed in config.selection.seeds]

    return {
        label: [(choice, cells(label, strategy, choice)) for choice in candidates(strategy)]
        for label, strategy in _strategies(config)
        if has_grid(strategy)
    }


def every_cell(config: Experiment) -> list[Cell]:
    """Give the cells that choose settings, then those to report."""
    return [*trying_cells(config), *expand(config)]


def trying_cells(config: Experiment) -> list[Cell]:
    """Give the cells that choose settings."""
    return [cell for own in tries_of(config).values() for _, cells in own for cell in cells]


def _plan(config: Experiment, chosen: dict[str, Choice]) -> dict[str, dict[str, Any]]:
    """Give the settings of the cells to report, by label."""
    if isinstance(config, CriticalPeriod):
        return critical_period.plan(config)
    if isinstance(config, ConsolidatedDeficit):
        return consolidated_deficit.plan(config)
    if not isinstance(config, Forgetting):
        raise TypeError(f"cannot expand {type(config).__name__}")
    return {
        label: _settings(config, strategy | chosen.get(label, {}), selection=_how(config, strategy))
        for label, strategy in _strategies(config)
    }


def _strategies(config: Forgetting) -> list[tuple[str, dict[str, Any]]]:
    plain = resolved(config)["strategies"]
    return [
        (label, {k: v for k, v in strategy.items() if k != "label"})
        for label, strategy in zip(config.labels(), plain, strict=True)
    ]


def _how(config: Forgetting, strategy: dict[str, Any]) -> dict[str, Any]:
    """Give how a strategy's options are chosen, for those that are."""
    grids = {key: value["select"] for key, value in strategy.items() if is_grid(value)}
    if grids:
        return {"options": grids, **config.selection.model_dump()}
    return {"validation": config.selection.validation} if continual_option(strategy) else {}


def _settings(
    config: Forgetting,
    strategy: dict[str, Any],
    held_out: float | None = None,
    selection: dict[str, Any] | None = None,
) -> dict[str, Any]:
    data = resolved(config)
    settings = {key: data[key] for key in ("experiment", "benchmark", "model", "training", "deficit")}
    if held_out is not None:
        settings["benchmark"] = settings["benchmark"] | {"validation": held_out}
    else:
        settings["probes"] = data["probes"]
    return settings | {"selection": selection, "strategy": strategy}


def _only_set(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is not set, so that results stay valid when there is more that could be."""
    kept = {key: value for key, value in settings.items() if value not in (None, [], {})}
    training = {key: value for key, value in settings["training"].items() if value is not None}
    return kept | {"training": training}
