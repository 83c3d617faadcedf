"""The engines by name: the only place that lists them."""

from importlib import import_module
from typing import TYPE_CHECKING

from mas.experiments.engines.ray_address import check_ray
from mas.experiments.errors import UserError

if TYPE_CHECKING:
    from mas.experiments.engines.engine import Engine

ENGINES = {
    "local": "mas.experiments.engines.local:LOCAL",
    "ray": "mas.experiments.engines.ray:RAY",
}
"""Name -> where the `Engine` is, imported only when it is used."""


def check_engine(name: str, address: str | None = None) -> None:
    """Raise UserError if there is no engine of this name, or its cluster does not answer. Nothing slow is imported."""
    if name not in ENGINES:
        raise UserError(f"engine: found {name!r}; allowed: {', '.join(ENGINES)}")
    if name == "ray":
        check_ray(address)
    elif address is not None:
        raise UserError(f"address: found {address!r} with engine {name}; give it with --engine ray, or leave it out")


def engine_named(name: str, address: str | None = None) -> "Engine":
    """Return an engine.

    Raises:
        UserError: there is none of this name, or its cluster does not answer.
    """
    check_engine(name, address)
    module, _, variable = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), variable)
    return engine
