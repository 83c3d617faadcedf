"""The user's own modules that cells import, sent to machines that do not have them."""

import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mas.experiments.errors import UserError

_MOST = 20_000_000  # bytes
_OWN = "mas"


@dataclass(frozen=True)
class Modules:
    """Source files, by their path below a folder that modules are looked for in."""

    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """A name for this content."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()[:16]


def modules_of(functions: Iterable[str]) -> Modules:
    """Return the modules that functions are in, and those beside them.

    Sent are Python files: those in the folder that a module was found in, and of its packages those that are
    loaded. What is installed as a package has to be installed on every machine.

    Args:
        functions: each ``package.module:name``.

    Raises:
        UserError: the files are too large.
    """
    names = {function.partition(":")[0].partition(".")[0] for function in functions}
    roots = {root for name in sorted(names) if (root := _root(_module(name)))}
    files = {str(path.relative_to(root)): path.read_bytes() for root in roots for path in _sources(root)}
    size = sum(map(len, files.values()))
    if size > _MOST:
        where = ", ".join(map(str, sorted(roots)))
        raise UserError(
            f"import: the Python files in {where} have {size / 1e6:.0f} MB; allowed to be sent: {_MOST / 1e6:.0f} MB; "
            "move the modules that the config imports into a folder of their own"
        )
    return Modules(files)


def put_on_path(modules: Modules, folder: Path) -> None:
    """Write modules into a folder, unless they are there, and let them be imported from it."""
    for name, content in modules.files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    if modules.files and str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except Exception:  # noqa: BLE001 - the user's module may raise anything; the cell says so
        return None


def _root(module: ModuleType | None) -> Path | None:
    """Return the folder that a module was found in; None if it is installed, or has no file."""
    if module is None or module.__name__ == _OWN:
        return None
    path = getattr(module, "__path__", None)
    file = next(iter(path), None) if path else module.__file__
    if file is None:
        return None
    root = Path(file).resolve().parent
    return None if any(root.is_relative_to(place) for place in _installed()) else root


def _installed() -> Iterator[Path]:
    for name in ("purelib", "platlib", "stdlib", "platstdlib"):
        yield Path(sysconfig.get_path(name)).resolve()


def _sources(root: Path) -> Iterator[Path]:
    yield from root.glob("*.py")
    for name, module in list(sys.modules.items()):
        is_package = "." not in name and hasattr(module, "__path__") and name != _OWN
        if is_package and _root(module) == root:
            yield from (root / name).rglob("*.py")
