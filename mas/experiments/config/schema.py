"""What any config may say: typed models, with their defaults, that the kinds of experiment share."""

import inspect
import itertools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypeVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    create_model,
    model_validator,
)

from mas.annotations import Count, NonNegative, NonNegativeInt, OpenFraction, Positive, Seed
from mas.benchmarks import DEFICITS, STREAMS
from mas.benchmarks.deficits import FILLED_IN
from mas.experiments.config.search import MAX_VALUES, Choice, Search, candidates, children, put, value_at, with_values
from mas.experiments.config.yaml_source import Key
from mas.experiments.loggers import LOGGERS
from mas.experiments.losses import LOSSES
from mas.experiments.networks import MODELS
from mas.experiments.optimizers import GIVEN, OPTIMIZERS
from mas.experiments.options import EntryOptions, ImportedOptions, Options, models_of
from mas.experiments.schedules import SCHEDULES, TORCH_SCHEDULES, torch_factor, torch_schedule
from mas.imports import IMPORT, check_options
from mas.strategies import PROBES, STRATEGIES, DataName

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]  # part of file names
MAX_SEEDS = 10_000
View = Literal["train", "test", "impaired_train", "impaired_test", "current"]
H = TypeVar("H", bound=Hashable)


def each_once(values: list[H]) -> list[H]:
    """Return the values; raise ValueError if one stands twice."""
    if len(set(values)) < len(values):
        raise ValueError("each once")
    return values


Epochs = Annotated[list[NonNegativeInt], AfterValidator(each_once)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS), AfterValidator(each_once)]


class NamedOptions(EntryOptions):
    """An entry of a registry with a label, so that the same entry can stand there with other options."""

    name: str
    label: Label | None = None

    def title(self) -> str:
        """Return the label, or else the name."""
        return self.label or self.name


class ContinualChoice(Options):
    """``lam: {select: continual}``: the framework of De Lange et al. 2021 (algorithm 1), one experience at a time.

    Before each experience but the first a copy of the network learns it unprotected: the accuracy
    A* on its held-out data is the most that plasticity can reach. Then copies learn it with the
    strength ``start``, ``start · decay``, ... until the accuracy is at least (1 − ``drop``) A*. With
    that strength the network itself then learns the whole experience; the next begins at ``start`` again.
    The learning rate, which the paper chooses in the first step, is the config's. Streams that show
    the same images in each experience (permuted, rotated) hold out the same ones each time: the
    network has seen them before, in another form.
    """

    select: Literal["continual"]
    start: Positive = 1000.0  # a thousand times the method's own default
    decay: OpenFraction = 0.5
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.2


class StrategyOptions(NamedOptions):
    """A strategy. The label of one whose numbers depend on the batch size says so."""

    def title(self) -> str:
        """Return the label, or else the name; with ``-batch`` where moments are of batch means."""
        title = super().title()
        per_batch = self.arguments().get("reduction") == "batch"
        return f"{title}-batch" if per_batch and "batch" not in title else title

    def each_strength(self) -> list[Self]:
        """Return the strategy once for each of its strengths: a protection may list several."""
        strengths = self.arguments().get("lam")
        return [self.with_strength(lam) for lam in strengths] if isinstance(strengths, list) else [self]

    @property
    def continual_choice(self) -> ContinualChoice | None:
        """How λ is chosen before each experience, if it is."""
        lam = dict(self).get("lam")  # the field as it is typed, not as plain data
        return lam if isinstance(lam, ContinualChoice) else None

    def with_strength(self, lam: float) -> Self:
        """Return the same strategy with another λ."""
        return self.model_copy(update={"lam": lam})


class ModelOptions(EntryOptions):
    """A network body, and the head that it gets."""

    name: str
    head: Literal["shared", "growing"] = (
        "shared"  # growing: only the classes seen so far; one per task in task scenarios
    )


class DeficitOptions(NamedOptions):
    """A deficit."""

    def spec(self) -> dict[str, Any]:
        """Return the deficit as `mas.benchmarks.make_deficit` takes it."""
        function = {"function": self.function} if isinstance(self, ImportedOptions) else {}
        return {"name": self.name, **function, **self.arguments()}


