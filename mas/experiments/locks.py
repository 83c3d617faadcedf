"""A lock for each cell, so that processes that share a folder do not train a cell twice.

A lock is a file ``locks/<id>.json`` of the run's folder. Its holder renews it every `BEAT` seconds. It is stale
at once if its process has ended on this machine, else after `STALE` seconds without a renewal. Times are those of the
file system, because the clocks of machines differ.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import psutil
from filelock import FileLock
from pydantic import TypeAdapter

from mas.experiments.files import writing

BEAT = 10.0
"""Seconds between two renewals of a lock."""

STALE = 60.0
"""Seconds without a renewal after which a lock is stale."""

WATCHED = 1.5 * BEAT
"""Seconds that a process watches a lock whose holder may live before it takes the lock over.

After a computer slept, every lock looks old until its holder renews it.
"""

_LOOK = 1.0  # seconds between two listings of the locks
_SAME_START = 2.0  # seconds by which two readings of a process's start may differ


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    started: float  # of the process, by the clock of its machine
    token: str  # of one `CellLocks`

    def is_gone(self) -> bool:
        """Return whether the process has surely ended; of another machine nothing is known."""
        if self.host != host():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(process.create_time() - self.started) > _SAME_START
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Lock:
    """A lock as it is found in a folder."""

    id: str
    holder: Holder | None  # None: the file is damaged, or not written yet
    renewed: float  # by the clock of the file system
    age: float  # seconds since then, by the same clock
    progress: dict[str, Any]  # what the cell has reported last

    @property
    def is_stale(self) -> bool:
        """Whether its holder has ended, or has not renewed it for a long time."""
        return self.age > STALE or (self.holder is not None and self.holder.is_gone())


class CellLocks:
    """The locks of a folder, as one process sees and holds them.

    As a context manager, it releases what it holds at the end.

    Args:
        folder: of the run.
        clock: seconds that do not go on while the computer sleeps.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic):
        self.folder = folder / "locks"
        self.me = Holder(host(), os.getpid(), psutil.Process().create_time(), uuid4().hex)
        self._clock = clock
        self._held: dict[str, dict[str, Any]] = {}  # id -> progress
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._looked = float("-inf")
        self._others: dict[str, Lock] = {}
        self._seen: dict[str, tuple[float, float]] = {}  # id -> when it was renewed, and when that was first seen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Take the lock of a cell; return False if another process holds it.

        Raises:
            UserError: the lock cannot be written.
        """
        self._look()
        other = self._others.get(name)
        with writing(self._path(name)):
            taken = self._create(name) if other is None else self._may_take_over(other) and self._take_over(name)
        if taken:
            self._others.pop(name, None)
            self._begin_beating()
        return taken

    def is_lost(self, name: str) -> bool:
        """Return whether another process has taken over a lock that this object took."""
        holder = _read(self._path(name))[0]
        return holder is not None and holder.token != self.me.token

    def release(self, name: str) -> None:
        """Give a lock back, unless another process has taken it over."""
        with self._mutex:
            if self._held.pop(name, None) is None:
                return
        try:
            with self._guard():
                holder = _read(self._path(name))[0]
                if holder is not None and holder.token == self.me.token:
                    self._path(name).unlink(missing_ok=True)
        except OSError:
            return  # the folder was removed: a lock without a living process is stale

    def note(self, name: str, progress: Mapping[str, Any]) -> None:
        """Keep how far a cell has come; it is written with the next renewal."""
        with self._mutex:
            if name in self._held:
                self._held[name] = dict(progress)

    def beat(self) -> None:
        """Renew the locks that this object holds; those that were taken over are left alone."""
        with self._guard():
            with self._mutex:
                held = dict(self._held)
            for name, progress in held.items():
                if not self.is_lost(name):
                    self._replace(name, progress)

    def _begin_beating(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_beating, name="locks", daemon=True)
            self._thread.start()

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self.beat()
            except OSError:  # a full disk, or a file server that does not answer: the next renewal may succeed
                continue

    def _look(self) -> None:
        """List the locks of other processes, at most once a second."""
        now = self._clock()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        found = locks_of(self.folder)
        self._others = {lock.id: lock for lock in found if lock.id not in self._held}
        seen = {}
        for lock in self._others.values():
            before = self._seen.get(lock.id)
            is_same = before is not None and before[0] == lock.renewed
            seen[lock.id] = before if before and is_same else (lock.renewed, now)
        self._seen = seen

    def _may_take_over(self, lock: Lock) -> bool:
        """Return whether a lock is stale; one whose holder may live only after it was watched for a while."""
        if lock.holder is not None and lock.holder.is_gone():
            return True
        return lock.age > STALE and self._clock() - self._seen[lock.id][1] >= WATCHED

    def _create(self, name: str) -> bool:
        path = self._path(name)
        self.folder.mkdir(exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self._content({}))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._hold(name)
        return True

    def _take_over(self, name: str) -> bool:
        """Put this object in the place of a holder that has ended; only one process does so at a time."""
        with self._guard():
            now = next((lock for lock in locks_of(self.folder) if lock.id == name), None)
            if now is None:
                return self._create(name)
            if not now.is_stale:
                return False
            self._replace(name, {})
            self._hold(name)
            return True

    def _hold(self, name: str) -> None:
        with self._mutex:
            self._held[name] = {}

    def _replace(self, name: str, progress: dict[str, Any]) -> None:
        temporary = self.folder / f".{name[:100]}-{self.me.token}"
        try:
            temporary.write_bytes(self._content(progress))
            temporary.replace(self._path(name))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _content(self, progress: dict[str, Any]) -> bytes:
        return (json.dumps({"holder": asdict(self.me), "progress": progress}, indent=2) + "\n").encode()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _guard(self) -> FileLock:
        """Return the lock under which locks are changed."""
        self.folder.mkdir(exist_ok=True)
        return FileLock(self.folder / "locks.lock", timeout=STALE)


def locks_of(folder: Path) -> list[Lock]:
    """Return the locks in a folder ``locks``, with their ages by the clock of the file system."""
    paths = list(folder.glob("[!.]*.json"))
    if not paths:
        return []
    now = _time_of(folder)
    found = []
    for path in paths:
        try:
            renewed = path.stat().st_mtime
        except FileNotFoundError:  # released meanwhile
            continue
        holder, progress = _read(path)
        found.append(Lock(path.stem, holder, renewed, now - renewed, progress))
    return found


@cache
def host() -> str:
    """Return a name of this machine, or of this container: where a process number means one process."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()[:8]
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it names no file
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{machine}/{space}"


def _time_of(folder: Path) -> float:
    """Return the time by the clock of the file system that a folder is on."""
    path = folder / f".clock-{uuid4().hex}"
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:  # a folder of another user
        return time.time()
    finally:
        path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[Holder | None, dict[str, Any]]:
    try:
        data = json.loads(path.read_bytes())
        return _HOLDERS.validate_python(data["holder"]), dict(data["progress"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, {}


_HOLDERS: TypeAdapter[Holder] = TypeAdapter(Holder)
