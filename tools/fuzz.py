"""Mutate valid configs, and count how many are read, refused in plain lines, or end in an error of another kind.

Run ``python -m tools.fuzz --configs 10000``. Tests run a sample of it.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mas.experiments.config.schema import walk_plain
from mas.experiments.config.search import children, put, value_at
from mas.experiments.errors import UserError
from mas.experiments.plan import Plan
from mas.experiments.provenance import forget_peak_memory, peak_memory
from mas.experiments.read_config import load_config
from tools.fuzz_values import EXTREMES, check_lines

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SLOW = 10.0  # seconds
LARGE = 2 * 10**9  # bytes

_PROBES = [
    {"name": "information", "beta": 0.1, "prior_std": 1.0},
    {"name": "noise_curve", "betas": [0.1, 1.0], "prior_std": 1.0, "draws": 2},
    {"name": "trainability", "steps": 2, "every": "end", "data": ["train", "test"]},
]
_DIGITS: list[dict[str, Any]] = [
    {
        "experiment": "forgetting",
        "benchmark": {"stream": "split", "dataset": "digits", "experiences": 2, "class_order": "fixed"},
        "model": {"name": "mlp", "hidden": [4], "norm": "batch"},
        "training": {"epochs": 2, "schedule": {"name": "StepLR", "step_size": 3}, "optimizer": {"name": "adamw"}},
        "seeds": [0, 1],
        "strategies": [
            {"name": "naive"},
            {"name": "mas", "lam": {"select": [0.1, 1.0]}, "label": "a"},
            {"name": "ewc", "lam": {"select": "continual", "decay": 0.5}},
            {"name": "der++", "mem_size": 20},
        ],
        "selection": {"seeds": [7], "validation": 0.2},
        "deficit": {"name": "blur", "start": 0, "end": 1},
        "probes": _PROBES,
    },
    {
        "experiment": "forgetting",
        "benchmark": {"stream": "rotated", "dataset": "digits", "experiences": 2, "angles": [0.0, 45.0]},
        "model": {"name": "vit_tiny", "patch": 4, "depth": 1, "heads": 1, "width": 8},
        "training": {"loss": {"name": "multi_margin", "margin": 1.0}, "schedule": {"name": "cosine", "epochs": 20}},
        "strategies": [{"name": "lwf", "alpha": 1.0, "temperature": 2.0}, {"name": "gem"}],
        "seeds": 1,
    },
    {
        "experiment": "task_map",
        "streams": [{"stream": "pairs", "dataset": "digits", "experiences": 2, "label": "p"}],
        "probe_network": {
            "model": {"name": "small_cnn", "width": 2, "hidden": 4},
            "benchmark": {"dataset": "digits", "train": 100},
            "training": {"epochs": 1},
        },
        "embedding": {"labels": "exact", "per_class": 3},
    },
]

_ODD: list[Any] = [*EXTREMES, [[]], [None], {"name": 3}, {"select": [1, 2]}, {"select": "continual"}, {1: 2}, 3 + 4j]


def base_configs() -> list[dict[str, Any]]:
    """Return the valid configs that are mutated: those of ``configs/``, and small ones of the digits."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.glob("*.yaml"))]
    return [*files, *digits_configs()]


def digits_configs() -> list[dict[str, Any]]:
    """Return small configs whose data need no download."""
    return deepcopy(_DIGITS)


