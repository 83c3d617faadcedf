"""Streams: how a data set becomes a sequence of experiences."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from avalanche.benchmarks import nc_benchmark

from mas.benchmarks.datasets import DATASETS, hold_out

Scenario = Literal["task", "domain", "class"]


def split(
    dataset: str = "digits",
    experiences: Annotated[int, Gt(0)] = 5,
    scenario: Scenario = "domain",
    class_order: Literal["fixed", "random"] | list[Annotated[int, Ge(0)]] = "random",
    validation: Annotated[float, Ge(0), Lt(1)] = 0.0,
    seed: int = 0,
) -> Any:
    """Divide the classes of a data set over the experiences, each class in exactly one.

    Where classes do not divide evenly, the first experiences get one more each.

    Args:
        dataset: a name in `DATASETS`.
        experiences: their number, at most the number of classes.
        scenario: "task": task identity known at test, labels from 0 in each experience;
            "domain": the same labels, no identity; "class": all classes told apart (van de Ven
            and Tolias 2019).
        class_order: "random" draws the order from ``seed``, so that results do not hang on which
            classes happen to meet; "fixed" takes them in numerical order; a list gives it.
        validation: hold out this share of the training data, class by class, and test on it
            *instead of* the test data: for choosing settings without a look at the test data.
        seed: of the random order alone; no global random state is touched.

    Returns:
        An Avalanche benchmark with ``train_stream`` and ``test_stream``.

    Raises:
        ValueError: an unknown name, more experiences than classes, or an order that is not one
            of all classes.
    """
    _check_name("dataset", dataset, DATASETS)
    _check_name("scenario", scenario, ("task", "domain", "class"))
    train, test = DATASETS[dataset]()
    if validation:
        train, test = hold_out(train, validation)
    classes = len(train.tensors[1].unique())
    if not 1 <= experiences <= classes:
        raise ValueError(f"experiences is {experiences}; {dataset} has {classes} classes, so give 1 to {classes}")
    order = _order(class_order, classes, seed)
    return nc_benchmark(
        train,
        test,
        n_experiences=experiences,
        task_labels=scenario == "task",
        shuffle=False,
        fixed_class_order=order,
        per_exp_classes={e: len(part) for e, part in enumerate(np.array_split(order, experiences))},
        class_ids_from_zero_in_each_exp=scenario != "class",
    )


STREAMS = {
    "split": split,
}
"""Name in YAML -> function that gives an Avalanche benchmark; its arguments are the keys beside it."""


def _order(class_order: str | Sequence[int], classes: int, seed: int) -> list[int]:
    if class_order == "fixed":
        return list(range(classes))
    if class_order == "random":
        return torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    if isinstance(class_order, str) or sorted(class_order) != list(range(classes)):
        raise ValueError(
            f"class_order is {class_order}; "
            f"give 'fixed', 'random' or a list of the classes 0 to {classes - 1}, each once"
        )
    return list(class_order)


def _check_name(key: str, name: str, known: Any) -> None:
    if name not in known:
        raise ValueError(f"{key} is {name!r}; known are {', '.join(known)}")
