"""Functions of the user's own, by name: ``package.module:name``."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

IMPORT = "import"
"""The name of an entry that is imported: ``{name: import, function: package.module:name, ...}``."""


def import_function(path: str) -> Callable[..., Any]:
    """Return the function or class that ``package.module:name`` means.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        raise ValueError(
            f"function is {path!r}; expected package.module:name that can be imported "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
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
    """Raise ValueError if a function does not take some options, or needs others.

    Args:
        function: that is to be called.
        options: keyword arguments from a config.
        given: names of the arguments that the caller gives.
        path: of the function, for the message.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = {name: p for name, p in parameters.items() if name not in set(given) and p.kind is not p.VAR_KEYWORD}
    unknown = [name for name in options if name not in own]
    if unknown and not takes_any:
        raise ValueError(f"{path} has no option {unknown[0]!r}; it has: {', '.join(own) or 'none'}")
    missing = [name for name, p in own.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    needed = [name for name in missing if name not in options]
    if needed:
        raise ValueError(f"{path} needs the option {needed[0]!r}; add it")