@st.composite
def mutated(draw: st.DrawFn, bases: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw a config with one to three mutations."""
    data = deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place, _ in walk_plain(data)]
        if places:
            place = draw(st.sampled_from(places))
            draw(st.sampled_from(_MUTATIONS))(draw, data, place)
    data.pop("data_root", None)  # a folder that is there would be used from then on
    return data


def _drop(draw: st.DrawFn, data: Any, place: Any) -> None:
    del value_at(data, place[:-1])[place[-1]]


def _duplicate(draw: st.DrawFn, data: Any, place: Any) -> None:
    outer, value = value_at(data, place[:-1]), deepcopy(value_at(data, place))
    if isinstance(outer, list):
        outer.extend([value] * draw(st.sampled_from([1, 3, 40])))
    else:
        outer[f"{place[-1]}2"] = value


def _retype(draw: st.DrawFn, data: Any, place: Any) -> None:
    put(data, place, deepcopy(draw(st.sampled_from(_ODD))))


def _random(draw: st.DrawFn, data: Any, place: Any) -> None:
    put(data, place, draw(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.booleans())))


def _rename(draw: st.DrawFn, data: Any, place: Any) -> None:
    outer = value_at(data, place[:-1])
    if isinstance(outer, dict):
        names = [str(p[-1]) for p, _ in walk_plain(data)]
        new = draw(
            st.one_of(st.sampled_from(names), st.text(max_size=5), st.sampled_from(["select", "name", "import"]))
        )
        outer[new] = outer.pop(place[-1])


def _nest(draw: st.DrawFn, data: Any, place: Any) -> None:
    value = value_at(data, place)
    key = draw(st.sampled_from([None, "name", "select", "x"]))
    put(data, place, [value] if key is None else {key: value})


def _unnest(draw: st.DrawFn, data: Any, place: Any) -> None:
    inner = children(value_at(data, place))
    if inner:
        put(data, place, deepcopy(draw(st.sampled_from([value for _, value in inner]))))


def _swap(draw: st.DrawFn, data: Any, place: Any) -> None:
    other = draw(st.sampled_from([found for found, _ in walk_plain(data)]))
    put(data, place, deepcopy(value_at(data, other)))


def _select(draw: st.DrawFn, data: Any, place: Any) -> None:
    value = value_at(data, place)
    put(data, place, {"select": [value, deepcopy(draw(st.sampled_from(_ODD)))]})


Mutation = Callable[[Any, Any, Any], None]
_MUTATIONS: list[Mutation] = [_drop, _duplicate, _retype, _random, _rename, _nest, _unnest, _swap, _select]


def outcome(data: dict[str, Any], try_data: bool = False) -> str:
    """Return "valid" or "refused".

    Raises:
        AssertionError: a line of a refusal is empty, very long or several lines.
        Exception: whatever a user should not see.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Plan(load_config(data, try_data=try_data)).every_cell()
        except UserError as error:
            check_lines(error.lines)
            return "refused"
    return "valid"


def fuzz(configs: int, *, first_seed: int = 0, try_data: bool = False) -> Counter[str]:
    """Read mutated configs; return how many were valid, were refused, were slow or large, or raised what where.

    The seconds of the slowest one and the most memory are printed.
    """
    counts: Counter[str] = Counter()
    most = {"seconds": 0.0, "bytes": 0}
    bases = digits_configs() if try_data else base_configs()

    @seed(first_seed)
    @settings(max_examples=configs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated(bases))
    def read(data: dict[str, Any]) -> None:
        began = time.perf_counter()
        forget_peak_memory()
        try:
            counts[outcome(data, try_data)] += 1
        except Exception as error:  # noqa: BLE001 - counted
            last = traceback.extract_tb(error.__traceback__)[-1]
            line = f"{type(error).__name__}: {str(error)[:200]} ({last.filename}:{last.lineno}) of {str(data)[:1500]}"
            counts[f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"] += 1
            print(line, file=sys.stderr)  # noqa: T201 - a script
        seconds, memory = time.perf_counter() - began, peak_memory() or 0
        if seconds > SLOW or memory > LARGE:
            counts["slow" if seconds > SLOW else "large"] += 1
            print(f"{seconds:.1f} s, {memory:,} bytes: {str(data)[:1500]}", file=sys.stderr)  # noqa: T201
        most["seconds"], most["bytes"] = max(most["seconds"], seconds), max(most["bytes"], memory)

    read()
    print(f"the slowest took {most['seconds']:.1f} s; the most memory was {most['bytes'] / 10**9:.2f} GB")  # noqa: T201
    return counts


def main() -> None:
    """Run the fuzz from the command line; the exit code is 1 if any config ended in an error of another kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", action="store_true", help="build networks and data too; about 20 times slower")
    given_options = parser.parse_args()
    counts = fuzz(given_options.configs, first_seed=given_options.seed, try_data=given_options.trial)
    for name, count in counts.most_common():
        print(f"{count:>7,}  {name}")  # noqa: T201
    sys.exit(int(bool(counts.keys() - {"valid", "refused"})))


if __name__ == "__main__":
    main()
