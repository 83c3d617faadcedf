"""Write ``strategies/__init__.pyi``: every strategy with its arguments spelled out, for editors and type checkers.

The arguments of a strategy are Avalanche's and those of its plugin. They are joined at run time, so that
a new method lists its options once, in its plugin. Run ``python -m tools.strategy_stub`` after adding a
strategy or changing an option.
"""

import ast
import inspect
import json
import subprocess
import sys
import types
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import mas.annotations
import mas.strategies
from mas.strategies.measured_data import Data

FOLDER = Path(__file__).resolve().parent.parent / "strategies"
STUB = FOLDER / "__init__.pyi"

_AVALANCHE = {  # types of the arguments that all strategies share; Avalanche states them in part
    "model": "nn.Module",
    "optimizer": "Optimizer",
    "criterion": "Callable[..., Tensor]",
    "train_mb_size": "int",
    "train_epochs": "int",
    "eval_mb_size": "int | None",
    "device": "str | torch.device",
    "plugins": "Sequence[BasePlugin] | None",
    "evaluator": "EvaluationPlugin | Callable[[], EvaluationPlugin]",
    "eval_every": "int",
    "peval_mode": 'Literal["epoch", "iteration"]',
}
_BY_POSITION = ("model", "optimizer", "criterion")
_BOUNDED = [name for name, value in vars(mas.annotations).items() if get_origin(value) is not None]
_NAMES: dict[Any, str] = {getattr(mas.annotations, name): name for name in _BOUNDED} | {Data: "Data"}

_HEADER = f"""\
# Written by tools/strategy_stub.py; do not edit.
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from mas.annotations import {", ".join(_BOUNDED)}
from mas.strategies.measured_data import Data
"""


def stub() -> str:
    """Return the text of the stub, formatted."""
    classes = {kind.__name__: kind for kind in mas.strategies.STRATEGIES.values()}
    parts = [
        _HEADER,
        *_imports(set(classes)),
        *(_class(kind) for kind in classes.values()),
        "STRATEGIES: dict[str, type[SupervisedTemplate]]",
        f"__all__ = {mas.strategies.__all__!r}",
    ]
    return _formatted("\n".join(parts))


def _imports(strategies: set[str]) -> list[str]:
    """Return the imports of the package, without the strategies, which the stub declares."""
    package = ast.parse((FOLDER / "__init__.py").read_text(encoding="utf-8"))
    lines = []
    for node in package.body:
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name not in strategies]
            if names:
                lines.append(f"from {node.module} import {', '.join(names)}")
    return lines


def _class(kind: type) -> str:
    base = kind.__mro__[1]
    base_name = base.__name__ if base.__module__.startswith("mas.") else "SupervisedTemplate"
    summary = (inspect.getdoc(kind) or "").partition("\n")[0]
    return f'class {kind.__name__}({base_name}):\n    """{summary}"""\n    {_init(kind)}\n'


def _init(kind: type) -> str:
    *parameters, _keywords = inspect.signature(kind).parameters.values()
    first = [_argument(parameter) for parameter in parameters if parameter.name in _BY_POSITION]
    others = [_argument(parameter) for parameter in parameters if parameter.name not in _BY_POSITION]
    arguments = ", ".join(["self", *first, "*", *others])
    return f"def __init__({arguments}) -> None: ..."


def _argument(parameter: Parameter) -> str:
    kind = _AVALANCHE.get(parameter.name) or _type(parameter.annotation)
    if parameter.default is Parameter.empty:
        return f"{parameter.name}: {kind}"
    plain = isinstance(parameter.default, str | int | float | None)
    default = repr(parameter.default) if plain and parameter.name != "criterion" else "..."
    return f"{parameter.name}: {kind} = {default}"


def _type(annotation: Any) -> str:
    """Return the source of an annotation, by name where it has one."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    if annotation is types.NoneType:
        return "None"
    if get_origin(annotation) is Literal:
        return f"Literal[{', '.join(json.dumps(value) for value in get_args(annotation))}]"
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type(part) for part in get_args(annotation))
    if isinstance(annotation, type) and annotation.__module__ == "builtins":
        return annotation.__name__
    raise TypeError(f"tools/strategy_stub.py cannot write the type {annotation!r}; use one of mas.annotations")


def _formatted(text: str) -> str:
    for command in (["check", "--fix", "--quiet", "--select", "F401,I,RUF022"], ["format", "--quiet"]):
        options = [*command, "--stdin-filename", str(STUB), "-"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *options], input=text, capture_output=True, text=True, check=True
        )
        text = done.stdout
    return text


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
