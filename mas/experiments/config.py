"""What a config may say: a typed model for each kind of experiment, with its defaults."""

import inspect
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, Field

from mas.benchmarks import DEFICITS, STREAMS
from mas.benchmarks.deficits import FILLED_IN
from mas.experiments.models import MODELS
from mas.experiments.options import Options, models_of
from mas.experiments.selection import selectable
from mas.experiments.training import SCHEDULES
from mas.strategies import PROBES, STRATEGIES, DataName

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")]  # it becomes part of file names
Count = Annotated[int, Field(gt=0)]
Epoch = Annotated[int, Field(ge=0)]
View = Literal["train", "test", "impaired_train", "impaired_test", "current"]


def _each_once(seeds: list[int]) -> list[int]:
    if min(seeds, default=0) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError("whole numbers of at least 0, each once")
    return seeds


def _each_view_once(views: list[str]) -> list[str]:
    if len(set(views)) < len(views):
        raise ValueError("each once")
    return views


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


class DeficitOptions(Options):
    """What every deficit may be told: a label, for the same deficit with other settings."""

    label: Label | None = None

    def title(self) -> str:
        """Give the label, or else the name."""
        return self.label or self.name  # type: ignore[attr-defined]


class ScheduledDeficit(DeficitOptions):
    """A deficit and the epochs it lasts, counted over the whole stream."""

    start: Epoch = 0  # the first impaired epoch
    end: Count  # the first epoch that is clear again


class ProbeOptions(Options):
    """What every probe may be told: on which data it looks, and when."""

    label: Label | None = None
    data: Annotated[list[View], Field(min_length=1), AfterValidator(_each_view_once)] = Field(
        default=["train"]
    )  # current: as it is trained on
    every: Count | Literal["end"] = 1
    unit: Literal["epochs", "iterations"] = "epochs"
    spacing: Literal["even", "log"] = "even"  # log: `every` looks for each factor of ten
    max_samples: Count | None = None

    def title(self) -> str:
        """Give the label, or else the name."""
        return self.label or self.name  # type: ignore[attr-defined]


Seeds = Annotated[list[int], Field(min_length=1), AfterValidator(_each_once)]


class Selection(Options):
    """On what the values of options are chosen that say ``{select: ...}``."""

    seeds: Seeds = Field(default_factory=lambda: [1000, 1001])  # none of those that results are reported for
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the training data held out


def _one_of(models: dict[str, type[Options]], key: str, default: str | None = None) -> Any:
    """Make the type of a map that ``key`` tells apart; where it is missing, ``default`` is meant."""

    def with_default(value: Any) -> Any:
        return {key: default, **value} if default and isinstance(value, dict) and key not in value else value

    if len(models) == 1:
        return Annotated[next(iter(models.values())), BeforeValidator(with_default)]
    union: Any = Union[tuple(models.values())]  # noqa: UP007 - built from a list
    return Annotated[union, Field(discriminator=key), BeforeValidator(with_default)]


# What every Avalanche strategy takes is set by the experiment; the rest is the strategy's own.
_NOT_OPTIONS = frozenset({*inspect.signature(STRATEGIES["naive"]).parameters, "plugins"})


def _strategy_option(name: str, annotation: Any, default: Any) -> Any:
    """Give the type of a strategy's option: in YAML, ``data`` is a word, and all may be selected."""
    return selectable(name, _option(name, annotation), default)


def _stream_option(name: str, annotation: Any, default: Any) -> Any:
    """Give the type of a stream's option: in YAML, a deficit is a map."""
    return _one_of(STREAM_DEFICIT_MODELS, "name") if name == "deficit" else annotation


def _strength_list(name: str, annotation: Any, default: Any) -> Any:
    """Give the type of an option where several strengths may stand side by side."""
    return annotation | Annotated[list[annotation], Field(min_length=1)] if name == "lam" else _option(name, annotation)


def _option(name: str, annotation: Any) -> Any:
    return DataName if name == "data" else annotation


SCHEDULE_MODELS = models_of(SCHEDULES, "name", frozenset({"epoch"}))
STREAM_DEFICIT_MODELS = models_of(DEFICITS, "name", FILLED_IN)
DEFICIT_MODELS = models_of(DEFICITS, "name", FILLED_IN, DeficitOptions)
SCHEDULED_DEFICIT_MODELS = models_of(DEFICITS, "name", FILLED_IN, ScheduledDeficit)
PROBE_MODELS = models_of(PROBES, "name", frozenset({"model", "batches", "forward"}), ProbeOptions)
STREAM_MODELS = models_of(STREAMS, "stream", frozenset({"seed"}), typed=_stream_option)
MODEL_MODELS = models_of(MODELS, "name", frozenset({"shape"}), ModelOptions)
STRATEGY_MODELS = models_of(STRATEGIES, "name", _NOT_OPTIONS, StrategyOptions, _strategy_option)
PROTECTION_MODELS = models_of(STRATEGIES, "name", _NOT_OPTIONS, StrategyOptions, _strength_list)


