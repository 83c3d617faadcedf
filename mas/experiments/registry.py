"""The kinds of experiment by name: the only place that lists them."""

from typing import Any

from mas.experiments.config.schema import Experiment
from mas.experiments.kind import Kind
from mas.experiments.kinds.consolidated_deficit import CONSOLIDATED_DEFICIT
from mas.experiments.kinds.critical_period import CRITICAL_PERIOD
from mas.experiments.kinds.distance_vs_forgetting import DISTANCE_VS_FORGETTING
from mas.experiments.kinds.expert_selection import EXPERT_SELECTION
from mas.experiments.kinds.forgetting import FORGETTING
from mas.experiments.kinds.task_map import TASK_MAP
from mas.experiments.sweep import swept

_EVERY: tuple[Kind[Any], ...] = (
    FORGETTING,
    CRITICAL_PERIOD,
    CONSOLIDATED_DEFICIT,
    TASK_MAP,
    DISTANCE_VS_FORGETTING,
    EXPERT_SELECTION,
)

KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in _EVERY}
"""Name in YAML -> kind of experiment."""


def kind_of(config: Experiment) -> Kind[Any]:
    """Return the kind of a config; that of a sweep does everything for each combination."""
    kind = KINDS[config.experiment]
    return swept(kind) if config.sweep else kind
