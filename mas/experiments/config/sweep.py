"""Options with several values: ``sweep: {training.lr: [0.1, 0.01]}`` runs a config once for each combination."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from mas.experiments.config.plain_yaml import quoted, shortened
from mas.experiments.config.search import Search, children, put, selects
from mas.experiments.config.yaml_source import Key, Source, nearest
from mas.experiments.errors import UserError

SWEEP = "sweep"
MAX_COMBINATIONS = 1_000
_NEVER_SWEPT = ("experiment", "seeds", "data_root", "save_model", "selection", "logging", "resources", SWEEP)
_EXAMPLE = "{training.lr: [0.1, 0.01], strategies.mas.lam: [1, 10]}"


@dataclass(frozen=True)
class SweptOption:
    """An option of a config with several values."""

    name: str  # its path as it is written, such as strategies.mas.lam
    key: Key  # of its list in the file
    place: Key  # of the option, such as ("strategies", 1, "lam")
    values: tuple[Any, ...]


def take_out_sweep(source: Source) -> list[SweptOption]:
    """Return the options that are swept; the map is taken out of the data.

    Raises:
        UserError: a list has fewer than two values, an option cannot be swept or leads nowhere, or there are too
            many combinations.
    """
    found = source.data.pop(SWEEP, None)
    if found is None:
        return []
    where = source.where((SWEEP,))
    if not isinstance(found, dict):
        raise UserError(f"{where}: found {quoted(found)}; allowed: a map from options to lists, such as {_EXAMPLE}")
    options = [_option(source, key, values) for key, values in _named_lists(source, found).items()]
    _refuse_twice(source, options)
    number = math.prod(len(option.values) for option in options)
    if number > MAX_COMBINATIONS:
        raise UserError(f"{where}: found {number:,} combinations of values; allowed: at most {MAX_COMBINATIONS:,}")
    source.combinations = [_origins(options, numbers) for numbers in _numbers(options)] if options else []
    return options


def combined(data: Mapping[str, Any], options: Sequence[SweptOption]) -> Iterator[dict[str, Any]]:
    """Yield the data of a config with each combination of values, the last option fastest."""
    for numbers in _numbers(options):
        changed = deepcopy(dict(data))
        for option, number in zip(options, numbers, strict=True):
            _put_making_maps(changed, option.place, deepcopy(option.values[number]))
        yield changed


def refuse_both(options: Sequence[SweptOption], searches: Sequence[Search], source: Source) -> None:
    """Raise UserError if an option is swept, and also chosen by ``select``."""
    for option, search in itertools.product(options, searches):
        shared = min(len(option.place), len(search.place))
        if option.place[:shared] == search.place[:shared]:
            where = source.where(option.key)
            raise UserError(f"{where}: is also chosen by select: {source.where(search.place)}; allowed: one of both")


def _numbers(options: Sequence[SweptOption]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(option.values)) for option in options))


def _origins(options: Sequence[SweptOption], numbers: Sequence[int]) -> dict[Key, Key]:
    """Return, by the place of each option, where in the file its value stands."""
    return {option.place: (*option.key, number) for option, number in zip(options, numbers, strict=True)}


def _named_lists(source: Source, found: dict[str, Any]) -> dict[Key, Any]:
    """Return what stands under each path; of two with one name, the one that a change has set."""
    by_name: dict[str, Key] = {}
    values = dict(_lists(found, (SWEEP,)))
    for key in values:
        name = _name(key)
        if name not in by_name or key in source.changes:
            by_name[name] = key
        elif by_name[name] not in source.changes:
            raise UserError(f"{source.where(key)}: found a second time; allowed: once")
    return {key: values[key] for key in by_name.values()}


def _name(key: Key) -> str:
    return ".".join(map(str, key[1:]))


def _lists(found: Any, key: Key) -> Iterator[tuple[Key, Any]]:
    """Yield what stands under each path: maps may lie within each other, as ``--set sweep.training.lr=[...]`` makes."""
    if not isinstance(found, dict):
        yield key, found
        return
    for part, inner in found.items():
        yield from _lists(inner, (*key, part))


def _option(source: Source, key: Key, values: Any) -> SweptOption:
    where = source.where(key)
    if not isinstance(values, list):
        raise UserError(f"{where}: found {quoted(values)}; allowed: a list of values")
    if len(values) < 2:
        raise UserError(f"{where}: found {quoted(values)}; allowed: a list of at least two values")
    if any(value in values[:i] for i, value in enumerate(values)):
        raise UserError(f"{where}: found {quoted(values)}; allowed: each value once")
    name = _name(key)
    place = _place(source.data, name, where)
    if place[0] in _NEVER_SWEPT or place[-1] in ("label", "device"):
        raise UserError(f"{where}: cannot be swept; give one value")
    if any(next(selects(value, place), None) for value in values):
        raise UserError(f"{where}: found select among the values; give the values themselves")
    return SweptOption(name, key, place, tuple(values))


def _place(data: Any, name: str, where: str) -> Key:
    """Return the place of an option; entries of lists go by label, name or number."""
    parts = name.split(".")
    place: list[str | int] = []
    while parts:
        part: str | int = parts[0]
        taken = 1
        if isinstance(data, list):
            part, taken = _entry(data, parts, where)
        elif not isinstance(data, dict) and data is not None:
            raise UserError(f"{where}: there is no {shortened(parts[0])} in {quoted(data)}, which holds no keys")
        place.append(part)
        parts = parts[taken:]
        data = None if data is None else dict(children(data)).get(part)
    return tuple(place)


def _entry(entries: list[Any], parts: Sequence[str], where: str) -> tuple[int, int]:
    """Return the number of an entry, and of how many parts of the path its name is made: labels may have dots."""
    for key in ("label", "name", "stream"):
        names = [entry.get(key) if isinstance(entry, dict) else None for entry in entries]
        for taken in range(len(parts), 0, -1):
            name = ".".join(parts[:taken])
            if names.count(name) == 1:
                return names.index(name), taken
            if names.count(name) > 1:
                raise UserError(f"{where}: there are several called {name}; give a label or a number, from 0")
    if parts[0].isdecimal() and int(parts[0]) < len(entries):
        return int(parts[0]), 1
    titles = [str(e.get("label") or e.get("name") or e.get("stream")) for e in entries if isinstance(e, dict)]
    known = f"allowed: {', '.join(titles)}" if titles else f"allowed: 0 to {len(entries) - 1}"
    raise UserError(f"{where}: there is no {shortened(parts[0])}{nearest(shortened(parts[0]), titles)}; {known}")


def _refuse_twice(source: Source, options: Sequence[SweptOption]) -> None:
    """Raise UserError if an option is given twice, or a part of another one."""
    for first, second in itertools.combinations(options, 2):
        shared = min(len(first.place), len(second.place))
        if first.place[:shared] == second.place[:shared]:
            raise UserError(f"{source.where(second.key)}: found beside {first.name}; allowed: one of both")


def _put_making_maps(data: Any, place: Key, value: Any) -> None:
    """Set the value at a place; maps on the way that are missing are made."""
    for part in place[:-1]:
        if isinstance(data, dict) and data.get(part) is None:
            data[part] = {}
        data = data[part]
    put(data, place[-1:], value)
