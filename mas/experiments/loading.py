"""A YAML file becomes a typed config, or a list of one-line complaints."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from pydantic import ValidationError

from mas.benchmarks import DATASETS, STREAMS, DeficitPlugin, make_deficit, set_data_root
from mas.experiments.cells import every_cell
from mas.experiments.config import (
    DEFICIT_MODELS,
    EXPERIMENTS,
    MODEL_MODELS,
    PROBE_MODELS,
    SCHEDULE_MODELS,
    SCHEDULED_DEFICIT_MODELS,
    STRATEGY_MODELS,
    STREAM_DEFICIT_MODELS,
    STREAM_MODELS,
    ConsolidatedDeficit,
    CriticalPeriod,
    Experiment,
    Forgetting,
    ProbeOptions,
    Selection,
    Trace,
    Training,
    Window,
)
from mas.experiments.consolidated_deficit import variant_labels
from mas.experiments.critical_period import CLEAR, CONTROL
from mas.experiments.errors import UserError
from mas.experiments.models import model_for, torchvision_models
from mas.experiments.options import Options
from mas.experiments.selection import Continual, Grid, at_start, candidates, continual_option, has_grid
from mas.experiments.source import Key, Source, nearest
from mas.experiments.summary import CEILINGS
from mas.experiments.training import epochs_of, make_strategy, rate_factor
from mas.strategies import PROBES, STRATEGIES
from mas.strategies.samples import by_task_labels


def load_config(
    path: Path, changes: Sequence[str] = (), data_root: Path | None = None, try_data: bool = True
) -> Experiment:
    """Read, change (``key.key=value``) and validate a config file.

    Args:
        path: of the YAML file.
        changes: values to change, in their order.
        data_root: where data sets are, for this process and its workers; before the config's own
            ``data_root``, and that before ``MAS_DATA``.
        try_data: whether to load the data too, and try the model on them; not needed to read results.

    Raises:
        UserError: with one line for each thing that is wrong: where, what was found, what is allowed.
    """
    source = Source(path, changes)
    kind = source.data.get("experiment")
    if not isinstance(kind, str) or kind not in EXPERIMENTS:
        found = "missing" if kind is None else f"found {kind!r}{nearest(str(kind), list(EXPERIMENTS))}"
        raise UserError(f"{source.where(('experiment',))}: {found}; allowed: {', '.join(EXPERIMENTS)}")
    try:
        config = EXPERIMENTS[kind].model_validate(source.data)
    except ValidationError as error:
        raise UserError(*_complaints(source, error)) from None
    _check_momentum(config, source)
    for check in _CHECKS[kind]:
        check(config, source)
    if root := data_root or config.data_root:
        _look_in(Path(root).expanduser())
    if try_data:
        _try(config, source)
    return config


def _look_in(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder for data sets; make it first, and they are downloaded into it")
    set_data_root(root)


def _check_titles(key: Key, titles: Sequence[str], source: Source) -> None:
    folded = [title.casefold() for title in titles]  # some file systems fold case
    for i, title in enumerate(titles):
        if folded.index(title.casefold()) < i:
            where = source.where((*key, i))
            raise UserError(f"{where}: found a second {title!r}; add a label of its own, such as {title}-2")


def _check_labels(config: Any, source: Source) -> None:
    _check_titles(("strategies",), [strategy.title() for strategy in config.strategies], source)


def _check_probes(config: Any, source: Source) -> None:
    """Probes have names of their own, and impaired data need a deficit."""
    key: Key = ("trace", "probes") if isinstance(config, CriticalPeriod) else ("probes",)
    probes = config.probes if key == ("probes",) else (config.trace.probes if config.trace else [])
    _check_titles(key, [probe.title() for probe in probes], source)
    for i, probe in enumerate(probes):
        if not probe.title().startswith(probe.name):  # by that the tables know what it measures
            where = source.where((*key, i, "label"))
            raise UserError(f"{where}: found {probe.label!r}; allowed: one that begins with {probe.name}")
        impaired = [view for view in probe.data if view.startswith("impaired")]
        if impaired and not isinstance(config, CriticalPeriod) and getattr(config, "deficit", None) is None:
            raise UserError(f"{source.where((*key, i, 'data'))}: found {impaired[0]}, and there is no deficit; add one")
        if isinstance(config, ConsolidatedDeficit) and set(probe.data) - {"train", "test"}:
            where = source.where((*key, i, "data"))
            raise UserError(
                f"{where}: found {probe.data}; allowed: train, test, which are impaired in the first experience"
            )


def _check_parts(config: Any, source: Source) -> None:
    if not (config.removal or config.window or config.trace):
        raise UserError(f"{source.where(())}: nothing to show; give removal, window or trace")
    if config.selectivity and not config.removal:
        raise UserError(f"{source.where(('selectivity',))}: deficits side by side need removal: [...]; add it")
    titles = [deficit.title() for deficit in config.selectivity]
    _check_titles(("selectivity",), titles, source)
    folded, own = [title.casefold() for title in titles], config.deficit.title()
    if own.casefold() in folded:
        where = source.where(("selectivity", folded.index(own.casefold())))
        raise UserError(f"{where}: found {own!r}, which is the deficit; add a label of its own")
    for key, title in ((("deficit",), own), *((("selectivity", i), title) for i, title in enumerate(titles))):
        if title.casefold().startswith((CLEAR, CONTROL)):
            where = source.where((*key, "label"))
            raise UserError(f"{where}: found {title!r}; allowed: one that does not begin with {CLEAR} or {CONTROL}")


def _check_variants(config: Any, source: Source) -> None:
    for i, strategy in enumerate(config.strategies):
        if strategy.name in CEILINGS:
            where = source.where(("strategies", i, "name"))
            raise UserError(f"{where}: found {strategy.name!r}, which sees all data at once; allowed: any other")
    labels = [label.casefold() for label in variant_labels(config)]
    if twice := next((label for i, label in enumerate(labels) if label in labels[:i]), None):
        raise UserError(f"{source.where(('strategies',))}: found {twice!r} twice; allowed: each strength once")


def _check_deficit(config: Any, source: Source) -> None:
    """Where experiences differ in their classes, or all are trained at once, some deficits make no sense."""
    if config.deficit is None:
        return
    where, name = source.where(("deficit",)), config.deficit.name
    apart = getattr(config.benchmark, "scenario", "domain") != "domain" or config.benchmark.stream == "sequence"
    labels = name == "label_permutation" or (name == "noise" and config.deficit.labels == "drawn")
    if apart and labels:
        raise UserError(f"{where}: {name} moves labels between experiences; allowed: where all share their classes")
    if any(strategy.name == "joint" for strategy in config.strategies):
        raise UserError(f"{where}: joint trains all experiences at once and has no epochs of the stream; leave it out")


def _check_one_length(config: Any, source: Source) -> None:
    if not isinstance(config.training.epochs, int):
        raise UserError(f"{source.where(('training', 'epochs'))}: found a list; allowed: a number, the clear epochs")


def _check_momentum(config: Experiment, source: Source) -> None:
    if config.training.momentum and config.training.optimizer != "sgd":
        where = source.where(("training", "momentum"))
        raise UserError(f"{where}: found momentum with {config.training.optimizer}; allowed: only with optimizer: sgd")


def _check_selection(config: Any, source: Source) -> None:
    for i, strategy in enumerate(config.strategies):
        options = strategy.model_dump()
        if not _selects(options):
            continue
        if has_grid(options) and continual_option(options):
            where = source.where(("strategies", i))
            raise UserError(f"{where}: found both a list and continual to select from; allowed: one way in a strategy")
        if config.benchmark.validation:
            where = source.where(("benchmark", "validation"))
            raise UserError(f"{where}: strategies[{i}] holds out data by selection.validation; leave this out")
        if has_grid(options) and (both := set(config.selection.seeds) & set(config.seed_list())):
            where = source.where(("selection", "seeds"))
            raise UserError(f"{where}: found {min(both)}, for which results are reported; allowed: other seeds")


def _selects(options: dict[str, Any]) -> bool:
    return has_grid(options) or continual_option(options) is not None


_CHECKS: dict[str, list[Callable[[Any, Source], None]]] = {
    "forgetting": [_check_labels, _check_selection, _check_probes, _check_deficit],
    "critical_period": [_check_parts, _check_one_length, _check_probes],
    "consolidated_deficit": [_check_labels, _check_variants, _check_one_length, _check_probes],
}


def _try(config: Experiment, source: Source) -> None:
    """Build benchmark, model and strategies once: only they can tell what the data hold, and whether all fit."""
    options = config.benchmark.model_dump(exclude={"stream"})
    _check_datasets(options, source)
    with _said_at(source, ("benchmark",)):
        benchmark = STREAMS[config.benchmark.stream](**options)
    strategies = getattr(config, "strategies", [])
    if isinstance(config, Forgetting) and any(_selects(strategy.model_dump()) for strategy in strategies):
        with _said_at(source, ("selection", "validation")):
            STREAMS[config.benchmark.stream](**options | {"validation": config.selection.validation})
    with _said_at(source, ("model",)):
        model = model_for(benchmark, config.model.model_dump(), seed=0)
    _try_training(config, benchmark, source)
    _try_least_batch(config, benchmark, model, source)
    _try_strategies(strategies, model, config.training.model_dump() | {"device": "cpu"}, source)
    _try_deficits(config, benchmark, source)
    _try_probes(config, benchmark, model, source)


def _try_training(config: Experiment, benchmark: Any, source: Source) -> None:
    size, training = len(benchmark.train_stream), config.training.model_dump()
    if not isinstance(config.training.epochs, int) and len(config.training.epochs) != size:
        where = source.where(("training", "epochs"))
        raise UserError(f"{where}: found {len(config.training.epochs)} numbers; allowed: one for all, or {size}")
    with _said_at(source, ("training", "schedule")):
        for cell in every_cell(config):
            own = cell.settings["training"]
            epochs = [own["epochs"]] if isinstance(own["epochs"], int) else own["epochs"]
            rate_factor(own, max(epochs) - 1)
    deficit = getattr(config, "deficit", None)
    total = sum(epochs_of(training, t) for t in range(size))
    if isinstance(config, Forgetting) and deficit is not None:
        with _said_at(source, ("deficit",)):
            DeficitPlugin(lambda x, y, generator: (x, y), deficit.start, deficit.end, epochs=total)


def _try_least_batch(config: Experiment, benchmark: Any, model: Any, source: Source) -> None:
    """Where a last batch would be of a single image, see that the model can be trained on it: BatchNorm cannot."""
    size = config.training.batch_size
    alone = next((e for e in benchmark.train_stream if len(e.dataset) % size == 1), None)
    if alone is None:
        return
    one = deepcopy(model).train()
    avalanche_model_adaptation(one, alone)
    try:
        by_task_labels(one, alone.dataset.eval().batch([0]))
    except ValueError:
        where, number = source.where(("training", "batch_size")), len(alone.dataset)
        raise UserError(
            f"{where}: found {size}, which leaves a last batch of 1 of {number} images, too few for BatchNorm; "
            "choose another"
        ) from None


def _try_strategies(strategies: Sequence[Any], model: Any, training: dict[str, Any], source: Source) -> None:
    for i, strategy in enumerate(strategies):
        options = at_start(strategy.model_dump(exclude={"name", "label"}))
        lams = options["lam"] if isinstance(options.get("lam"), list) else [options.get("lam")]
        with _said_at(source, ("strategies", i)):
            for lam in lams:
                own = options if lam is None else options | {"lam": lam}
                for choice in candidates(own):
                    make_strategy(STRATEGIES[strategy.name], model, training, 0, **own | choice)


def _try_deficits(config: Experiment, benchmark: Any, source: Source) -> None:
    """Impair one small batch."""
    places: list[tuple[Key, Any]] = [(("deficit",), getattr(config, "deficit", None))]
    places += [(("selectivity", i), deficit) for i, deficit in enumerate(getattr(config, "selectivity", []))]
    x, y, *_ = _few(benchmark)
    for key, deficit in places:
        if deficit is not None:
            spec = deficit.model_dump(exclude={"label", "start", "end"})
            with _said_at(source, key):
                make_deficit(spec, int(y.max()) + 1)(x, y, torch.Generator())


def _try_probes(config: Experiment, benchmark: Any, model: Any, source: Source) -> None:
    """Take each measure once, of few samples."""
    trace = getattr(config, "trace", None)
    key: Key = ("trace", "probes") if trace else ("probes",)
    avalanche_model_adaptation(model.train(), benchmark.train_stream[0])  # a growing head has no classes before
    for i, probe in enumerate(trace.probes if trace else getattr(config, "probes", [])):
        options = probe.model_dump(exclude={*ProbeOptions.model_fields, "name"})
        with _said_at(source, (*key, i)):
            PROBES[probe.name](model, [_few(benchmark)], by_task_labels, **options)


def _few(benchmark: Any) -> list[Any]:
    data = benchmark.train_stream[0].dataset.eval()
    return data.batch(range(min(8, len(data))))


@contextmanager
def _said_at(source: Source, key: Key) -> Iterator[None]:
    """Say where in the config a mistake is that only building shows."""
    try:
        yield
    except (ValueError, FloatingPointError) as error:  # the second of a probe whose own steps or numbers overflow
        raise UserError(f"{source.where(key)}: {error}") from None


def _check_datasets(options: dict[str, Any], source: Source) -> None:
    for key, name in _named_datasets(options):
        if not isinstance(name, str) or name not in DATASETS:
            where = source.where(("benchmark", *key))
            raise UserError(
                f"{where}: found {name!r}{nearest(str(name), list(DATASETS))}; allowed: {', '.join(DATASETS)}"
            )


def _named_datasets(options: dict[str, Any]) -> list[tuple[Key, Any]]:
    """Give each data set's place in a stream's options, and its name."""
    specs: list[tuple[Key, Any]] = [(("dataset",), options["dataset"])] if "dataset" in options else []
    specs += [(("datasets", i), spec) for i, spec in enumerate(options.get("datasets", ()))]
    return [((*key, "name"), s.get("name")) if isinstance(s, dict) else (key, s) for key, s in specs]


# What pydantic found, in the words of this project.

# Where a map is told apart by a key: the models, and that key.
_REGISTRIES: dict[str, tuple[dict[str, type[Options]], str]] = {
    "benchmark": (STREAM_MODELS, "stream"),
    "model": (MODEL_MODELS, "name"),
    "schedule": (SCHEDULE_MODELS, "name"),
    "strategies": (STRATEGY_MODELS, "name"),
    "deficit": (DEFICIT_MODELS, "name"),
    "selectivity": (DEFICIT_MODELS, "name"),
    "probes": (PROBE_MODELS, "name"),
}


_SECTIONS: dict[str, type[Options]] = {
    "training": Training,
    "selection": Selection,
    "window": Window,
    "trace": Trace,
}


def _complaints(source: Source, error: ValidationError) -> list[str]:
    """Give one line for each value that is wrong, also where pydantic tried several types."""
    found: dict[Key, str] = {}
    allowed: dict[Key, list[str]] = {}
    for item in error.errors():
        key = _key(item, source.data)
        found[key], may_be = _complaint(key, item, source.data)
        allowed.setdefault(key, []).append(may_be)
    inner = {outer for key in found for outer in (key[:n] for n in range(len(key)))}
    return [
        f"{source.where(key)}: {found[key]}: {' or '.join(dict.fromkeys(allowed[key]))}"
        for key in found
        if key not in inner  # what is wrong inside a value says more than that the value is wrong
    ]


def _key(item: Any, data: Any) -> Key:
    """Drop from pydantic's location what names its own types; add what it leaves out."""
    key: list[str | int] = []
    *outer, last = item["loc"] or ("",)
    for part in [*outer, last]:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if inside:
            data = data[part]
        if inside or (part is last and item["type"] == "missing"):
            key.append(part)
    if item["type"].startswith("union_tag"):
        key.append(_registry(tuple(key))[1])
    return tuple(key)


