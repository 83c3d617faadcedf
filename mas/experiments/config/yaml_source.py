"""A YAML file as plain data that still knows which line each key came from."""

import difflib
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import yaml

from mas.experiments.config.plain_yaml import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    LimitError,
    check_size,
    quoted,
    read_yaml,
    shortened,
)
from mas.experiments.errors import UserError

Key = tuple[str | int, ...]


class Source:
    """What was asked for: a file or plain data, and ``key.key=value`` changes made to it on the command line.

    Raises:
        UserError: the file is missing, empty, no plain YAML, says a key twice or goes beyond the bounds of
            `mas.experiments.config.plain_yaml`; a change goes nowhere.
    """

    def __init__(self, source: Path | str | Mapping[str, Any], changes: Sequence[str] = ()):
        self.lines: dict[Key, int] = {}
        self.combinations: list[dict[Key, Key]] = []  # of a sweep: by place, where its value stands
        self._origins: dict[Key, Key] = {}
        self.path: Path | None = None
        if isinstance(source, Mapping):
            self.data: dict[str, Any] = _copied(source)
        else:
            self.path = Path(source)
            self.data = self._from_file(self.path)
        self.changes = {_apply(self.data, change): change for change in changes}
        _check_changed(self.data, changes)

    def where(self, key: Key) -> str:
        """Return where a value stands: file, line and key, or the change that set it."""
        outer = [key[:n] for n in range(len(key), -1, -1)]  # a missing key stands where its map does
        if origin := next((k for k in outer if k in self._origins), None):
            key = (*self._origins[origin], *key[len(origin) :])
            outer = [key[:n] for n in range(len(key), -1, -1)]
        name = self.name(key)
        if change := next((self.changes[k] for k in outer if k in self.changes), None):
            return f"--set {_in_one_line(change)}: {name}"
        if self.path is None:
            return name or "config"
        line = next((self.lines[k] for k in outer if k in self.lines), 1)
        return f"{self.path}:{line}: {name}" if name else f"{self.path}:{line}"

    def combination(self, number: int) -> "Source":
        """Return the source of one combination of a sweep: swept values stand in the lists of the sweep."""
        own = copy(self)
        own._origins = self.combinations[number]
        return own

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
        parts = [f"[{part}]" if isinstance(part, int) else f".{_in_one_line(part)}" for part in key]
        return "".join(parts).lstrip(".")

    def _from_file(self, path: Path) -> dict[str, Any]:
        try:
            data, self.lines = read_yaml(_read(path))
        except LimitError as error:
            raise UserError(f"{path}:{_line(error)}: {error.problem}") from None
        except yaml.YAMLError as error:
            raise UserError(_not_plain(path, error)) from None
        if not isinstance(data, dict):
            found = "an empty file" if data is None else f"a {type(data).__name__}"
            raise UserError(f"{path}:1: found {found}; expected a map with experiment: and what it needs")
        return data


def nearest(name: str, known: Sequence[str]) -> str:
    """Return ``, did you mean 'x'?`` if a known name is near, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _with_first(key: Key, old: str, new: str) -> Key:
    return (new, *key[1:]) if key[:1] == (old,) else key


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{nearest(path.name, beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{path}: found more than {MAX_CHARACTERS:,} characters; expected a config, which is shorter")
    return text


def _not_plain(path: Path, error: yaml.YAMLError) -> str:
    return f"{path}:{_line(error)}: not plain YAML: {_problem(error)}; allowed are {_PLAIN}"


_PLAIN = "maps, lists, text, numbers, true and false"


def _line(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else 1


def _problem(error: yaml.YAMLError) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or str(error).partition("\n")[0]


def _copied(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of plain data from Python."""
    data = dict(source)
    try:
        check_size(data)
    except ValueError as error:
        raise UserError(f"config: {error}") from None
    return deepcopy(data)


def _check_changed(data: dict[str, Any], changes: Sequence[str]) -> None:
    """Raise UserError if data that were within the bounds are not after changes."""
    try:
        check_size(data)
    except ValueError as error:
        raise UserError(f"--set {_in_one_line(changes[-1])}: {error}") from None


def _in_one_line(change: str) -> str:
    return shortened(" ".join(change.split()))


def _apply(data: Any, change: str) -> Key:
    """Set ``a.b.0.c=value`` in plain data, and return the key."""
    path, equals, text = change.partition("=")
    shown = _in_one_line(change)
    key = _key(path)
    if not equals or "" in key:
        raise UserError(f"--set {shown}: expected key=value, such as training.epochs=2 or strategies.0.lam=10")
    if len(key) > MAX_DEPTH:
        raise UserError(f"--set {shown}: found a key of {len(key):,} parts; give at most {MAX_DEPTH}")
    value = _value(text, shown)
    for part in key[:-1]:
        data = data.setdefault(part, {}) if isinstance(data, dict) else _item(data, part, shown)
    if not isinstance(data, dict):
        _item(data, key[-1], shown)
    data[key[-1]] = value
    return key


def _key(path: str) -> Key:
    """Return the parts of ``a.b.0.c``; what is too long to be the number of an item stays text."""
    parts = path.strip().split(".")
    return tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in parts)


def _value(text: str, shown: str) -> Any:
    """Return the value of a change."""
    try:
        return read_yaml(text)[0]
    except LimitError as error:
        raise UserError(f"--set {shown}: {error.problem}") from None
    except yaml.YAMLError as error:
        found = shortened(text)
        raise UserError(f"--set {shown}: {found!r} is not plain YAML: {_problem(error)}") from None


def _item(data: Any, part: str | int, shown: str) -> Any:
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    size = (
        f"a list of {len(data)}, counted from 0" if isinstance(data, list) else f"{quoted(data)}, which holds no keys"
    )
    raise UserError(f"--set {shown}: there is no {shortened(str(part))} in {size}")
