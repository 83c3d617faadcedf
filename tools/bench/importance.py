"""Importance ÷ one plain forward and backward pass over the same data, here and elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from mas import fisher_importance, mas_importance
from tools.bench.passes import Data, Importance, nll, plain, single_loop, squared, vmap_grad
from tools.bench.peers import avalanche_ewc, avalanche_mas, by_backpack
from tools.bench.timing import ratios
from tools.bench.workloads import Workload

Way = Callable[[], Importance]


def measure(workloads: dict[str, Workload], repeats: int, device: str) -> Iterator[dict[str, Any]]:
    """Return a row for each workload and each way to importance.

    "error" is the greatest deviation from the single-sample loop, in parts of the greatest
    importance (of Fisher from the loop's Fisher, of MAS from the loop's MAS), "share" the sum of
    all importances in parts of the loop's: both on one batch. The ways that keep every sample's
    gradient are timed on that batch too, apart from the others, whose memory they would stir up.
    """
    for case, workload in workloads.items():
        model, data = workload.model(device), workload.data(device)
        times: dict[str, dict[str, float]] = {}
        refused: dict[str, str] = {}
        for names, batches in ((HEAVY, data[:1]), (LIGHT, data)):
            ways, others = _usable(model, batches, names)
            plain(model, batches)
            times |= ratios({"plain pass": partial(plain, model, batches), **ways}, repeats, device)
            refused |= others
        right = {
            "MAS": single_loop(model, data[:1], squared, torch.abs),
            "Fisher": single_loop(model, data[:1], nll, torch.square),
        }
        for name in ("plain pass", *WAYS):
            if name in refused:
                yield {"case": case, "way": name, "note": refused[name]}
                continue
            kind, make = WAYS.get(name, (None, None))
            held = _against(make(model, data[:1])(), right[kind]) if kind and make else {}
            yield {"case": case, "way": name, **times[name], **held, "target": workload.target, "note": ""}


def _usable(model: nn.Module, data: Data, names: Sequence[str]) -> tuple[dict[str, Way], dict[str, str]]:
    """Make the ways that work for this model, and call each once; give the reasons of the others."""
    works, refused = {}, {}
    for name in names:
        try:
            way = WAYS[name][1](model, data)
            way()
            works[name] = way
        except Exception as error:  # noqa: BLE001 - another library's reason, whatever it is
            refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    return works, refused


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
HEAVY = ["single-sample loop, MAS", "vmap(grad), MAS", "BackPACK, MAS"]
LIGHT = [name for name in WAYS if name not in HEAVY]