def _probe(name: str, **options: Any) -> Options:
    return PROBE_MODELS[name].model_validate({"name": name, **options})


class Training(Options):
    """How each experience is trained."""

    epochs: Count | Annotated[list[Count], Field(min_length=1)] = 10  # of each experience, or one for all
    batch_size: Count = 32
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 0.001
    schedule: _one_of(SCHEDULE_MODELS, "name") | None = None  # type: ignore[valid-type]  # of lr; None is constant
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sgd
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    reset_optimizer: bool = True  # forget the optimizer's state when an experience begins
    device: Literal["cpu", "cuda"] = "cpu"


class Experiment(Options):
    """What all experiments are told."""

    experiment: str
    benchmark: _one_of(STREAM_MODELS, "stream", "split")  # type: ignore[valid-type]
    model: _one_of(MODEL_MODELS, "name", "mlp") = MODEL_MODELS["mlp"]()  # type: ignore[valid-type]
    training: Training = Training()
    seeds: Annotated[int, Field(gt=0, le=10_000)] | Seeds = 5
    data_root: str | None = None  # where data sets are, or are downloaded to

    def seed_list(self) -> list[int]:
        """Give the seeds: ``5`` means 0 to 4."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


class Forgetting(Experiment):
    """``experiment: forgetting``: train strategies along a stream and see who forgets what."""

    experiment: Literal["forgetting"]
    strategies: Annotated[list[_one_of(STRATEGY_MODELS, "name")], Field(min_length=1)]  # type: ignore[valid-type]
    selection: Selection = Selection()
    deficit: _one_of(SCHEDULED_DEFICIT_MODELS, "name") | None = None  # type: ignore[valid-type]
    probes: list[_one_of(PROBE_MODELS, "name")] = Field(default=[])  # type: ignore[valid-type]

    def labels(self) -> list[str]:
        """Give the title of each strategy, by which results are told apart."""
        return [strategy.title() for strategy in self.strategies]


class Window(Options):
    """A deficit of fixed length, at several times."""

    length: Count  # epochs
    onsets: Annotated[list[Epoch], Field(min_length=2), AfterValidator(_each_once)]  # the epochs at which it begins


class Trace(Options):
    """A look at the network over the epochs, with the deficit and without."""

    end: Count  # the epoch at which the deficit ends
    probes: Annotated[list[_one_of(PROBE_MODELS, "name")], Field(min_length=1)] = Field(  # type: ignore[valid-type]
        default_factory=lambda: [
            _probe("fisher_trace", data=["train", "current"]),
            _probe("accuracy", data=["train", "test", "current"]),
        ]
    )


class CriticalPeriod(Experiment):
    """``experiment: critical_period``: impair a while of training, and see what stays impaired."""

    experiment: Literal["critical_period"]
    benchmark: _one_of({"whole": STREAM_MODELS["whole"]}, "stream", "whole")  # type: ignore[valid-type]
    deficit: _one_of(DEFICIT_MODELS, "name")  # type: ignore[valid-type]
    removal: Annotated[list[Epoch], AfterValidator(_each_once)] = Field(
        default=[]
    )  # epochs at which the deficit ends; training.epochs clear ones follow
    window: Window | None = None
    trace: Trace | None = None
    selectivity: list[_one_of(DEFICIT_MODELS, "name")] = Field(default=[])  # type: ignore[valid-type]  # beside it
    control: Literal["lr_matched"] = "lr_matched"  # for each removal, unless the learning rate is constant


class ConsolidatedDeficit(Experiment):
    """``experiment: consolidated_deficit``: the impaired epochs are a task that is protected in the clear ones."""

    experiment: Literal["consolidated_deficit"]
    benchmark: _one_of({"whole": STREAM_MODELS["whole"]}, "stream", "whole")  # type: ignore[valid-type]
    deficit: _one_of(DEFICIT_MODELS, "name")  # type: ignore[valid-type]
    lengths: Annotated[
        list[Count], Field(min_length=1), AfterValidator(_each_once)
    ]  # impaired epochs; training.epochs clear ones follow
    strategies: Annotated[list[_one_of(PROTECTION_MODELS, "name")], Field(min_length=1)]  # type: ignore[valid-type]
    probes: list[_one_of(PROBE_MODELS, "name")] = Field(  # type: ignore[valid-type]
        default_factory=lambda: [_probe("fisher_trace")]
    )


EXPERIMENTS: dict[str, type[Experiment]] = {
    "forgetting": Forgetting,
    "critical_period": CriticalPeriod,
    "consolidated_deficit": ConsolidatedDeficit,
}
"""Name in YAML -> what such a config may say."""


def resolved(config: Experiment) -> dict[str, Any]:
    """Give the config as plain data, every default written out."""
    return config.model_dump(mode="json")
