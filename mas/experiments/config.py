"""A YAML file becomes a typed config, or a list of one-line complaints."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from mas.benchmarks import DATASETS, STREAMS, set_data_root
from mas.experiments.errors import UserError
from mas.experiments.models import MODELS, model_for
from mas.experiments.options import Options, models_of
from mas.experiments.selection import Continual, Grid, at_start, candidates, continual_option, has_grid, selectable
from mas.experiments.source import Key, Source, nearest
from mas.experiments.training import make_strategy
from mas.strategies import STRATEGIES, DataName

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # it becomes part of file names
Count = Annotated[int, Field(gt=0)]


class StrategyOptions(Options):
    """What every strategy may be told: a label, for the same strategy with other settings."""

    label: Label | None = None

    def title(self) -> str:
        """Give the label, or else the name; one whose numbers depend on the batch size says so."""
        title: str = self.label or self.name  # type: ignore[attr-defined]
        per_batch = getattr(self, "reduction", None) == "batch"
        return f"{title}-batch" if per_batch and "batch" not in title else title


class ModelOptions(Options):
    """What every model may be told."""

    head: Literal["shared", "growing"] = (
        "shared"  # growing: only the classes seen so far; one per task in task scenarios
    )


class Training(Options):
    """How each experience is trained."""

    epochs: Count = 10
    batch_size: Count = 32
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sgd
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    reset_optimizer: bool = True  # forget the optimizer's state when an experience begins
    device: Literal["cpu", "cuda"] = "cpu"


def _each_once(seeds: list[int]) -> list[int]:
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError("whole numbers of at least 0, each once")
    return seeds


Seeds = Annotated[list[int], Field(min_length=1), AfterValidator(_each_once)]


class Selection(Options):
    """On what the values of options are chosen that say ``{select: ...}``."""

    seeds: Seeds = Field(default_factory=lambda: [1000, 1001])  # none of those that results are reported for
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the training data held out


# What every Avalanche strategy takes is set by the experiment; the rest is the strategy's own.
_NOT_OPTIONS = frozenset({*inspect.signature(STRATEGIES["naive"]).parameters, "plugins"})


def _strategy_option(name: str, annotation: Any, default: Any) -> Any:
    """Give the type of a strategy's option: in YAML, ``data`` is a word, and all may be selected."""
    return selectable(name, DataName if name == "data" else annotation, default)


STREAM_MODELS = models_of(STREAMS, "stream", frozenset({"seed"}))
MODEL_MODELS = models_of(MODELS, "name", frozenset({"shape"}), ModelOptions)
STRATEGY_MODELS = models_of(STRATEGIES, "name", _NOT_OPTIONS, StrategyOptions, _strategy_option)


def _one_of(models: dict[str, type[Options]], key: str, default: str | None = None) -> Any:
    """Make the type of a map that ``key`` tells apart; where it is missing, ``default`` is meant."""

    def with_default(value: Any) -> Any:
        return {key: default, **value} if default and isinstance(value, dict) and key not in value else value

    union: Any = Union[tuple(models.values())]  # noqa: UP007 - built from a list
    return Annotated[union, Field(discriminator=key), BeforeValidator(with_default)]


