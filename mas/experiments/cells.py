"""A config expands to cells: one strategy, one seed, and all there is to know to train it."""

from dataclasses import dataclass
from typing import Any

from mas.experiments.config import Forgetting, resolved
from mas.experiments.selection import Choice, as_text, candidates, continual_option, has_grid, is_grid


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


def expand(config: Forgetting, chosen: dict[str, Choice] | None = None) -> list[Cell]:
    """Give the cells to report, seed by seed, so that early results compare all strategies.

    Args:
        config: whose cells.
        chosen: by label, the values of options that are selected. Cells of a strategy that waits
            for its choice hold the values to choose from.
    """
    return [
        _cell(config, label, seed, strategy | (chosen or {}).get(label, {}), selection=_how(config, strategy))
        for seed in config.seed_list()
        for label, strategy in _strategies(config)
    ]


def tries_of(config: Forgetting) -> dict[str, list[tuple[Choice, list[Cell]]]]:
    """Give, by label, the choices that are to be tried and the cells that try them, on held-out data."""

    def cells(label: str, strategy: dict[str, Any], choice: Choice) -> list[Cell]:
        name, options = f"{label}~{as_text(choice)}", strategy | choice
        held_out = config.selection.validation
        return [_cell(config, name, seed, options, held_out) for seed in config.selection.seeds]

    return {
        label: [(choice, cells(label, strategy, choice)) for choice in candidates(strategy)]
        for label, strategy in _strategies(config)
        if has_grid(strategy)
    }


def every_cell(config: Forgetting) -> list[Cell]:
    """Give the cells that choose settings, then those to report."""
    return [*trying_cells(config), *expand(config)]


def trying_cells(config: Forgetting) -> list[Cell]:
    """Give the cells that choose settings."""
    return [cell for own in tries_of(config).values() for _, cells in own for cell in cells]


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


def _cell(
    config: Forgetting,
    label: str,
    seed: int,
    strategy: dict[str, Any],
    held_out: float | None = None,
    selection: dict[str, Any] | None = None,
) -> Cell:
    data = resolved(config)
    settings = {key: data[key] for key in ("experiment", "benchmark", "model", "training")}
    if held_out is not None:
        settings["benchmark"] = settings["benchmark"] | {"validation": held_out}
    if selection:
        settings["selection"] = selection
    return Cell(label, seed, settings | {"strategy": strategy})
