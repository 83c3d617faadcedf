"""A YAML file as plain data that still knows which line each key came from."""

import difflib
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from mas.experiments.errors import UserError

Key = tuple[str | int, ...]


class Source:
    """What was asked for: a file or plain data, and ``key.key=value`` changes made to it on the command line.

    Raises:
        UserError: the file is missing, empty, no plain YAML or says a key twice; a change goes nowhere.
    """

    def __init__(self, source: Path | str | Mapping[str, Any], changes: Sequence[str] = ()):
        self.lines: dict[Key, int] = {}
        self.path: Path | None = None
        if isinstance(source, Mapping):
            self.data: dict[str, Any] = deepcopy(dict(source))
        else:
            self.path = Path(source)
            self.data = self._from_file(self.path)
        self.changes = {_apply(self.data, change): change for change in changes}

    def where(self, key: Key) -> str:
        """Return where a value stands: file, line and key, or the change that set it."""
        name = self.name(key)
        outer = [key[:n] for n in range(len(key), -1, -1)]  # a missing key stands where its map does
        if change := next((self.changes[k] for k in outer if k in self.changes), None):
            return f"--set {change}: {name}"
        if self.path is None:
            return name or "config"
        line = next((self.lines[k] for k in outer if k in self.lines), 1)
        return f"{self.path}:{line}: {name}" if name else f"{self.path}:{line}"

    def rename_key(self, old: str, new: str) -> None:
        """Read a key of the outermost map under another name; of both, the one that a change has set counts.

        Raises:
            UserError: both stand there, and neither or each of them was set by a change.
        """
        if new in self.data:
            old_is_set, new_is_set = (old,) in self.changes, (new,) in self.changes
            if old_is_set == new_is_set:
                inner = next((key for key in self.changes if key[0] == old), (old,))
                found = f"found an old name of {new}, which is given too"
                raise UserError(f"{self.where(inner)}: {found}; give {new} alone")
            del self.data[old if new_is_set else new]
            if new_is_set:
                return
        self.data = {new if key == old else key: value for key, value in self.data.items()}
        self.lines = {_with_first(key, old, new): line for key, line in self.lines.items()}
        self.changes = {_with_first(key, old, new): change for key, change in self.changes.items()}

    @staticmethod
    def name(key: Key) -> str:
        """Return a key as text, such as ``strategies[1].lam``."""
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")

    def _from_file(self, path: Path) -> dict[str, Any]:
        text = _read(path)
        try:
            data = _load(text)
            self._note_lines(yaml.compose(text, Loader=yaml.SafeLoader), ())
        except RecursionError:
            raise UserError(f"{path}:1: holds an anchor that contains itself; write it out") from None
        except yaml.YAMLError as error:
            raise UserError(_not_plain(path, error)) from None
        if not isinstance(data, dict):
            found = "an empty file" if data is None else f"a {type(data).__name__}"
            raise UserError(f"{path}:1: found {found}; expected a map with experiment: and what it needs")
        return data

    def _note_lines(self, node: yaml.Node | None, key: Key) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                here, line = (*key, name.value), name.start_mark.line + 1
                if here in self.lines:
                    raise UserError(f"{self.path}:{line}: {name.value} stands twice, first in line {self.lines[here]}")
                self.lines[here] = line
                self._note_lines(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self.lines[(*key, i)] = item.start_mark.line + 1
                self._note_lines(item, (*key, i))


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ``, did you mean 'x'?`` if a known name is near, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _with_first(key: Key, old: str, new: str) -> Key:
    return (new, *key[1:]) if key[:1] == (old,) else key


class _Loader(yaml.SafeLoader):
    """Plain YAML, which also knows 1e-3 for a number, as YAML 1.2 and everybody else does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _load(text: str) -> Any:
    loader = _Loader(text)  # what yaml.safe_load does, with the loader above
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{nearest(path.name, beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _not_plain(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    found = ", ".join(part for part in parts if part) or str(error).partition("\n")[0]
    allowed = "maps, lists, text, numbers, true and false"
    return f"{path}:{mark.line + 1 if mark else 1}: not plain YAML: {found}; allowed are {allowed}"


def _apply(data: Any, change: str) -> Key:
    """Set ``a.b.0.c=value`` in plain data, and return the key."""
    path, equals, text = change.partition("=")
    key = tuple(int(part) if part.isdigit() else part for part in path.strip().split("."))
    if not equals or "" in key:
        raise UserError(f"--set {change}: expected key=value, such as training.epochs=2 or strategies.0.lam=10")
    try:
        value = _load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {change}: {text!r} is not plain YAML") from None
    for part in key[:-1]:
        data = data.setdefault(part, {}) if isinstance(data, dict) else _item(data, part, change)
    if not isinstance(data, dict):
        _item(data, key[-1], change)
    data[key[-1]] = value
    return key


def _item(data: Any, part: str | int, change: str) -> Any:
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    size = f"a list of {len(data)}, counted from 0" if isinstance(data, list) else f"{data!r}, which holds no keys"
    raise UserError(f"--set {change}: there is no {part} in {size}")
