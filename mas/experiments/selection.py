"""Choosing settings without a look at the test data, or at seeds that results are reported for.

``lam: {select: [0.1, 1, 10]}`` is a grid: every value is tried with the selection seeds on training
data that are held out, and the one with the best final ACC is taken. ``lam: {select: continual}``
chooses anew for each experience and sees that experience alone (`Continual`).
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

import numpy as np
import pandas as pd
from pydantic import Discriminator, Field, Tag, create_model, field_validator

from mas.experiments.options import Options
from mas.forgetting import forgetting_scores
from mas.penalty import QuadraticPenalty
from mas.strategies import ImportancePlugin

T = TypeVar("T")
Positive = Annotated[float, Field(gt=0)]
Choice = dict[str, Any]  # option -> value
Record = dict[str, Any]
Tries = list[tuple[Choice, list[Record]]]

SELECTION_COLUMNS = ["strategy", "value", "seed", "experience", "status", "ACC", "seconds", "chosen"]


class Grid(Options, Generic[T]):
    """``{select: [...]}``: the value with the best mean final ACC on held-out training data."""

    select: Annotated[list[T], Field(min_length=2)]

    @field_validator("select")
    @classmethod
    def _each_once(cls, values: list[T]) -> list[T]:
        if any(values[i] in values[:i] for i in range(len(values))):
            raise ValueError("values to choose from, each once")
        return values


class Continual(Options):
    """``{select: continual}``: the framework of De Lange et al. 2021 (algorithm 1), one experience at a time.

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
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.5
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.2


def selectable(name: str, annotation: Any, default: Any) -> Any:
    """Give the type of an option that may also say how its value is to be chosen; λ also continually."""
    kinds = [Annotated[annotation, Tag("value")], Annotated[Grid[annotation], Tag("grid")]]
    if name == "lam":
        continual = create_model("continual_lam", __base__=Continual, start=(Positive, 1000.0 * default))
        kinds.append(Annotated[continual, Tag("continually")])
    return Annotated[Union[tuple(kinds)], Discriminator(_kind if name == "lam" else _value_or_grid)]  # noqa: UP007


def candidates(strategy: dict[str, Any]) -> list[Choice]:
    """Give every combination of the values to choose from; one empty choice where there is none.

    What is chosen continually has no values.

    >>> candidates({"name": "mas", "lam": {"select": [1, 10]}, "norm": "l2"})
    [{'lam': 1}, {'lam': 10}]
    """
    grids = {key: value["select"] for key, value in strategy.items() if is_grid(value)}
    return [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]


def is_grid(value: Any) -> bool:
    """Say whether an option's value is to be chosen from a list."""
    return isinstance(value, dict) and isinstance(value.get("select"), list)


def has_grid(strategy: dict[str, Any]) -> bool:
    """Say whether an option of a strategy is chosen from a list."""
    return any(is_grid(value) for value in strategy.values())


def best(tries: Tries) -> Choice | None:
    """Give the choice with the best mean final ACC over its records; None if each one diverged.

    A choice that diverged with any seed is not taken; of equals the first is.
    """
    score = [_mean_acc(records) for _, records in tries]
    return tries[int(np.nanargmax(score))][0] if not np.isnan(score).all() else None


def selection_table(tries: dict[str, Tries], chosen: dict[str, Choice], records: Sequence[Record]) -> pd.DataFrame:
    """Give every try and what it cost, columns `SELECTION_COLUMNS`.

    Of a grid there is a row per (strategy, value, seed), ``ACC`` the final one; of what is chosen
    continually a row per (strategy, seed, experience, strength), ``ACC`` that on the experience's
    held-out data.
    """
    grids = [
        (label, as_text(choice), r["seed"], None, r["status"], _acc(r), r["seconds"], choice == chosen.get(label))
        for label, own in tries.items()
        for choice, its in own
        for r in its
    ]
    continual = [
        (
            *(r["label"], as_text({"lam": t["strength"]}), r["seed"], experience),
            "diverged" if math.isnan(t["accuracy"]) else "finished",
            *(t["accuracy"], t["seconds"], t is own[-1]),
        )
        for r in records
        for experience, own in enumerate(r["tries"])
        for t in own
    ]
    table = pd.DataFrame([*grids, *continual], columns=SELECTION_COLUMNS)
    return table.astype({"experience": "Int64", "chosen": bool})


def as_text(choice: Choice) -> str:
    """Give a choice as it stands in labels and tables.

    >>> as_text({"lam": 0.1, "norm": "l2"})
    'lam=0.1,norm=l2'
    """
    return ",".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in choice.items())


def continual_option(strategy: dict[str, Any]) -> Record | None:
    """Give the settings of ``select: continual`` in a strategy's options, if any are there."""
    return next((v for v in strategy.values() if isinstance(v, dict) and v.get("select") == "continual"), None)


def at_start(strategy: dict[str, Any]) -> dict[str, Any]:
    """Give a strategy's options with a strength that is chosen continually at its start."""
    settings = continual_option(strategy)
    return strategy | {"lam": settings["start"]} if settings else strategy


def penalty_of(strategy: Any) -> QuadraticPenalty:
    """Give the penalty of a strategy that has one."""
    (plugin,) = (p for p in strategy.plugins if isinstance(p, ImportancePlugin))
    return plugin.penalty


def tune(strategy: Any, settings: Record, unit: float, accuracy_of: Callable[[Any], float]) -> list[Record]:
    """Set the strength for the experience to come, as `Continual` says.

    Args:
        strategy: with an `ImportancePlugin`; only its penalty's strength changes.
        settings: of `Continual`.
        unit: the penalty's strength for λ = 1 (EWC's is ½).
        accuracy_of: trains a strategy (a copy) on the experience to come, but for what is held
            out, and gives the accuracy on that; NaN if it diverged.

    Returns:
        Every try: ``strength`` (λ), ``accuracy`` and ``seconds``; the last was taken.
    """
    penalty = penalty_of(strategy)
    if not penalty.importance:  # nothing to protect yet
        return []
    tries: list[Record] = []
    for lam in _falling(settings):
        penalty.strength = unit * lam
        begun = time.perf_counter()
        accuracy = accuracy_of(deepcopy(strategy))
        tries.append({"strength": lam, "accuracy": accuracy, "seconds": round(time.perf_counter() - begun, 3)})
        if len(tries) > 1 and accuracy >= (1 - settings["drop"]) * tries[0]["accuracy"]:
            break
    return tries


def _falling(settings: Record) -> Iterator[float]:
    """Give 0, for the greatest plasticity, then ever less strength, and 0 again when it is a trillionth."""
    yield 0.0
    lam = settings["start"]
    while lam > 1e-12 * settings["start"]:
        yield lam
        lam *= settings["decay"]
    yield 0.0


def _kind(value: Any) -> str:
    how = value.get("select") if isinstance(value, dict) else getattr(value, "select", None)
    return "continually" if how == "continual" else _value_or_grid(value)


def _value_or_grid(value: Any) -> str:
    return "grid" if isinstance(value, dict | Grid) else "value"


def _acc(record: Record) -> float:
    return forgetting_scores(record["accuracy"])["ACC"] if record["status"] == "finished" else np.nan


def _mean_acc(records: Sequence[Record]) -> float:
    return float(np.mean([_acc(r) for r in records])) if records else np.nan
