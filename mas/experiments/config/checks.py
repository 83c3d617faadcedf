"""Checks that several kinds of experiment share."""

from collections.abc import Sequence

from mas.experiments.config.schema import ProbeOptions
from mas.experiments.config.yaml_source import Key, Source
from mas.experiments.errors import UserError


def check_titles(place: Key, titles: Sequence[str], source: Source) -> None:
    """Raise UserError if a title stands twice in a list of the config."""
    number = _first_repeated(titles)
    if number is not None:
        where = source.where((*place, number))
        title = titles[number]
        raise UserError(f"{where}: found a second {title!r}; add a label of its own, such as {title}-2")


def check_run_labels(labels: Sequence[str], source: Source) -> None:
    """Raise UserError if two runs have one label: they would share files."""
    number = _first_repeated(labels)
    if number is not None:
        where = source.where(())
        raise UserError(f"{where}: two runs would have the label {labels[number]!r}; give one of them another label")


MAX_RUNS = 2_000
MAX_CELLS = 100_000


def check_number_of_runs(place: Key, number: int, source: Source) -> None:
    """Raise UserError if a config asks for more runs than can be planned in a few seconds."""
    if number > MAX_RUNS:
        raise UserError(f"{source.where(place)}: found {number:,} runs; allowed: at most {MAX_RUNS:,} in one config")


def check_number_of_cells(runs: int, seeds: int, source: Source) -> None:
    """Raise UserError if runs and seeds make more cells than a folder should hold."""
    if runs * seeds > MAX_CELLS:
        found = f"found {runs:,} runs with {seeds:,} seeds, {runs * seeds:,} cells"
        raise UserError(f"{source.where(('seeds',))}: {found}; allowed: at most {MAX_CELLS:,}")


def _first_repeated(names: Sequence[str]) -> int | None:
    """Return the place of the first name that occurred before, in upper or lower case; None if there is none."""
    seen: set[str] = set()
    for number, name in enumerate(names):
        folded = name.casefold()  # some file systems fold case
        if folded in seen:
            return number
        seen.add(folded)
    return None


def check_views(place: Key, probes: Sequence[ProbeOptions], deficit: object, source: Source) -> None:
    """Raise UserError if a probe looks at impaired data and there is no deficit."""
    for number, probe in enumerate(probes):
        impaired = [view for view in probe.data if view.startswith("impaired")]
        if impaired and deficit is None:
            where = source.where((*place, number, "data"))
            raise UserError(f"{where}: found {impaired[0]}, and there is no deficit; add one")


def check_one_length(epochs: object, source: Source) -> None:
    """Raise UserError if ``training.epochs`` is a list."""
    if not isinstance(epochs, int):
        raise UserError(f"{source.where(('training', 'epochs'))}: found a list; allowed: a number, the clear epochs")
