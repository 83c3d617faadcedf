"""A config expands to cells: one strategy, one seed, and all there is to know to train it."""

import hashlib
from dataclasses import dataclass
from typing import Any

from mas.experiments.config import Forgetting, resolved


@dataclass(frozen=True)
class Cell:
    """One independent run. It knows nothing of other cells, so any process may train it."""

    label: str
    seed: int
    settings: dict[str, Any]  # plain data: benchmark, model, training, strategy (without its label)

    @property
    def id(self) -> str:
        """A name for files."""
        return f"{self.label}-seed{self.seed}"


def expand(config: Forgetting) -> list[Cell]:
    """Give all cells of a config, seed by seed, so that early results compare all strategies."""
    data = resolved(config)
    shared = {key: data[key] for key in ("experiment", "benchmark", "model", "training")}
    return [
        Cell(label, seed, shared | {"strategy": {k: v for k, v in strategy.items() if k != "label"}})
        for seed in config.seed_list()
        for label, strategy in zip(config.labels(), data["strategies"], strict=True)
    ]


def stream_seed(seed: int, *name: str | int) -> int:
    """Derive the seed of a named random stream from a cell's seed.

    Streams with different names are independent, so that one more draw in one of them (a strategy
    that samples, say) shifts no other.

    >>> stream_seed(0, "initialisation") == stream_seed(0, "initialisation")
    True
    >>> stream_seed(0, "initialisation") == stream_seed(0, "shuffling")
    False
    """
    text = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # fits an int64
