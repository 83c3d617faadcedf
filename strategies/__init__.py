"""The strategy layer: importance and penalty as Avalanche plugins, and ready strategies.

>>> from mas.strategies import MAS, MASPlugin  # doctest: +SKIP
"""

if __name__ != "mas.strategies":
    raise ImportError(
        f"import mas.strategies, not {__name__}: under two names there would be two copies of every class"
    )

from mas.strategies.plugins import EWCPlugin, ImportancePlugin, MASPlugin
from mas.strategies.supervised import EWC, MAS, Joint, Naive

STRATEGIES = {
    "naive": Naive,
    "joint": Joint,
    "mas": MAS,
    "ewc": EWC,
}
"""Name in YAML -> strategy class. The first line of its docstring is what ``mas list`` says."""

__all__ = ["EWC", "MAS", "STRATEGIES", "EWCPlugin", "ImportancePlugin", "Joint", "MASPlugin", "Naive"]
