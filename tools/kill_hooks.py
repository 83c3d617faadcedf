"""What a process that will be killed does at each moment, told in memory that it shares with its parent."""

import functools
import mmap
import os
import signal
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mas.experiments import continual, embedding, experts, files, probe_network, training
from mas.experiments.checkpoints import Checkpoints
from mas.experiments.store import Store
from mas.strategies import ImportancePlugin, ProbePlugin

_FORM = struct.Struct("dddq40s")


class Shared:
    """Memory of two processes.

    Attributes:
        begun: when the work on a cell began, by the monotonic clock; 0 before.
        saved: when the last checkpoint or result was written.
        ended: when the process killed itself.
        steps: of writing files, so far.
        phase: what the process is doing.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _FORM.size)

    def read(self) -> tuple[float, float, float, int, str]:
        """Return (begun, saved, ended, steps, phase)."""
        begun, saved, ended, steps, phase = _FORM.unpack(self._memory[: _FORM.size])
        return begun, saved, ended, steps, phase.rstrip(b"\0").decode()

    def write(self, **changes: Any) -> None:
        """Change some of the values."""
        names = ("begun", "saved", "ended", "steps", "phase")
        values: dict[str, Any] = dict(zip(names, self.read(), strict=True)) | changes
        values["phase"] = values["phase"].encode()
        self._memory[: _FORM.size] = _FORM.pack(*values.values())


@dataclass(frozen=True)
class Moment:
    """A moment at which a process is killed."""

    phase: str
    number: int  # of the times that the phase is entered, from 1
    delay: float  # seconds after that


class Hooks:
    """Tells what this process does, and kills it at a step of writing a file.

    Args:
        shared: memory of this process and its parent.
        die_at: the step at which it is killed.
        die_in: the moment at which it is killed. With neither, that is left to the parent.

    Attributes:
        entered: how often each phase was entered.
    """

    def __init__(self, shared: Shared, die_at: int | None = None, die_in: "Moment | None" = None):
        self.shared = shared
        self.die_at = die_at
        self.die_in = die_in
        self.entered: Counter[str] = Counter()
        self.phases = ["between experiences"]
        self.is_writing = False
        self.steps = 0

    def install(self) -> None:
        """Replace functions of the library by ones that tell when they run."""
        self._tell(Checkpoints, "save", "saving a checkpoint", self._note_saved)
        self._tell(Store, "save", "saving a result", self._note_saved)
        self._tell(ImportancePlugin, "_protect", "importance pass")
        self._tell(ProbePlugin, "_measure", "probe")
        self._tell(training, "tune", "trying a strength")
        self._tell(continual, "deepcopy", "trying a strength")
        self._tell(training, "_test", "evaluation")
        self._tell(training, "_learn", "within an epoch", self._keep)
        self._tell(embedding, "embed", "embedding a task")
        self._tell(experts, "train_expert", "training an expert")
        self._tell(experts, "adapted_accuracy", "adapting an expert")
        self._tell(probe_network, "_train", "training a probe network")
        self._count_steps_of_writing()

    def begin(self) -> None:
        """Note that the work on a cell begins."""
        now = time.monotonic()
        self.shared.write(begun=now, saved=now, phase=self.phases[-1])

    def _tell(self, owner: Any, name: str, phase: str, after: Callable[[], None] | None = None) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> Any:
            within_try = self.phases[-1] == "trying a strength" and phase == "within an epoch"
            self._enter(self.phases[-1] if within_try else phase)
            try:
                found = function(*args, **kwargs)
                (after or self._keep)()
                return found
            finally:
                self._leave()

        setattr(owner, name, told)

    def _keep(self) -> None:
        """Do nothing."""

    def _enter(self, phase: str) -> None:
        self.phases.append(phase)
        self.shared.write(phase=phase)
        self.entered[phase] += 1
        if self.die_in and (phase, self.entered[phase]) == (self.die_in.phase, self.die_in.number):
            threading.Timer(self.die_in.delay, self._die).start()

    def _leave(self) -> None:
        self.phases.pop()
        self.shared.write(phase=self.phases[-1])

    def _note_saved(self) -> None:
        self.shared.write(saved=time.monotonic())

    def _count_steps_of_writing(self) -> None:
        whole = files.write_whole

        def write_whole(path: Path, data: bytes) -> None:
            self.is_writing = True
            try:
                self._step()
                whole(path, data)
                self._step()
            finally:
                self.is_writing = False

        for module in ("checkpoints", "store", "probe_network"):
            owner = __import__(f"mas.experiments.{module}", fromlist=["write_whole"])
            if hasattr(owner, "write_whole"):
                setattr(owner, "write_whole", write_whole)  # noqa: B010 - a name of a module
        for place, name in ((tempfile, "mkstemp"), (os, "fsync"), (Path, "chmod"), (Path, "replace")):
            self._step_after(place, name)
        os.fdopen = self._in_halves(os.fdopen)

    def _step_after(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def stepping(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            self._step()
            return found

        setattr(owner, name, stepping)

    def _in_halves(self, fdopen: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose files are written in two halves, with a step between."""

        def open_file(*args: Any, **kwargs: Any) -> Any:
            file = fdopen(*args, **kwargs)
            return _Halves(file, self._step) if self.is_writing else file

        return open_file

    def _step(self) -> None:
        if not self.is_writing or not self.shared.read()[0]:
            return
        self.steps += 1
        self.shared.write(steps=self.steps)
        if self.steps == self.die_at:
            self._die()

    def _die(self) -> None:
        self.shared.write(ended=time.monotonic())
        os.kill(os.getpid(), signal.SIGKILL)


class _Halves:
    """A file whose content is written in two halves."""

    def __init__(self, file: Any, step: Callable[[], None]):
        self.file = file
        self.step = step

    def __enter__(self) -> "_Halves":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> None:
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.step()
        self.file.write(data[half:])
