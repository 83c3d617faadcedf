"""The strategy layer: importance, penalty and probes as Avalanche plugins, and ready strategies.

>>> from mas.strategies import MAS, MASPlugin  # doctest: +SKIP
"""

if __name__ != "mas.strategies":
    raise ImportError(
        f"import mas.strategies, not {__name__}: under two names there would be two copies of every class"
    )

from mas.strategies.baselines import (
    AGEM,
    GEM,
    Cumulative,
    DERpp,
    FromScratch,
    FromScratchPlugin,
    GEMPlugin,
    LwF,
    LwFPlugin,
    Replay,
)
from mas.strategies.measured_data import DataName
from mas.strategies.plugins import (
    EWCPlugin,
    ImportancePlugin,
    L2Plugin,
    LocalMASPlugin,
    MASPlugin,
    OnlineEWCPlugin,
    RandomPlugin,
    RWalkPlugin,
    SIPlugin,
)
from mas.strategies.probes import PROBES, ProbePlugin, Schedule
from mas.strategies.supervised import EWC, L2, MAS, SI, Joint, LocalMAS, Naive, OnlineEWC, Random, RWalk

STRATEGIES = {
    "naive": Naive,
    "joint": Joint,
    "mas": MAS,
    "local_mas": LocalMAS,
    "ewc": EWC,
    "online_ewc": OnlineEWC,
    "si": SI,
    "rwalk": RWalk,
    "l2": L2,
    "random": Random,
    "from_scratch": FromScratch,
    "cumulative": Cumulative,
    "lwf": LwF,
    "replay": Replay,
    "gem": GEM,
    "agem": AGEM,
    "der++": DERpp,
}
"""Name in YAML -> strategy class. The first line of its docstring is what ``mas list`` says."""

__all__ = [
    "AGEM",
    "EWC",
    "GEM",
    "L2",
    "MAS",
    "PROBES",
    "SI",
    "STRATEGIES",
    "Cumulative",
    "DERpp",
    "DataName",
    "EWCPlugin",
    "FromScratch",
    "FromScratchPlugin",
    "GEMPlugin",
    "ImportancePlugin",
    "Joint",
    "L2Plugin",
    "LocalMAS",
    "LocalMASPlugin",
    "LwF",
    "LwFPlugin",
    "MASPlugin",
    "Naive",
    "OnlineEWC",
    "OnlineEWCPlugin",
    "ProbePlugin",
    "RWalk",
    "RWalkPlugin",
    "Random",
    "RandomPlugin",
    "Replay",
    "SIPlugin",
    "Schedule",
]
