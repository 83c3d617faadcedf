"""A config expands to cells: one strategy, one seed, and all there is to know to train it."""

from dataclasses import dataclass
from typing import Any

from mas.experiments.config import Forgetting, resolved
from mas.experiments.selection import Choice, as_text, candidates, continual_option, has_grid


@dataclass(frozen=True)
class Cell:
    """One independent run. It knows nothing of other cells, so any process may train it."""

    label: str
    seed: int
    settings: dict[str, Any]  # plain data: benchmark, model, training, strategy (without its label), ...

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
        _cell(config, label, seed, strategy | (chosen or {}).get(label, {}))
        for seed in config.seed_list()
        for label, strategy in _strategies(config)
    ]


def tries_of(config: Forgetting) -> dict[str, list[tuple[Choice, list[Cell]]]]:
    """Give, by label, the choices that are to be tried and the cells that try them, on held-out data."""
    held_out = {"validation": config.selection.validation}
    return {
        label: [
            (choice, [_cell(config, f"{label}~{as_text(choice)}", seed, strategy | choice, held_out) for seed in seeds])
            for choice in candidates(strategy)
        ]
        for label, strategy in _strategies(config)
        if has_grid(strategy)
        for seeds in [config.selection.seeds]
    }


def every_cell(config: Forgetting) -> list[Cell]:
    """Give the cells that choose settings, then those to report."""
    return [*(cell for own in tries_of(config).values() for _, cells in own for cell in cells), *expand(config)]


def _strategies(config: Forgetting) -> list[tuple[str, dict[str, Any]]]:
    plain = resolved(config)["strategies"]
    return [
        (label, {k: v for k, v in strategy.items() if k != "label"})
        for label, strategy in zip(config.labels(), plain, strict=True)
    ]


def _cell(
    config: Forgetting, label: str, seed: int, strategy: dict[str, Any], benchmark: dict[str, Any] | None = None
) -> Cell:
    data = resolved(config)
    settings = {key: data[key] for key in ("experiment", "benchmark", "model", "training")}
    settings["benchmark"] = settings["benchmark"] | (benchmark or {})
    if continual_option(strategy):
        settings["held_out"] = config.selection.validation
    return Cell(label, seed, settings | {"strategy": strategy})
