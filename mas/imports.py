"""Import the user's own functions by name: ``package.module:name``."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

IMPORT = "import"
"""The name of an entry that is imported: ``{name: import, function: package.module:name, ...}``."""


def import_function(path: str) -> Callable[..., Any]:
    """Return the function or class that ``package.module:name`` names.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"function is {path!r}; expected package.module:name that can be imported ({cause})"
        ) from error
    if not callable(found):
        raise ValueError(f"function is {path!r}, which is a {type(found).__name__}; expected a function or a class")
    return found


def check_origin(path: str, folder: Path) -> None:
    """Raise ValueError if another module of the same name hides the one in a folder.

    Args:
        path: of a function that was imported, ``package.module:name``.
        folder: that may hold the package or module.
    """
    name = path.partition(":")[0].partition(".")[0]
    beside = [file for file in (folder / f"{name}.py", folder / name / "__init__.py") if file.is_file()]
    found = getattr(sys.modules.get(name), "__file__", None)
    if beside and found and Path(found).resolve() != beside[0].resolve():
        raise ValueError(f"function is {path!r}, and {found} hides {beside[0]}, of the same name; rename yours")


def check_options(function: Callable[..., Any], options: Mapping[str, Any], given: Iterable[str], path: str) -> None:
    """Raise ValueError for an option that a function does not take, or one that it needs and that is missing.

    Args:
        function: the function to be called.
        options: keyword arguments from a config.
        given: names of the arguments that the caller passes itself.
        path: the function's name, for the message.
    """
    parameters = dict(inspect.signature(function).parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = set(given)
    own = {}
    for name, parameter in parameters.items():
        if name not in given and parameter.kind is not parameter.VAR_KEYWORD:
            own[name] = parameter
    unknown = [name for name in options if name not in own]
    if unknown and not takes_any:
        raise ValueError(f"{path} has no option {unknown[0]!r}; it has: {', '.join(own) or 'none'}")
    for name, parameter in own.items():
        has_default = parameter.default is not parameter.empty
        if not has_default and parameter.kind is not parameter.VAR_POSITIONAL and name not in options:
            raise ValueError(f"{path} needs the option {name!r}; add it")
