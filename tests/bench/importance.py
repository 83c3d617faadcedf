"""Importance ÷ one plain forward and backward pass over the same data, here and elsewhere."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from mas import fisher_importance, mas_importance
from tests.bench.passes import Data, Importance, nll, plain, single_loop, squared, vmap_grad
from tests.bench.peers import avalanche_ewc, avalanche_mas, by_backpack
from tests.bench.timing import ratios
from tests.bench.workloads import Workload

Way = Callable[[], Importance]


def measure(workloads: dict[str, Workload], repeats: int, device: str) -> Iterator[dict[str, Any]]:
    """Give a row for each workload and each way to importance.

    "error" is the greatest deviation from the single-sample loop, in parts of the greatest
    importance (of Fisher from the loop's Fisher, of MAS from the loop's MAS), "share" the sum of
    all importances in parts of the loop's.
    """
    for case, workload in workloads.items():
        model, data = workload.model(device), workload.data(device)
        ways, found, refused = _usable(model, data)
        right = {"MAS": found["single-sample loop, MAS"], "Fisher": single_loop(model, data, nll, torch.square)}
        plain(model, data)
        times = ratios({"plain pass": partial(plain, model, data), **ways}, repeats, device)
        for name, figures in times.items():
            kind, _ = WAYS.get(name, (None, None))
            held = _against(found[name], right[kind]) if kind else {}
            yield {"case": case, "way": name, **figures, **held, "target": workload.target, "note": ""}
        for name, reason in refused.items():
            yield {"case": case, "way": name, "note": reason}


def _usable(model: nn.Module, data: Data) -> tuple[dict[str, Way], dict[str, Importance], dict[str, str]]:
    """Make the ways that work for this model, with what they find; give the reasons of the others."""
    works, found, refused = {}, {}, {}
    for name, (_, make) in WAYS.items():
        try:
            way = make(model, data)
            found[name], works[name] = way(), way
        except Exception as error:  # noqa: BLE001 - another library's reason, whatever it is
            refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    return works, found, refused


def _against(found: Importance, right: Importance) -> dict[str, float]:
    greatest, total = max(t.max() for t in right.values()), sum(t.sum() for t in right.values())
    error = max((found[n] - right[n]).abs().max() for n in right)
    return {"error": float(error / greatest), "share": float(sum(t.sum() for t in found.values()) / total)}


def _ready(importance: Callable[..., Importance], **options: Any) -> Callable[..., Way]:
    return lambda model, data: partial(importance, model, data, **options)


# name -> (what it estimates, what makes it ready); "sampled" draws labels, so no answer is right to the last digit
WAYS: dict[str, tuple[str | None, Callable[[nn.Module, Data], Way]]] = {
    "here, MAS": ("MAS", _ready(mas_importance)),
    "here, Fisher empirical": ("Fisher", _ready(fisher_importance, labels="empirical")),
    "here, Fisher sampled": (None, _ready(fisher_importance, labels="sampled")),
    "single-sample loop, MAS": ("MAS", _ready(single_loop, objective=squared, power=torch.abs)),
    "vmap(grad), MAS": ("MAS", _ready(vmap_grad)),
    "BackPACK, MAS": ("MAS", by_backpack),
    "Avalanche's MASPlugin": ("MAS", avalanche_mas),
    "Avalanche's EWCPlugin": ("Fisher", avalanche_ewc),
}
