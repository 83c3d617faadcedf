"""Small experiments of every kind and with every strategy, for tests that kill them."""

from typing import Any

from mas.strategies import STRATEGIES

Config = dict[str, Any]

_DIGITS = {"name": "digits", "train": 240, "test": 40}
_SPLIT = {"stream": "split", "dataset": _DIGITS, "experiences": 3, "scenario": "domain"}
_WHOLE = {"stream": "whole", "dataset": {"name": "digits", "train": 120, "test": 60}}
_MLP = {"name": "mlp", "hidden": [16]}
_TRAINING = {"epochs": 2, "batch_size": 16, "optimizer": "adam", "lr": 0.005}
_PROBE = {"name": "fisher_trace", "every": 1, "labels": "sampled"}
_PROBE_NETWORK = {
    "benchmark": {"stream": "whole", "dataset": {"name": "digits", "train": 200, "test": 60}},
    "model": {"name": "small_cnn", "width": 4, "hidden": 16},
    "training": {"epochs": 3, "batch_size": 32, "optimizer": "adam", "lr": 0.001},
}
_CONTINUAL = {"select": "continual", "start": 100.0, "decay": 0.1}


def small_experiments() -> dict[str, Config]:
    """Return configs by name. Each run of one takes seconds, and needs no download."""
    strategies = {f"strategy {name}": _forgetting({"name": name}) for name in STRATEGIES}
    return strategies | _SPECIAL


def _forgetting(*strategies: Config, **changes: Any) -> Config:
    return {
        "experiment": "forgetting",
        "benchmark": _SPLIT,
        "model": _MLP,
        "training": _TRAINING,
        "strategies": list(strategies),
        "probes": [_PROBE],
        "save_model": True,
        "seeds": 2,
        **changes,
    }


_SPECIAL: dict[str, Config] = {
    "continual strengths": _forgetting(
        {"name": "mas", "lam": _CONTINUAL}, {"name": "ewc", "lam": _CONTINUAL}, seeds=1, probes=[]
    ),
    "selection": _forgetting(
        {"name": "mas", "lam": {"select": [0.1, 1.0]}}, seeds=1, selection={"seeds": [7], "validation": 0.2}
    ),
    "batch norm, augmented, growing": _forgetting(
        {"name": "si"},
        benchmark={**_SPLIT, "scenario": "class", "augment": "crop", "class_order": "fixed"},  # no batch of one image
        model={"name": "mlp", "hidden": [16], "norm": "batch", "head": "growing"},
        training={**_TRAINING, "batch_size": 15, "schedule": {"name": "cosine", "epochs": 2}},
    ),
    "kind critical_period": {
        "experiment": "critical_period",
        "benchmark": _WHOLE,
        "model": {"name": "mlp", "hidden": [16], "norm": "batch"},
        "training": {"epochs": 3, "batch_size": 20, "optimizer": "sgd", "lr": 0.1},
        "deficit": {"name": "blur", "factor": 4},
        "removal": [0, 2],
        "window": {"length": 1, "onsets": [0, 2]},
        "trace": {"end": 2},
        "save_model": True,
    },
    "kind consolidated_deficit": {
        "experiment": "consolidated_deficit",
        "benchmark": _WHOLE,
        "model": _MLP,
        "training": {"epochs": 3, "batch_size": 20, "optimizer": "sgd", "lr": 0.1},
        "deficit": {"name": "blur", "factor": 4},
        "lengths": [2],
        "strategies": [{"name": "naive"}, {"name": "mas", "lam": [0.1, 1]}],
        "save_model": True,
    },
    "kind distance_vs_forgetting": {
        "experiment": "distance_vs_forgetting",
        "benchmark": {"stream": "mixture", "datasets": ["digits"], "experiences": 3, "classes": 2, "scenario": "task"},
        "model": _MLP,
        "training": {**_TRAINING, "epochs": 1},
        "strategies": [{"name": "naive"}, {"name": "mas"}],
        "probe_network": _PROBE_NETWORK,
        "embedding": {"labels": "exact", "per_class": 10},
        "seeds": 3,
    },
    "kind task_map": {
        "experiment": "task_map",
        "streams": [{"stream": "one_vs_rest", "dataset": "digits", "label": "one"}],
        "probe_network": _PROBE_NETWORK,
        "embedding": {"labels": "exact", "per_class": 20},
    },
    "kind expert_selection": {
        "experiment": "expert_selection",
        "benchmark": {"stream": "one_vs_rest", "dataset": {"name": "digits", "train": 300, "test": 60}},
        "experts": 2,
        "probe_network": _PROBE_NETWORK,
        "training": {"epochs": 3, "batch_size": 32, "optimizer": "adam", "lr": 0.001},
        "transfer": {"per_class": 5, "fine_tune": {"steps": 5}},
        "embedding": {"labels": "exact"},
        "seeds": 1,
    },
}
