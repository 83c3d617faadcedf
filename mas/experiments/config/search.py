"""Values that are to be chosen: ``{select: [...]}`` in place of any value of a config, or a range."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from mas.experiments.config.plain_yaml import quoted
from mas.experiments.config.yaml_source import Key, Source
from mas.experiments.errors import UserError

SELECT = "select"
ENDS = ("low", "high")
MAX_VALUES = 1_000  # of one option; also of the combinations that one run tries


@dataclass(frozen=True)
class Search:
    """A place in a config whose value is chosen from a list or a range."""

    place: Key
    values: tuple[Any, ...]  # of a range, its ends
    is_range: bool = False
    log: bool = False  # whether a range is searched on a logarithmic scale

    @property
    def option(self) -> str:
        """The name of the option: that of a strategy's own, or its whole path in the config."""
        path = self.place[2:] if self.place[0] == "strategies" else self.place
        return ".".join(map(str, path))

    def plain(self) -> list[Any] | dict[str, Any]:
        """Return what stands under ``select``."""
        if self.is_range:
            return dict(zip(ENDS, self.values, strict=True)) | {"log": self.log}
        return list(self.values)

    def key(self, number: int) -> str | int:
        """Return the key under ``select`` at which a value stands."""
        return ENDS[number] if self.is_range else number


@dataclass(frozen=True)
class Choice:
    """One value for each of some searches."""

    searches: tuple[Search, ...]
    values: tuple[Any, ...]

    def __str__(self) -> str:
        """Return the choice as it stands in labels and tables, such as ``lam=0.1,norm=l2``."""
        options = [search.option for search in self.searches]
        texts = [value if isinstance(value, str) else json.dumps(value) for value in self.values]
        return ",".join(f"{option}={text}" for option, text in zip(options, texts, strict=True))


def candidates(searches: Sequence[Search]) -> list[Choice]:
    """Return every combination of the values to choose from.

    >>> lam, norm = Search(("strategies", 0, "lam"), (1, 10)), Search(("strategies", 0, "norm"), ("l2",))
    >>> [str(choice) for choice in candidates([lam, norm])]
    ['lam=1,norm=l2', 'lam=10,norm=l2']
    """
    combinations = itertools.product(*(search.values for search in searches))
    return [Choice(tuple(searches), values) for values in combinations]


def take_out_searches(source: Source) -> tuple[dict[str, Any], list[Search]]:
    """Return the data of a file with the first value in place of each search, and the searches.

    Raises:
        UserError: a list to choose from has fewer than two values, or one of them twice.
    """
    data = deepcopy(source.data)
    searches = [_search(source, place, value) for place, value in selects(data, ())]
    for search in searches:
        put(data, search.place, search.values[0])
    return data, searches


def with_values(data: Mapping[str, Any], values: Mapping[Key, Any]) -> dict[str, Any]:
    """Return plain data with other values at some places."""
    changed = deepcopy(dict(data))
    for place, value in values.items():
        put(changed, place, value)
    return changed


def value_at(data: Any, place: Key) -> Any:
    """Return the value at a place in plain data."""
    for part in place:
        data = data[part]
    return data


def put(data: Any, place: Key, value: Any) -> None:
    """Set the value at a place in plain data."""
    value_at(data, place[:-1])[place[-1]] = value


def selects(data: Any, place: Key) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield every map with the key ``select``, but not that of a λ chosen continually: a model checks it."""
    if isinstance(data, dict) and SELECT in data and place:
        if isinstance(data[SELECT], list | dict) or place[-1] != "lam":
            yield place, data
        return
    for part, value in children(data):
        yield from selects(value, (*place, part))


def children(data: Any) -> list[tuple[str | int, Any]]:
    """Return the keys and values of a map, or the places and items of a list; of other values none."""
    if isinstance(data, dict):
        return list(data.items())
    if isinstance(data, list):
        return list(enumerate(data))
    return []


def _search(source: Source, place: Key, found: dict[str, Any]) -> Search:
    values, others = found[SELECT], [key for key in found if key != SELECT]
    where = source.where((*place, SELECT))
    if others:
        raise UserError(f"{source.where((*place, others[0]))}: unknown key; allowed: {SELECT}")
    if isinstance(values, dict):
        return _range(source, place, values)
    if not isinstance(values, list):
        raise UserError(f"{where}: found {quoted(values)}; allowed: a list of values")
    if len(values) < 2:
        raise UserError(f"{where}: found {values}; allowed: a list of at least two values")
    if len(values) > MAX_VALUES:
        raise UserError(f"{where}: found {len(values):,} values; allowed: at most {MAX_VALUES:,}")
    if any(value in values[:i] for i, value in enumerate(values)):
        raise UserError(f"{where}: found {quoted(values)}; allowed: values to choose from, each once")
    return Search(place, tuple(values))


def _range(source: Source, place: Key, found: dict[str, Any]) -> Search:
    """Return the search of a range such as ``{low: 0.1, high: 100, log: true}``."""
    where = source.where((*place, SELECT))
    example = "a list of values, or a range such as {low: 0.1, high: 100, log: true}"
    if not set(ENDS) <= set(found) <= {*ENDS, "log"}:
        raise UserError(f"{where}: found {quoted(found)}; allowed: {example}")
    for end in ENDS:
        if not isinstance(found[end], int | float) or isinstance(found[end], bool):
            raise UserError(f"{source.where((*place, SELECT, end))}: found {quoted(found[end])}; allowed: a number")
    log = found.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{source.where((*place, SELECT, 'log'))}: found {quoted(log)}; allowed: true or false")
    low, high = (found[end] for end in ENDS)
    if not low < high:
        raise UserError(f"{source.where((*place, SELECT, 'high'))}: found {high}; allowed: more than low, {low}")
    if log and low <= 0:
        raise UserError(f"{source.where((*place, SELECT, 'low'))}: found {low}; allowed: more than 0, with log: true")
    return Search(place, (low, high), is_range=True, log=log)