class Forgetting(Options):
    """``experiment: forgetting``: train strategies along a stream and see who forgets what."""

    experiment: Literal["forgetting"]
    benchmark: _one_of(STREAM_MODELS, "stream", "split")  # type: ignore[valid-type]
    model: _one_of(MODEL_MODELS, "name", "mlp") = MODEL_MODELS["mlp"]()  # type: ignore[valid-type]
    training: Training = Training()
    strategies: Annotated[list[_one_of(STRATEGY_MODELS, "name")], Field(min_length=1)]  # type: ignore[valid-type]
    seeds: Annotated[int, Field(gt=0, le=10_000)] | Seeds = 5
    selection: Selection = Selection()
    data_root: str | None = None  # where data sets are, or are downloaded to

    def seed_list(self) -> list[int]:
        """Give the seeds: ``5`` means 0 to 4."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def labels(self) -> list[str]:
        """Give the title of each strategy, by which results are told apart."""
        return [strategy.title() for strategy in self.strategies]


def load_config(
    path: Path, changes: Sequence[str] = (), data_root: Path | None = None, try_data: bool = True
) -> Forgetting:
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
    try:
        config = Forgetting.model_validate(source.data)
    except ValidationError as error:
        raise UserError(*_complaints(source, error)) from None
    _check_labels(config, source)
    _check_momentum(config, source)
    _check_selection(config, source)
    if root := data_root or config.data_root:
        _look_in(Path(root).expanduser())
    if try_data:
        _try(config, source)
    return config


def _look_in(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder for data sets; make it first, and they are downloaded into it")
    set_data_root(root)


def resolved(config: Forgetting) -> dict[str, Any]:
    """Give the config as plain data, every default written out."""
    return config.model_dump(mode="json")


def _check_labels(config: Forgetting, source: Source) -> None:
    labels = [label.casefold() for label in config.labels()]  # some file systems fold case
    for i, label in enumerate(labels):
        if labels.index(label) < i:
            name = config.labels()[i]
            key = ("strategies", i)
            raise UserError(f"{source.where(key)}: found a second {name!r}; add a label of its own, such as {name}-2")


def _check_momentum(config: Forgetting, source: Source) -> None:
    if config.training.momentum and config.training.optimizer != "sgd":
        where = source.where(("training", "momentum"))
        raise UserError(f"{where}: found momentum with {config.training.optimizer}; allowed: only with optimizer: sgd")


def _check_selection(config: Forgetting, source: Source) -> None:
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


def _try(config: Forgetting, source: Source) -> None:
    """Build benchmark, model and strategies once: only they can tell what the data hold, and whether all fit."""
    options = config.benchmark.model_dump(exclude={"stream"})
    _check_datasets(options, source)
    with _said_at(source, ("benchmark",)):
        benchmark = STREAMS[config.benchmark.stream](**options)
    if any(_selects(strategy.model_dump()) for strategy in config.strategies):
        with _said_at(source, ("selection", "validation")):
            STREAMS[config.benchmark.stream](**options | {"validation": config.selection.validation})
    with _said_at(source, ("model",)):
        model = model_for(benchmark, config.model.model_dump(), seed=0)
    training = config.training.model_dump() | {"device": "cpu"}
    for i, strategy in enumerate(config.strategies):
        options = at_start(strategy.model_dump(exclude={"name", "label"}))
        with _said_at(source, ("strategies", i)):
            for choice in candidates(options):
                make_strategy(STRATEGIES[strategy.name], model, training, 0, **options | choice)


@contextmanager
def _said_at(source: Source, key: Key) -> Iterator[None]:
    """Say where in the config a mistake is that only building shows."""
    try:
        yield
    except ValueError as error:
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

_REGISTRIES: dict[str, tuple[dict[str, Any], dict[str, type[Options]], str]] = {
    "benchmark": (STREAMS, STREAM_MODELS, "stream"),
    "model": (MODELS, MODEL_MODELS, "name"),
    "strategies": (STRATEGIES, STRATEGY_MODELS, "name"),
}


_SECTIONS: dict[str, type[Options]] = {"training": Training, "selection": Selection}


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
        f"{source.where(key)}: {found[key]}; allowed: {' or '.join(dict.fromkeys(allowed[key]))}"
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
        key.append(_REGISTRIES[str(key[0])][2])
    return tuple(key)


def _complaint(key: Key, item: Any, data: Any) -> tuple[str, str]:
    """Say what was found, and what is allowed there."""
    kind, value = item["type"], item["input"]
    known = _known(key, item, data)
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(key[-1]), known)}", ", ".join(known)
    if kind in ("missing", "union_tag_not_found"):
        return "missing", ", ".join(known) or _WANTED.get(str(key[-1]), "every config has it")
    if kind == "invalid_key":
        return f"found the key {value!r}", "keys that are text"
    value = item.get("ctx", {}).get("tag", value)
    if known:
        return f"found {value!r}{nearest(str(value), known)}", ", ".join(known)
    if key[-1] == "select" and kind == "list_type":
        return f"found {value!r}", _WANTED["select"]
    plain = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"found {value!r}", _SAID_PLAINLY.get(kind, plain)


_WANTED = {"select": "a list of values; for lam also continual"}
_SAID_PLAINLY = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a map, such as {name: ...}"),
    "too_short": "a longer list",
    "string_pattern_mismatch": "letters, digits and _ . + - (it names files)",
}


def _known(key: Key, item: Any, data: Any) -> list[str]:
    """Give the names that may stand where this error is, if they can be listed."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return _known_keys(key[:-1], data)
    if kind.startswith("union_tag"):
        return list(_REGISTRIES[str(key[0])][0])
    if kind == "literal_error":
        return [part.strip("' ") for part in item["ctx"]["expected"].replace(" or ", ",").split(",")]
    return []


def _known_keys(key: Key, data: Any) -> list[str]:
    """Give the keys that the config has at a place."""
    if not key:
        return list(Forgetting.model_fields)
    if key[0] in _SECTIONS:
        return list(_SECTIONS[str(key[0])].model_fields)
    _, models, tag = _REGISTRIES[str(key[0])]
    for part in key:
        data = data[part]
    if key[0] == "strategies" and len(key) > 2:
        continually = key[-1] == "lam" and data.get("select") == "continual"
        return list((Continual if continually else Grid).model_fields)
    return list(models[data.get(tag, next(iter(models)))].model_fields)
