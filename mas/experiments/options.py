"""Typed options from signatures: what a function or class can be told is what a config may say.

A new strategy, stream or model needs no second list of its options: the pydantic model that checks
its part of the YAML is made from its signature.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Options(BaseModel):
    """Base of all parts of a config: unknown keys are errors, values do not change."""

    model_config = STRICT


Typed = Callable[[str, Any, Any], Any]  # (name, annotation, default) -> annotation


def models_of(
    registry: Mapping[str, Any],
    key: str,
    leave_out: frozenset[str] = frozenset(),
    base: type[Options] = Options,
    typed: Typed = lambda name, annotation, default: annotation,
) -> dict[str, type[Options]]:
    """Make a pydantic model for each entry of a registry, told apart by ``key``.

    Args:
        registry: functions or classes by name.
        key: of the name.
        leave_out: arguments that are no options.
        base: of the models.
        typed: gives an option's type, where it is not what the signature says.

    >>> def ring(radius: float = 1.0): "A ring."
    >>> models = models_of({"ring": ring}, "name")
    >>> models["ring"](name="ring").model_dump()
    {'name': 'ring', 'radius': 1.0}
    """
    made: dict[str, type[Options]] = {}
    for name, entry in registry.items():
        fields: dict[str, Any] = {key: (Literal[name], name), **_fields(entry, leave_out, typed)}
        made[name] = create_model(f"{name}_options", __base__=base, **fields)
    return made


def describe(entry: Any) -> str:
    """Give the first line of a docstring."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _fields(entry: Any, leave_out: frozenset[str], typed: Typed) -> dict[str, Any]:
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        p.name: (typed(p.name, p.annotation, p.default), ... if p.default is p.empty else p.default)
        for p in inspect.signature(entry).parameters.values()
        if p.kind in named and p.name not in leave_out
    }