def _complaint(key: Key, item: Any, data: Any) -> tuple[str, str]:
    """Say what was found and what to do about it, and give what is allowed there."""
    kind, value = item["type"], item["input"]
    known = _known(key, item, data)
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(key[-1]), known)}; allowed", ", ".join(known)
    if kind in ("missing", "union_tag_not_found"):
        if known:
            return "missing; allowed", ", ".join(known)
        return "missing; add it", _WANTED.get(str(key[-1]), "it has no default")
    if kind == "invalid_key":
        return f"found the key {value!r}; allowed", "keys that are text"
    value = item.get("ctx", {}).get("tag", value)
    if known:
        return f"found {value!r}{_meant(str(value), key, known)}; allowed", ", ".join(known)
    return f"found {value!r}; allowed", _plainly(key[-1], item)


def _meant(name: str, key: Key, known: Sequence[str]) -> str:
    """Return ``, did you mean ...?``, also for names that are known elsewhere."""
    if key[-1] == "device" and name.casefold() == "gpu":
        return ", did you mean 'cuda'?"
    if key == ("model", "name") and name.casefold() in torchvision_models():
        return f", did you mean {{name: torchvision, model: {name.casefold()}}}?"
    return nearest(name, known)


def _plainly(name: str | int, item: Any) -> str:
    """Say what may stand under a name, in words that a user of YAML knows."""
    if name == "select" and item["type"] == "list_type":
        return _WANTED["select"]
    if name in _SECTIONS and item["type"] in _NOT_A_MAP:
        return f"a map with {', '.join(_SECTIONS[str(name)].model_fields)}"
    if name in _REGISTRIES and item["type"] in _NOT_A_MAP:
        return f"a map, such as {{{_REGISTRIES[str(name)][1]}: ...}}"
    return _SAID_PLAINLY.get(item["type"], item["msg"].removeprefix("Input should be ").removeprefix("Value error, "))


