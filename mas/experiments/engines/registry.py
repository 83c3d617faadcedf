"""The engines by name: the only place that lists them."""

from importlib import import_module
from typing import TYPE_CHECKING

from mas.experiments.errors import UserError

if TYPE_CHECKING:
    from mas.experiments.engines.engine import Engine

ENGINES = {
    "local": "mas.experiments.engines.local:LOCAL",
    "ray": "mas.experiments.engines.ray:RAY",
}
"""Name -> where the `Engine` is, imported only when it is used."""


def check_engine_name(name: str) -> None:
    """Raise UserError if there is no engine of this name."""
    if name not in ENGINES:
        raise UserError(f"engine: found {name!r}; allowed: {', '.join(ENGINES)}")


def engine_named(name: str) -> "Engine":
    """Return an engine.

    Raises:
        UserError: there is none of this name.
    """
    check_engine_name(name)
    module, _, variable = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), variable)
    return engine