class ScheduledDeficit(DeficitOptions):
    """A deficit and the epochs it lasts, counted over the whole stream."""

    start: NonNegativeInt = 0  # the first impaired epoch
    end: Count  # the first epoch that is clear again


class ProbeOptions(NamedOptions):
    """A probe: on which data it looks, and when."""

    data: Annotated[list[View], Field(min_length=1), AfterValidator(each_once)] = Field(
        default=["train"]
    )  # current: as it is trained on
    every: Count | Literal["end"] = 1
    unit: Literal["epochs", "iterations"] = "epochs"
    spacing: Literal["even", "log"] = "even"  # log: `every` looks for each factor of ten
    max_samples: Count | None = None


class StreamOptions(EntryOptions):
    """A stream of experiences."""

    stream: str

    @property
    def held_out(self) -> float:
        """The share of the training data that is held out, and tested on in place of the test data."""
        share: float = self.arguments().get("validation", 0.0)
        return share

    def holding_out(self, share: float) -> Self:
        """Return the same stream with another share of the training data held out."""
        return self.model_copy(update={"validation": share})

    def datasets_used(self) -> dict[Key, str | dict[str, Any]]:
        """Return the name, or the map with name and options, of each data set, by its place in the stream."""
        arguments = self.arguments()
        found: dict[Key, Any] = {("datasets", i): spec for i, spec in enumerate(arguments.get("datasets", ()))}
        if "dataset" in arguments:
            found[("dataset",)] = arguments["dataset"]
        return found


class Selection(Options):
    """On what values are chosen that say ``{select: ...}``."""

    seeds: Seeds = Field(default_factory=lambda: [1000, 1001])  # none of those that results are reported for
    validation: OpenFraction = 0.1  # share of the training data held out
    trials: Annotated[int, Field(gt=0, le=MAX_VALUES)] = 30  # of the search of ranges; lists are tried in full
    batch: Annotated[int, Field(gt=0, le=MAX_VALUES)] = 4  # trials that are suggested at once, and can run side by side
    sampler: Literal["tpe", "random"] = "tpe"  # of Optuna


def one_of(models: Mapping[str, type[EntryOptions]], key: str, default: str | None = None) -> Any:
    """Return the type of a map that ``key`` tells apart; where it is missing, ``default`` is meant."""

    def with_default(value: Any) -> Any:
        return {key: default, **value} if default and isinstance(value, dict) and key not in value else value

    if len(models) == 1:
        return Annotated[next(iter(models.values())), BeforeValidator(with_default)]
    union: Any = Union[tuple(models.values())]  # noqa: UP007 - built from a list
    return Annotated[union, Field(discriminator=key), BeforeValidator(with_default)]


# What every Avalanche strategy takes is set by the experiment; the rest is the strategy's own.
_NOT_OPTIONS = frozenset({*inspect.signature(STRATEGIES["naive"]).parameters, "plugins"})


def _data_by_name(name: str, annotation: Any) -> Any:
    """Return the type of a strategy's option: in YAML, ``data`` is a word."""
    return DataName if name == "data" else annotation


def _strategy_option(name: str, annotation: Any, default: Any) -> Any:
    """Return the type of a strategy's option: λ may also be chosen continually."""
    if name != "lam":
        return _data_by_name(name, annotation)
    continual: Any = create_model("continual_lam", __base__=ContinualChoice, start=(Positive, 1000.0 * default))
    kinds = Annotated[annotation, Tag("value")] | Annotated[continual, Tag("continual")]
    return Annotated[kinds, Discriminator(_lam_kind)]


def _lam_kind(value: Any) -> str:
    return "continual" if isinstance(value, dict | ContinualChoice) else "value"


def _strength_list(name: str, annotation: Any, default: Any) -> Any:
    """Return the type of a strategy's option where several strengths may stand side by side."""
    if name == "lam":
        return annotation | Annotated[list[annotation], Field(min_length=1)]
    return _data_by_name(name, annotation)


