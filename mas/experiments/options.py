"""Typed options from signatures: what a function or class can be told is what a config may say.

A new strategy, stream or model needs no second list of its options: the pydantic model that checks
its part of the YAML is made from its signature.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Options(BaseModel):
    """Base of all parts of a config: unknown keys are errors, values do not change."""

    model_config = STRICT


def models_of(
    registry: Mapping[str, Any], key: str, leave_out: frozenset[str] = frozenset(), base: type[Options] = Options
) -> dict[str, type[Options]]:
    """Make a pydantic model for each entry of a registry, told apart by ``key``.

    >>> def ring(radius: float = 1.0): "A ring."
    >>> models = models_of({"ring": ring}, "name")
    >>> models["ring"](name="ring").model_dump()
    {'name': 'ring', 'radius': 1.0}
    """
    made: dict[str, type[Options]] = {}
    for name, entry in registry.items():
        fields: dict[str, Any] = {key: (Literal[name], name), **_fields(entry, leave_out)}
        made[name] = create_model(f"{name}_options", __base__=base, **fields)
    return made


def describe(entry: Any) -> str:
    """Give the first line of a docstring."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


def _fields(entry: Any, leave_out: frozenset[str]) -> dict[str, Any]:
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        p.name: (p.annotation, ... if p.default is p.empty else p.default)
        for p in inspect.signature(entry).parameters.values()
        if p.kind in named and p.name not in leave_out
    }