_NOT_A_MAP = ("model_type", "model_attributes_type", "dict_type")
_WANTED = {
    "benchmark": "a map such as {dataset: digits}",
    "deficit": "a map such as {name: blur}",
    "lengths": "a list of epochs such as [20, 40]",
    "select": "a list of values; for lam also continual",
    "strategies": "a list such as [{name: naive}, {name: mas, lam: 1}]",
}
_SAID_PLAINLY = {
    **dict.fromkeys(_NOT_A_MAP, "a map, such as {name: ...}"),
    "too_short": "a longer list",
    "string_pattern_mismatch": "letters, digits and _ . + - (it names files)",
}


def _known(key: Key, item: Any, data: Any) -> list[str]:
    """Give the names that may stand where this error is, if they can be listed."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return _known_keys(key[:-1], data)
    if kind.startswith("union_tag"):
        return list(_registry(key)[0])
    if kind == "literal_error":
        return [part.strip("' ") for part in item["ctx"]["expected"].replace(" or ", ",").split(",")]
    return []


def _known_keys(key: Key, data: Any) -> list[str]:
    """Give the keys that the config has at a place."""
    place = _innermost(key)
    if not place:
        return list(EXPERIMENTS[data["experiment"]].model_fields)
    if place[-1] in _SECTIONS:
        return list(_SECTIONS[str(place[-1])].model_fields)
    models, tag = _registry(key)
    if place == ("deficit",) and data["experiment"] == "forgetting":
        models = SCHEDULED_DEFICIT_MODELS
    if place == ("benchmark", "deficit"):
        models = STREAM_DEFICIT_MODELS
    document = data
    for part in key:
        data = data[part]
    if place[-1] == "strategies" and len(key) > 2:
        continually = key[-1] == "lam" and data.get("select") == "continual"
        return list((Continual if continually else Grid).model_fields)
    other = place == ("benchmark",) and document["experiment"] != "forgetting"
    return list(models[data.get(tag, "whole" if other else next(iter(models)))].model_fields)


def _registry(key: Key) -> tuple[dict[str, type[Options]], str]:
    return _REGISTRIES[str(_innermost(key)[-1])]


def _innermost(key: Key) -> Key:
    """Give the path to the innermost part of a config that a key lies in."""
    for end in range(len(key), 0, -1):
        if key[end - 1] in _REGISTRIES or key[end - 1] in _SECTIONS:
            return key[:end]
    return ()
