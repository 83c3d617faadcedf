"""``logging: [jsonl]``: one line of JSON for each event."""

import json
import math
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from mas.experiments.events import CellAt, Event


class JsonLines:
    """JSON lines in logs/events.jsonl: one object per event, with its time; runs on one folder add to it."""

    def __init__(self, folder: Path):
        self._path = folder / "events.jsonl"
        self._file: BinaryIO | None = None

    def note(self, event: Event) -> None:
        """Write an event as one line, at once."""
        if isinstance(event, CellAt):
            return
        line = json.dumps(as_plain(event), ensure_ascii=False)
        self._opened().write(f"{line}\n".encode())  # in one write: several processes may add lines

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            if self._file.tell() and self._path.read_bytes()[-1:] != b"\n":
                self._file.write(b"\n")  # after a line that was cut off
        return self._file


def as_plain(event: Event) -> dict[str, Any]:
    """Return an event as plain data: the time, its name, and its fields."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    values = {own.name: _plain(getattr(event, own.name)) for own in fields(event)}
    return {"time": time, "event": _snake_case(type(event).__name__), **values}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.id if hasattr(value, "settings") else value


def _snake_case(name: str) -> str:
    """Return the name of a class with small letters.

    >>> _snake_case("EpochEnded")
    'epoch_ended'
    """
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
