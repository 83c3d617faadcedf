"""What a logger is, and what loggers share."""

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from mas.experiments.errors import UserError
from mas.experiments.events import Event


class Logger(Protocol):
    """Writes events somewhere. It is made before the folder is taken, and writes nothing before the first event."""

    def note(self, event: Event) -> None:
        """Write an event, or do nothing with it."""

    def close(self) -> None:
        """Write what is left."""


def import_package(name: str, package: str) -> Any:
    """Return a module that a logger needs.

    Args:
        name: of the module.
        package: that has it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"logging: found {package}, which cannot be imported ({error}); run: pip install {package}"
        ) from None


def finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the values that are numbers.

    >>> finite({"loss": 0.5, "accuracy": None, "other": float("nan")})
    {'loss': 0.5}
    """
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