def stream_option(name: str, annotation: Any, default: Any) -> Any:
    """Return the type of a stream's option: in YAML, a deficit is a map."""
    return one_of(STREAM_DEFICIT_MODELS, "name") if name == "deficit" else annotation


class ScheduleOptions(EntryOptions):
    """A schedule of the learning rate."""

    def factor(self, epoch: int, lr: float) -> float:
        """Return what the learning rate ``lr`` is multiplied by in an epoch."""
        return float(self.entry(epoch, **self.arguments()))


class TorchScheduleOptions(ScheduleOptions):
    """A scheduler of torch by its class's name; further keys are its arguments."""

    model_config = ConfigDict(extra="allow")
    name: str

    def factor(self, epoch: int, lr: float) -> float:
        """Return what the learning rate ``lr`` is multiplied by in an epoch."""
        return torch_factor(epoch, self.name, lr, **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """Return the scheduler's arguments."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _takes_options(self) -> Self:
        check_options(torch_schedule(self.name), self.arguments(), ("optimizer", "last_epoch"), self.name)
        return self


class LoggerOptions(EntryOptions):
    """A logger: it is told of what happens, and changes no result."""

    name: str


def _torch_schedule_model(name: str) -> type[EntryOptions]:
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    return create_model(name, __base__=TorchScheduleOptions, **fields)


SCHEDULE_MODELS = {
    **models_of(SCHEDULES, "name", leave_out={"epoch"}, base=ScheduleOptions),
    **{name: _torch_schedule_model(name) for name in TORCH_SCHEDULES},
}
STREAM_DEFICIT_MODELS = models_of(DEFICITS, "name", leave_out=FILLED_IN)
DEFICIT_MODELS = models_of(DEFICITS, "name", leave_out=FILLED_IN, base=DeficitOptions)
SCHEDULED_DEFICIT_MODELS = models_of(DEFICITS, "name", leave_out=FILLED_IN, base=ScheduledDeficit)
PROBE_MODELS = models_of(PROBES, "name", leave_out={"model", "batches", "forward"}, base=ProbeOptions)
STREAM_MODELS = models_of(STREAMS, "stream", leave_out={"seed"}, base=StreamOptions, typed=stream_option)
MODEL_MODELS = models_of(MODELS, "name", leave_out={"shape"}, base=ModelOptions)
STRATEGY_MODELS = models_of(STRATEGIES, "name", leave_out=_NOT_OPTIONS, base=StrategyOptions, typed=_strategy_option)
PROTECTION_MODELS = models_of(STRATEGIES, "name", leave_out=_NOT_OPTIONS, base=StrategyOptions, typed=_strength_list)

RENAMED_STREAMS = {"recovery": "deficit_then_clear"}
"""Streams that have an older name: old -> new."""

LOSS_MODELS = models_of(LOSSES, "name", leave_out={"output", "y"})
LOGGER_MODELS = models_of(LOGGERS, "name", leave_out={"folder"}, base=LoggerOptions)

AnyStream: Any = one_of(STREAM_MODELS, "stream", "split")
WholeStream: Any = one_of({name: STREAM_MODELS[name] for name in ("whole", IMPORT)}, "stream", "whole")
AnyModel: Any = one_of(MODEL_MODELS, "name", "mlp")
AnyStrategy: Any = one_of(STRATEGY_MODELS, "name")
AnyProtection: Any = one_of(PROTECTION_MODELS, "name")
AnyDeficit: Any = one_of(DEFICIT_MODELS, "name")
AnyScheduledDeficit: Any = one_of(SCHEDULED_DEFICIT_MODELS, "name")
AnyProbe: Any = one_of(PROBE_MODELS, "name")
AnySchedule: Any = one_of(SCHEDULE_MODELS, "name")


def probe_options(name: str, **options: Any) -> ProbeOptions:
    """Return the options of a probe, checked."""
    return PROBE_MODELS[name].model_validate({"name": name, **options})  # type: ignore[return-value]


OptimizerName: Any = Literal[tuple(OPTIMIZERS)]


class OptimizerOptions(Options):
    """An optimizer of torch by name; further keys are its arguments."""

    model_config = ConfigDict(extra="allow")
    name: OptimizerName = "adam"

    @model_validator(mode="after")
    def _takes_options(self) -> Self:
        check_options(OPTIMIZERS[self.name], self.options(), GIVEN, self.name)
        return self

    def options(self) -> dict[str, Any]:
        """Return the arguments that ``training`` has no key for."""
        return dict(self.model_extra or {})


def _by_name(value: Any) -> Any:
    """Read a name as a map with this name."""
    return {"name": value} if isinstance(value, str) else value


AnyOptimizer: Any = Annotated[OptimizerOptions, BeforeValidator(_by_name)]
AnyLoss: Any = Annotated[one_of(LOSS_MODELS, "name"), BeforeValidator(_by_name)]
AnyLogger: Any = Annotated[one_of(LOGGER_MODELS, "name"), BeforeValidator(_by_name)]


def _known_device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|auto|cuda(:\d+)?", name):
        raise ValueError("cpu, cuda, cuda:1, mps, auto")
    return name


Device = Annotated[str, AfterValidator(_known_device)]


class Training(Options):
    """How each experience is trained."""

    epochs: Count | Annotated[list[Count], Field(min_length=1)] = 10  # of each experience, or one for all
    batch_size: Count = 32
    optimizer: AnyOptimizer = OptimizerOptions()
    lr: Positive = 0.001
    schedule: AnySchedule | None = None  # of lr; None is constant
    loss: AnyLoss = LOSS_MODELS["cross_entropy"]()
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sgd and rmsprop
    weight_decay: NonNegative = 0.0
    reset_optimizer: bool = True  # forget the optimizer's state when an experience begins
    device: Device = "cpu"  # or cuda, cuda:1, mps; auto is the first GPU, or else the CPU

    def epochs_of(self, experience: int) -> int:
        """Return the epochs of an experience."""
        return self.epochs if isinstance(self.epochs, int) else self.epochs[experience]

    def longest_epochs(self) -> int:
        """Return the epochs of the experience that has the most."""
        return self.epochs if isinstance(self.epochs, int) else max(self.epochs)

    @property
    def is_annealed(self) -> bool:
        """Whether the learning rate changes over the epochs."""
        return self.schedule is not None


def _each_logger_once(loggers: list[LoggerOptions]) -> list[LoggerOptions]:
    each_once([logger.name for logger in loggers])
    return loggers


def _whole_above_one(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("a share of one, or a whole number")
    return value


Share = Annotated[NonNegative, AfterValidator(_whole_above_one)]


class Resources(Options):
    """What each cell takes of a machine where an engine deals it out, as Ray does. No result depends on it."""

    cpus: Annotated[Share, Field(gt=0)] = 1.0
    gpus: Share = 0.0  # 0.2: five cells share one GPU


class Experiment(Options):
    """The keys of all experiments. A value to be chosen by ``select`` stands as the first of its list."""

    experiment: str
    seeds: Annotated[int, Field(gt=0, le=MAX_SEEDS)] | Seeds = 5
    data_root: str | None = None  # where data sets are, or are downloaded to
    logging: Annotated[list[AnyLogger], AfterValidator(_each_logger_once)] = Field(default=[])  # no part of any cell
    sweep: dict[str, list[Any]] = Field(default={})  # by the path of each option, its values
    resources: Resources = Resources()
    _searches: tuple[Search, ...] = PrivateAttr(default=())
    _combinations: tuple[Any, ...] = PrivateAttr(default=())  # configs, in the order of the product

    @property
    def searches(self) -> tuple[Search, ...]:
        """The places whose value is to be chosen, in the order of the config's fields."""
        return self._searches

    def with_searches(self, searches: Sequence[Search]) -> Self:
        """Return the config with places whose value is to be chosen; values become those of the typed config."""
        plain = self.model_dump(mode="json")
        places = [place for place, _ in walk_plain(plain)]
        typed = [replace(s, values=tuple(self._typed(s.place, value) for value in s.values)) for s in searches]
        config = self.model_copy()
        config._searches = tuple(sorted(typed, key=lambda search: places.index(search.place)))
        return config

    def with_choice(self, choice: Choice) -> Self:
        """Return the config with a choice made."""
        values = {search.place: value for search, value in zip(choice.searches, choice.values, strict=True)}
        chosen = type(self).model_validate(with_values(self.model_dump(mode="json"), values))
        return chosen._with_combinations([own.with_choice(choice) for own in self._combinations])

    @property
    def combinations(self) -> list[tuple[dict[str, Any], Self]]:
        """The combinations of swept values, each with the config that has them; empty without a sweep."""
        values = itertools.product(*self.sweep.values())
        named = [dict(zip(self.sweep, own, strict=True)) for own in values]
        return list(zip(named, self._combinations, strict=True)) if self.sweep else []

    @property
    def each(self) -> tuple[Self, ...]:
        """The config of each combination of a sweep; the config itself without one."""
        return self._combinations or (self,)

    def with_sweep(self, sweep: dict[str, list[Any]], configs: Sequence[Self]) -> Self:
        """Return the config with a sweep.

        Args:
            sweep: by the path of each option, its values.
            configs: of the combinations, the last option fastest.
        """
        return self.model_copy(update={"sweep": sweep})._with_combinations(configs)

    def _with_combinations(self, configs: Sequence[Self]) -> Self:
        self._combinations = tuple(configs)
        return self

    def variants(self) -> Iterator[Self]:
        """Yield the config, then the config with each further value of each search, one search at a time."""
        yield self
        for search in self.searches:
            for choice in candidates([search])[1:]:
                yield self.with_choice(choice)

    def plain(self) -> dict[str, Any]:
        """Return the config as plain data, with every default; what is to be chosen stands as ``{select: [...]}``."""
        data = self.model_dump(mode="json")
        if not self.sweep:
            del data["sweep"]
        for search in self.searches:
            put(data, search.place, {"select": search.plain()})
        return data

    @property
    def keeps_weights(self) -> bool:
        """Whether the trained weights of each cell are kept."""
        return False

    def seed_list(self) -> list[int]:
        """Return the seeds: ``5`` means 0 to 4."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def _typed(self, place: Key, value: Any) -> Any:
        """Return a value as the typed config has it: 1 becomes 1.0 where a float is expected."""
        changed = with_values(self.model_dump(mode="json"), {place: value})
        return value_at(type(self).model_validate(changed).model_dump(mode="json"), place)


class TrainingExperiment(Experiment):
    """The keys of experiments that train networks along a stream."""

    benchmark: AnyStream
    model: AnyModel = MODEL_MODELS["mlp"]()
    training: Training = Training()
    save_model: bool = False  # keep each cell's trained weights

    @property
    def keeps_weights(self) -> bool:
        """Whether the trained weights of each cell are kept."""
        return self.save_model


P = TypeVar("P", bound=BaseModel)


def parts_of(config: BaseModel, kind: type[P], place: Key = ()) -> Iterator[tuple[Key, P]]:
    """Yield every part of a config that is of a type, with its place, in the order of the fields."""
    for name, value in config:
        for key, item in _items(name, value):
            here = (*place, *key)
            if isinstance(item, kind):
                yield here, item
            if isinstance(item, BaseModel):
                yield from parts_of(item, kind, here)


def devices_of(data: Any) -> list[str]:
    """Return the devices that plain data of a config name."""
    return [value for place, value in walk_plain(data) if place[-1] == "device" and isinstance(value, str)]


def walk_plain(data: Any, place: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield every value in plain data with its place, outer ones first."""
    for part, value in children(data):
        yield (*place, part), value
        yield from walk_plain(value, (*place, part))


def _items(name: str, value: Any) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, list):
        yield from (((name, i), item) for i, item in enumerate(value))
    else:
        yield (name,), value
