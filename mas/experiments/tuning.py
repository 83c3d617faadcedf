"""Search of ranges with Optuna: which values to try next, from what finished tries came to.

The store is the memory of a search. A search that goes on asks a new study for the same suggestions in the same
order and tells it what the finished cells came to, so that it arrives where it was, to the bit.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from mas.experiments.config.schema import Selection
from mas.experiments.config.search import Choice, Search
from mas.experiments.config.yaml_source import Source
from mas.experiments.errors import UserError

DIGITS = 4
"""Significant digits of a suggested value: enough for a search, and short enough for names of files."""


def check_optuna(search: Search, source: Source) -> None:
    """Raise UserError if a range is to be searched, and Optuna cannot be imported."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        where = source.where((*search.place, "select"))
        found = f"a range is searched with Optuna, which cannot be imported ({error})"
        raise UserError(f"{where}: {found}; run: pip install optuna, or give a list of values") from None


class Tuner:
    """Suggest values for some searches, batch by batch.

    All trials of a batch are suggested before any of them is finished, so that they can run side by side, and what is
    suggested does not depend on how many do.

    Args:
        searches: ranges, and lists beside them.
        selection: how many trials there are, the size of a batch, the sampler; its first seed seeds the sampler.
    """

    def __init__(self, searches: Sequence[Search], selection: Selection):
        self._searches = tuple(searches)
        self._selection = selection
        self._study = _study(selection)
        self._asked: list[Choice] = []
        self._running: list[tuple[Any, Choice]] = []  # Optuna's trials, and what they suggest

    @property
    def to_come(self) -> int:
        """The number of trials that are not suggested yet."""
        return self._selection.trials - len(self._asked)

    def choices(self, score: Callable[[Choice], float | None]) -> list[Choice]:
        """Return every choice suggested so far, each once; a batch is added as soon as the one before is finished.

        Args:
            score: the mean ACC of a choice; NaN if it diverged, None if it is not finished.
        """
        while self._running or self.to_come:
            if not self._running:
                self._ask()
            scores = [score(choice) for _, choice in self._running]
            finished = [own for own in scores if own is not None]
            if len(finished) < len(scores):
                break
            self._tell(finished)
        return list({str(choice): choice for choice in self._asked}.values())

    def _ask(self) -> None:
        for _ in range(min(self._selection.batch, self.to_come)):
            trial = self._study.ask()
            values = tuple(_suggested(trial, search) for search in self._searches)
            self._running.append((trial, Choice(self._searches, values)))
            self._asked.append(self._running[-1][1])

    def _tell(self, scores: Sequence[float]) -> None:
        for (trial, _), score in zip(self._running, scores, strict=True):
            self._study.tell(trial, 0.0 if math.isnan(score) else score)  # what diverges is as bad as can be
        self._running = []


def _study(selection: Selection) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = selection.seeds[0] % 2**32
    samplers: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    return optuna.create_study(direction="maximize", sampler=samplers[selection.sampler]())


def _suggested(trial: Any, search: Search) -> Any:
    """Return the value that a trial suggests for one search."""
    name = ".".join(map(str, search.place))
    if not search.is_range:
        return search.values[trial.suggest_categorical(name, list(range(len(search.values))))]
    low, high = search.values
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=search.log)
    value = trial.suggest_float(name, low, high, log=search.log)
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)
