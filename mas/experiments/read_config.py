"""A YAML file, or plain data, becomes a typed config, or a list of one-line complaints."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from mas.benchmarks import set_data_root
from mas.experiments.config.checks import check_number_of_cells, check_run_labels
from mas.experiments.config.complaints import complaints
from mas.experiments.config.schema import (
    RENAMED_STREAMS,
    Experiment,
    StreamOptions,
    Training,
    parts_of,
    walk_plain,
)
from mas.experiments.config.search import MAX_VALUES, SELECT, Search, candidates, put, take_out_searches, with_values
from mas.experiments.config.sweep import SweptOption, combined, refuse_both, take_out_sweep
from mas.experiments.config.yaml_source import Key, Source, nearest
from mas.experiments.errors import RenamedWarning, UserError
from mas.experiments.kind import Kind
from mas.experiments.optimizers import OPTIMIZERS, takes
from mas.experiments.registry import KINDS, kind_of
from mas.experiments.sweep import options_used
from mas.experiments.trial import check_datasets, check_imports
from mas.experiments.tuning import check_optuna


def load_config(
    source: Path | str | Mapping[str, Any],
    changes: Sequence[str] = (),
    data_root: Path | None = None,
    try_data: bool = True,
) -> Experiment:
    """Read, change (``key.key=value``) and validate a config.

    Args:
        source: the path of a YAML file, or a config as plain data.
        changes: values to change, in their order.
        data_root: where data sets are, for this process and its workers; before the config's own
            ``data_root``, and that before ``MAS_DATA``.
        try_data: whether to load the data too, and try the model on them; not needed to read results.

    Raises:
        UserError: with one line for each thing that is wrong: where, what was found, what is allowed.
    """
    read = Source(source, changes)
    _find_modules_beside(read)
    kind = _kind(read)
    _read_old_names(kind, read)
    options = take_out_sweep(read)
    data, searches = take_out_searches(read)
    refuse_both(options, searches, read)
    config = _typed(kind, read, data, searches, options)
    for own, where in _each(config, read):
        _check_selection(kind, own, where, times=len(config.each))
        _check_training(own, where)
    kind = kind_of(config)
    _check_searches(kind, config, read)
    for variant in config.variants():
        kind.check(variant, read)
        plan = kind.plan(variant)
        check_run_labels([run.label for run in plan], read)
        check_number_of_cells(len(plan), len(variant.seed_list()), read)
    _check_swept(config, options, read)
    if root := data_root or config.data_root:
        _look_in(Path(root).expanduser())
    if try_data:
        for variant in config.variants():
            _try(variant, read)
    return config


def _typed(
    kind: Kind[Any],
    source: Source,
    data: dict[str, Any],
    searches: Sequence[Search],
    options: Sequence[SweptOption],
) -> Experiment:
    """Return the typed config, with that of each combination of a sweep."""
    if not options:
        _name_device(data)
        return _validated(kind, source, data, searches)
    configs = []
    for number, own in enumerate(combined(data, options)):
        _name_device(own)
        configs.append(_validated(kind, source.combination(number), own, searches))
    return configs[0].with_sweep({option.name: list(option.values) for option in options}, configs)


def _each(config: Experiment, source: Source, *, few: bool = False) -> Iterator[tuple[Experiment, Source]]:
    """Yield the config of each combination of a sweep, or the config itself, with what it was read from.

    Args:
        config: with or without a sweep.
        source: of the config.
        few: only the first combination, and those that differ from it in one option.
    """
    first = {option: values[0] for option, values in config.sweep.items()}
    if not config.sweep:
        yield config, source
    for number, (values, own) in enumerate(config.combinations):
        others = [option for option in values if values[option] is not first[option]]
        if len(others) <= 1 or not few:
            yield own, source.combination(number)


def _check_swept(config: Experiment, options: Sequence[SweptOption], source: Source) -> None:
    """Raise UserError if a swept option changes nothing about any run."""
    used = options_used(config, KINDS[config.experiment]) if options else set()
    for option in options:
        if option.name not in used:
            raise UserError(f"{source.where(option.key)}: no run depends on this option; leave it out")


def _find_modules_beside(source: Source) -> None:
    """Let ``import:`` find modules in the folder of the config, here and in workers."""
    if source.path is not None:
        folder = str(source.path.resolve().parent)
        if folder not in sys.path:
            sys.path.append(folder)


def _kind(source: Source) -> Kind[Any]:
    name = source.data.get("experiment")
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    found = "missing" if name is None else f"found {name!r}{nearest(str(name), list(KINDS))}"
    raise UserError(f"{source.where(('experiment',))}: {found}; allowed: {', '.join(KINDS)}")


def _read_old_names(kind: Kind[Any], source: Source) -> None:
    """Put new names in the place of old ones, with a warning for each."""
    for old, new in kind.renamed.items():
        if old in source.data:
            where = source.where((old,))
            source.rename_key(old, new)
            _warn(f"{where}: is now called {new}; the old name still works")
    benchmark = source.data.get("benchmark")
    old_stream = benchmark.get("stream") if isinstance(benchmark, dict) else None
    if isinstance(old_stream, str) and old_stream in RENAMED_STREAMS:
        new_stream = RENAMED_STREAMS[old_stream]
        where = source.where(("benchmark", "stream"))
        _warn(f"{where}: {old_stream} is now called {new_stream}; the old name still works")
        put(source.data, ("benchmark", "stream"), new_stream)


def _warn(message: str) -> None:
    warnings.warn(message, RenamedWarning, stacklevel=4)  # where load_config was called


def _validated(kind: Kind[Any], source: Source, data: dict[str, Any], searches: Sequence[Search]) -> Experiment:
    """Return the typed config; every value of a search is checked in its place."""
    try:
        config = kind.config.model_validate(data)
    except ValidationError as error:
        raise UserError(*complaints(source, kind.config, data, error, searches)) from None
    for search in searches:
        for number, value in enumerate(search.values):
            changed = with_values(data, {search.place: value})
            try:
                kind.config.model_validate(changed)
            except ValidationError as error:
                tried = replace(search, values=(value,))
                raise UserError(*complaints(source, kind.config, changed, error, [tried], number)) from None
    return _with_searches(config, searches, source)


def _with_searches(config: Experiment, searches: Sequence[Search], source: Source) -> Experiment:
    """Return the config with its searches; raise UserError if one chooses between names whose options differ."""
    for search in searches:
        try:
            config.with_searches([search])
        except ValidationError:
            where = source.where((*search.place, SELECT))
            name, *_ = search.values
            example = f"{{select: [{{{search.place[-1]}: {name}, ...}}, ...]}}"
            raise UserError(
                f"{where}: found names with different options; choose between whole maps: {example}"
            ) from None
    return config.with_searches(searches)


def _name_device(data: dict[str, Any]) -> None:
    """Put the device of this machine in the place of ``auto``."""
    found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    automatic = [place for place, value in walk_plain(data) if place[-1] == "device" and value == "auto"]
    for place in automatic:
        put(data, place, found)


def _try(config: Experiment, source: Source) -> None:
    """Build everything of a config once, in small; of a sweep, with each value of each option once."""
    for own, where in _each(config, source, few=True):
        check_imports(own, where)
        check_datasets(own, where)
        kind = kind_of(own)
        kind.trial(own, [run.settings for run in kind.plan(own)], where)


def _check_selection(kind: Kind[Any], config: Experiment, source: Source, *, times: int) -> None:
    """Raise UserError for a value that cannot be chosen; ``times`` is the number of combinations of a sweep."""
    if not config.searches:
        return
    first = config.searches[0].place
    selection = kind.selection(config)
    if selection is None:
        raise UserError(
            f"{source.where((*first, 'select'))}: experiment: {kind.name} has no ACC to choose by; give one value"
        )
    for search in config.searches:
        if search.place[0] in _NEVER_CHOSEN or search.place[-1] in ("label", "device"):
            where = source.where((*search.place, "select"))
            raise UserError(f"{where}: nothing to choose by ACC; give one value")
        if search.is_range:
            check_optuna(search, source)
    for place, stream in parts_of(config, StreamOptions):
        if stream.held_out:
            where, name = source.where((*place, "validation")), source.name(first[:2])
            raise UserError(f"{where}: {name} holds out data by selection.validation; leave this out")
    _check_combinations(config, source, times=times)
    if both := set(selection.seeds) & set(config.seed_list()):
        where = source.where(("selection", "seeds"))
        raise UserError(f"{where}: found {min(both)}, for which results are reported; allowed: other seeds")


def _check_combinations(config: Experiment, source: Source, *, times: int) -> None:
    """Raise UserError if one run would try too many combinations of values."""
    of_strategies: dict[Key, int] = {}
    of_all = 1
    for search in config.searches:
        if search.place[0] == "strategies":
            own = search.place[:2]
            of_strategies[own] = of_strategies.get(own, 1) * len(search.values)
        else:
            of_all *= len(search.values)
    combinations = times * of_all * max(of_strategies.values(), default=1)
    if combinations > MAX_VALUES:
        where = source.where((*config.searches[0].place, SELECT))
        raise UserError(f"{where}: found {combinations:,} combinations of values; allowed: at most {MAX_VALUES:,}")


_NEVER_CHOSEN = ("data_root", "logging", "probes", "resources", "save_model", "seeds", "selection")


def _check_training(config: Experiment, source: Source) -> None:
    """Raise UserError for a value that an optimizer does not take, in any combination of values to choose from."""
    searches = [search for search in config.searches if set(search.place) & {"optimizer", "momentum", "weight_decay"}]
    for choice in candidates(searches):
        for place, training in parts_of(config.with_choice(choice), Training):
            _check_optimizer(training, place, source)


def _check_optimizer(training: Training, place: Key, source: Source) -> None:
    optimizer = training.optimizer.name
    for key, value in {"momentum": training.momentum, "weight_decay": training.weight_decay}.items():
        if value and not takes(optimizer, key):
            where = source.where((*place, key))
            allowed = ", ".join(name for name in OPTIMIZERS if takes(name, key))
            raise UserError(f"{where}: found {key} with {optimizer}; allowed: only with optimizer: {allowed}")


def _check_searches(kind: Kind[Any], config: Experiment, source: Source) -> None:
    """Raise UserError where a choice would change which runs there are, or nothing about any run."""
    for search in config.searches:
        where = source.where((*search.place, SELECT))
        plans = [kind.plan(config.with_choice(choice)) for choice in candidates([search])]
        labels = [[run.label for run in plan] for plan in plans]
        if any(other != labels[0] for other in labels):
            raise UserError(f"{where}: found values that would rename runs, or give others; give one value")
        if all(plan == plans[0] for plan in plans):
            raise UserError(f"{where}: found values on which no run depends; give one value")


def _look_in(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder for data sets; make it first, and they are downloaded into it")
    set_data_root(root)
