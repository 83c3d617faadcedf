"""Checkpoints of a cell that is being trained: the last two, each with a checksum."""

import hashlib
import io
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mas.experiments.files import write_whole

INTERVAL = 30.0
"""Seconds between two checkpoints within an epoch."""

SHARE = 0.02
"""Of a cell's time, at most, that checkpoints take."""

_EXPECTED = 0.05
"""Seconds that the first checkpoint is expected to take: cells that are done in less than 50 times that save none."""

_VERSION = 1
"""Of the form of a checkpoint: another one is not used, and the cell begins anew."""

_KEPT = 2
_DIGEST = hashlib.sha256().digest_size


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged or of something else, and the one before it is used."""


class Checkpoints:
    """The checkpoints of one cell.

    Args:
        folder: for this cell alone.
        of: what the cell is; checkpoints of anything else are not used.
        interval: seconds between two checkpoints within an epoch.
        share: of the time, at most, that checkpoints take; infinity saves whenever it is asked for.
    """

    def __init__(self, folder: Path, *, of: str = "", interval: float = INTERVAL, share: float = SHARE):
        self.folder = folder
        self.of = of
        self.interval = interval
        self.share = share
        self._cost = _EXPECTED  # seconds of the last one
        self._last = time.perf_counter()  # when it ended

    def is_due(self, *, within_epoch: bool) -> bool:
        """Return whether it is time for another checkpoint."""
        since = time.perf_counter() - self._last
        if within_epoch and since < self.interval:
            return False
        return self._cost <= self.share * since

    def save(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write a checkpoint, whole or not at all; the last two are kept."""
        begun = time.perf_counter()
        buffer = io.BytesIO()
        torch.save({"version": _VERSION, "of": self.of, "state": dict(state())}, buffer)
        data = buffer.getvalue()
        numbers = self._numbers()
        newest = numbers[-1] + 1 if numbers else 0
        write_whole(self._path(newest), hashlib.sha256(data).digest() + data)
        for number in numbers[: 1 - _KEPT]:
            self._path(number).unlink(missing_ok=True)
        self._last = time.perf_counter()
        self._cost = self._last - begun

    def newest(self) -> dict[str, Any] | None:
        """Return the newest checkpoint that is whole, on the CPU; None if there is none."""
        for number in reversed(self._numbers()):
            found = _read(self._path(number))
            if found is None:
                message = f"{self._path(number)}: is damaged; the checkpoint before it is used, if there is one"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
            elif (found.get("version"), found.get("of")) == (_VERSION, self.of):
                state: dict[str, Any] = found["state"]
                return state
            else:
                message = f"{self._path(number)}: is of other settings or another version of mas, and is not used"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
        return None

    def clear(self) -> None:
        """Delete every checkpoint of the cell."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.pt"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.pt"


def _read(path: Path) -> dict[str, Any] | None:
    """Return the state in a file; None if the file is damaged."""
    content = path.read_bytes()
    digest, data = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return state
