"""Kill small experiments at random moments, resume them, and compare them with undisturbed runs, bit for bit.

Run ``python -m tools.kill_test --kills 200 --seed 0 --output FOLDER``. Most runs are forks of this process, which has
imported everything; some are ``mas run`` in processes of their own. Tests run a sample of it.
"""

import argparse
import faulthandler
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from mas.experiments.checkpoints import INTERVAL, SHARE, Checkpoints
from mas.experiments.events import CellStarted, Event
from mas.experiments.read_config import load_config
from mas.experiments.runner import run_experiment
from tools.kill_cells import Config, small_experiments
from tools.kill_hooks import Hooks, Moment, Shared

_LONGEST = 300.0  # seconds for one run: more is a hang
_MOST_KILLS = 4  # of one run
_BY_STEP = 0.2  # of the kills: at a step of writing a file
_BY_PHASE = 0.4  # soon after a phase, such as an importance pass, was entered
_SOON = 0.01  # seconds
_FREQUENT = ("saving a checkpoint", "within an epoch", "between experiences")  # phases that are hit anyway
_POLL = 0.002


@dataclass(frozen=True)
class Saving:
    """How often checkpoints are saved."""

    name: str
    interval: float
    share: float


SAVINGS = (
    Saving("whenever possible", 0.0, float("inf")),
    Saving("every 0.2 s", 0.2, float("inf")),
    Saving("by default", INTERVAL, SHARE),
)


@dataclass(frozen=True)
class Kill:
    """One kill."""

    experiment: str
    saving: str
    how: str
    phase: str  # what the process was doing
    lost: float  # seconds since the last checkpoint or result


@dataclass
class Findings:
    """What came of all kills."""

    kills: list[Kill] = field(default_factory=list)
    runs: int = 0  # killed at least once, and ended
    cells: int = 0  # of these
    cells_lost: list[str] = field(default_factory=list)
    cells_done_twice: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)  # in records or weights
    errors: list[str] = field(default_factory=list)  # resumed runs that failed or hung
    stops: list[float] = field(default_factory=list)  # seconds from SIGTERM to the end of the process
    temporary_files: int = 0  # left in folders of results
    checkpoints_left: int = 0  # of cells that are finished
    orphans: int = 0  # processes that were there 5 s after the first of their group was killed
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, done twice or different."""
        return not (self.cells_lost or self.cells_done_twice or self.differences or self.errors or self.orphans)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    folder: Path
    seconds: float
    steps: int  # of writing files, with checkpoints whenever possible
    entered: dict[str, int]  # how often each phase was entered


class Killer:
    """Run experiments and kill them.

    Args:
        scratch: a folder for the runs.
        seed: of the moments.
        experiments: by name.
    """

    def __init__(self, scratch: Path, seed: int, experiments: Mapping[str, Config]):
        self.scratch = scratch
        self.random = random.Random(seed)  # noqa: S311 - not for secrets
        self.experiments = experiments
        self.references: dict[str, Reference] = {}
        self.findings = Findings()
        self._numbers = count()

    def kill_forks(self, kills: int) -> None:
        """Kill forked runs of each experiment in turn until there were so many kills."""
        for name, saving in self._turns():
            if len(self.findings.kills) >= kills:
                return
            self._kill_run(name, saving, kills)

    def stop_forks(self, stops: int) -> None:
        """Send SIGTERM to forked runs at a random moment, and let others end them."""
        for name, _ in self._turns():
            if len(self.findings.stops) >= stops:
                return
            reference, folder, shared = self._reference(name), self._new_folder(), Shared()
            process = _fork(self.experiments[name], folder, shared, SAVINGS[-1])
            _wait_until(lambda: bool(shared.read()[0]) or _has_ended(process))  # noqa: B023 - called here
            _wait_until(lambda: _has_ended(process), self.random.uniform(0, reference.seconds))  # noqa: B023
            if not _has_ended(process):
                os.kill(process, signal.SIGTERM)
                asked = time.monotonic()
                _wait(process)
                self.findings.stops.append(round(time.monotonic() - asked, 3))
                self._finish(name, folder, lambda: _fork(self.experiments[name], folder, shared, SAVINGS[-1]))  # noqa: B023
                self._compare(name, folder, reference)
            else:
                _wait(process)
            shutil.rmtree(folder.parent, ignore_errors=True)

    def kill_commands(self, kills: int) -> None:
        """Kill ``mas run`` with two workers: the whole group, its first process, or a worker of it."""
        target = len(self.findings.kills) + kills
        for name, saving in self._turns():
            if len(self.findings.kills) >= target:
                return
            if saving.name == "by default":
                self._kill_command(name, target)

    def _turns(self) -> Iterator[tuple[str, Saving]]:
        for turn in count():
            for place, name in enumerate(self.experiments):
                yield name, SAVINGS[(turn + place) % len(SAVINGS)]

    def _kill_run(self, name: str, saving: Saving, kills: int) -> None:
        reference = self._reference(name)
        folder = self._new_folder()
        finished: dict[str, bytes] = {}
        killed = 0
        for _ in range(min(self.random.randint(1, _MOST_KILLS), kills - len(self.findings.kills))):
            if not self._kill_once(name, saving, folder, reference):
                break
            killed += 1
            self._check_finished(folder, name, finished)
        if killed:
            shared = Shared()
            self._finish(name, folder, lambda: _fork(self.experiments[name], folder, shared, SAVINGS[-1]))
            self._check_finished(folder, name, finished)
            self._compare(name, folder, reference)
        shutil.rmtree(folder.parent, ignore_errors=True)

    def _kill_once(self, name: str, saving: Saving, folder: Path, reference: Reference) -> bool:
        """Run, and kill on the way; return whether it was killed before its end."""
        die_at, die_in = self._moment(saving, reference)
        by_itself = die_at or die_in
        shared = Shared()
        process = _fork(self.experiments[name], folder, shared, saving, die_at, die_in)
        if not by_itself:
            delay = self.random.uniform(0, reference.seconds)
            _wait_until(lambda: bool(shared.read()[0]) or _has_ended(process))
            _wait_until(lambda: _has_ended(process), delay)
            at = time.monotonic()
            _kill_group(process)
        code = _wait(process)
        begun, saved, ended, _, phase = shared.read()
        if code != -signal.SIGKILL:
            return False
        lost = (ended if by_itself else at) - max(begun, saved)
        how = "at a step of writing a file" if die_at else "in a phase" if die_in else "at a random time"
        self.findings.kills.append(Kill(name, saving.name, how, phase, round(lost, 4)))
        return True

    def _moment(self, saving: Saving, reference: Reference) -> tuple[int | None, Moment | None]:
        """Return the step of writing, or the moment in a phase, at which a run is killed; neither: at any time."""
        drawn = self.random.random()
        if drawn < _BY_STEP:
            steps = reference.steps if saving.share > 1 else 40
            return self.random.randint(1, max(1, steps)), None
        phases = sorted(set(reference.entered) - set(_FREQUENT))
        if drawn < _BY_STEP + _BY_PHASE and phases:
            phase = self.random.choice(phases)
            number = self.random.randint(1, reference.entered[phase])
            return None, Moment(phase, number, self.random.uniform(0, _SOON))
        return None, None

    def _kill_command(self, name: str, target: int) -> None:
        reference = self._reference(name)
        folder = self._new_folder()
        finished: dict[str, bytes] = {}
        how = self.random.choice(["the group", "the first process", "a worker"])
        begun = time.monotonic()
        process = _command(self.experiments[name], folder)
        _wait_until(lambda: any(folder.glob("c*/*")) or _has_ended(process.pid), _LONGEST)
        started = time.monotonic()
        _wait_until(lambda: process.poll() is not None, self.random.uniform(0, reference.seconds))
        victim = _victim(process.pid, how)
        if process.poll() is None and victim is not None:
            os.kill(-victim if how == "the group" else victim, signal.SIGKILL)
            lost = time.monotonic() - max(started, _last_written(folder), begun)
            phase = "not told"
            self.findings.kills.append(Kill(name, "by default", f"mas run: {how}", phase, round(lost, 4)))
            if how != "a worker":
                process.wait()
                self.findings.orphans += _orphans(process.pid)
                self._check_finished(folder, name, finished)
                self._finish(name, folder, lambda: _command(self.experiments[name], folder).pid)
            elif process.wait(_LONGEST):
                self.findings.errors.append(f"{name}: mas run ended with {process.returncode} when a worker died")
            self._check_finished(folder, name, finished)
            self._compare(name, folder, reference)
        process.wait(_LONGEST)
        shutil.rmtree(folder.parent, ignore_errors=True)

    def _reference(self, name: str) -> Reference:
        """Return an undisturbed run of an experiment; it is made when it is first needed."""
        if name not in self.references:
            folders, times, shared = [], [], [Shared(), Shared()]
            for own, saving in zip(shared, (SAVINGS[-1], SAVINGS[0]), strict=True):
                folders.append(self._new_folder())
                process = _fork(self.experiments[name], folders[-1], own, saving)
                code = _wait(process)
                times.append(time.monotonic() - own.read()[0])
                if code:
                    log = (folders[-1].parent / "log.txt").read_text(encoding="utf-8")
                    raise RuntimeError(f"{name}: an undisturbed run failed:\n{log}")
            entered = json.loads((folders[0].parent / "entered.json").read_text(encoding="utf-8"))
            self.references[name] = Reference(folders[0], times[0], shared[1].read()[3], entered)
        return self.references[name]

    def _finish(self, name: str, folder: Path, start: Callable[[], int]) -> None:
        code = _wait(start())
        if code:
            log = (folder.parent / "log.txt").read_text(encoding="utf-8")
            self.findings.errors.append(f"{name}: a resumed run ended with {code}: {log[-2000:]}")

    def _check_finished(self, folder: Path, name: str, finished: dict[str, bytes]) -> None:
        """Note cells that were finished and are no longer, or were done again."""
        for path in folder.glob("cells/*.json"):
            content = path.read_bytes()
            if finished.setdefault(path.name, content) != content:
                self.findings.cells_done_twice.append(f"{name}: {path.stem}")
        lost = [file for file in finished if not (folder / "cells" / file).is_file()]
        self.findings.cells_lost += [f"{name}: {file}, which was finished" for file in lost]

    def _compare(self, name: str, folder: Path, reference: Reference) -> None:
        findings = self.findings
        findings.runs += 1
        expected = {path.name for path in reference.folder.glob("cells/*.json")}
        found = {path.name for path in folder.glob("cells/*.json")}
        findings.cells += len(expected)
        findings.cells_lost += [f"{name}: {file}" for file in sorted(expected - found)]
        for file in sorted(expected & found):
            if _plain_record(folder / "cells" / file) != _plain_record(reference.folder / "cells" / file):
                findings.differences.append(f"{name}: {file}")
        for path in sorted(reference.folder.glob("models/*.pt")):
            if _weights(folder / "models" / path.name) != _weights(path):
                findings.differences.append(f"{name}: weights of {path.stem}")
        findings.temporary_files += sum(path.is_file() for path in folder.glob("**/.*"))
        findings.checkpoints_left += len(list(folder.glob("checkpoints/*/*.pt")))

    def _new_folder(self) -> Path:
        return self.scratch / str(next(self._numbers)) / "run"


def _fork(
    config: Config,
    folder: Path,
    shared: Shared,
    saving: Saving,
    die_at: int | None = None,
    die_in: Moment | None = None,
) -> int:
    """Start a run in a fork of this process; return its id."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        _run_here(config, folder, saving, Hooks(shared, die_at, die_in))
        code = 0
    except BaseException:  # noqa: BLE001 - a fork never returns
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run_here(config: Config, folder: Path, saving: Saving, hooks: Hooks) -> None:
    log = (folder.parent / "log.txt").open("a", encoding="utf-8")
    sys.stdout = sys.stderr = log
    faulthandler.enable(log)
    os.environ["MAS_CACHE"] = str(folder.parent / "cache")
    defaults: dict[str, Any] = Checkpoints.__init__.__kwdefaults__  # type: ignore[assignment]
    defaults.update(interval=saving.interval, share=saving.share)
    hooks.install()

    def note(event: Event) -> None:
        if isinstance(event, CellStarted) and not hooks.shared.read()[0]:
            hooks.begin()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = run_experiment(load_config(config, try_data=False), folder, 1, note)
    if outcome.failed:
        raise RuntimeError("\n".join(outcome.failed))
    (folder.parent / "entered.json").write_text(json.dumps(hooks.entered), encoding="utf-8")


def _command(config: Config, folder: Path) -> "subprocess.Popen[bytes]":
    """Start ``mas run`` in a process group of its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with (folder.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mas", "run", str(file), "--output", str(folder), "--workers", "2"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"MAS_CACHE": str(folder.parent / "cache")},
        )


def _victim(process: int, how: str) -> int | None:
    """Return the process to kill; None if there is no such process now."""
    if how != "a worker":
        return process
    workers = [child for child in _group(process) if "spawn_main" in _command_line(child)]
    return max(workers, default=None)


def _group(leader: int) -> list[int]:
    """Return the processes of a group other than its first one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group, *_ = (path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(group) == leader and int(path.name) != leader and state != "Z":
            found.append(int(path.name))
    return found


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


def _orphans(leader: int) -> int:
    """Return how many processes of a group still live 5 s after its first one was killed."""
    _wait_until(lambda: not _group(leader), 5.0)
    left = _group(leader)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return len(left)


def _last_written(folder: Path) -> float:
    """Return when the last checkpoint or result was written, by the monotonic clock."""
    times = []
    for path in [*folder.glob("cells/*.json"), *folder.glob("checkpoints/*/*.pt")]:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0) - time.time() + time.monotonic()


def _has_ended(process: int) -> bool:
    """Return whether a child has ended; it can still be waited for."""
    found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None


def _kill_group(process: int) -> None:
    if not _has_ended(process):
        os.kill(process, signal.SIGKILL)


def _wait(process: int) -> int:
    """Wait for a child; return its exit code, negative for a signal. One that takes very long is killed."""
    _wait_until(lambda: _has_ended(process), _LONGEST)
    if not _has_ended(process):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return 1
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _wait_until(is_so: Callable[[], bool], seconds: float = _LONGEST) -> None:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(_POLL)


def _plain_record(path: Path) -> str:
    """Return a record as text, without times and what it was made with."""
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["seconds"], record["provenance"]
    for tries in record["tries"]:
        for one in tries:
            del one["seconds"]
    return json.dumps(record, sort_keys=True)


def _weights(path: Path) -> dict[str, bytes] | None:
    if not path.is_file():
        return None
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def kill_test(
    kills: int, *, seed: int = 0, commands: int = 0, stops: int = 0, experiments: Mapping[str, Config] | None = None
) -> Findings:
    """Kill runs at random moments; return what came of it.

    Args:
        kills: how many.
        seed: of the moments.
        commands: how many of the kills hit ``mas run``.
        stops: how many runs are asked to stop, beside the kills.
        experiments: by name; by default `small_experiments`.
    """
    begun = time.monotonic()
    with _scratch() as folder:
        killer = Killer(folder, seed, experiments or small_experiments())
        killer.kill_forks(kills - commands)
        killer.kill_commands(commands)
        killer.stop_forks(stops)
        killer.findings.seconds = round(time.monotonic() - begun, 1)
        return killer.findings


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kill-test-") as folder:
        yield Path(folder)


def as_markdown(findings: Findings) -> str:
    """Return the figures as Markdown."""
    by_default = [kill.lost for kill in findings.kills if kill.saving == "by default"]
    lines = [
        "| what | figure |",
        "| --- | ---: |",
        f"| kills | {len(findings.kills)} |",
        f"| runs that were killed, resumed and ended | {findings.runs} |",
        f"| cells in them | {findings.cells} |",
        f"| cells lost | {len(findings.cells_lost)} |",
        f"| cells done twice | {len(findings.cells_done_twice)} |",
        f"| records or weights that differ | {len(findings.differences)} |",
        f"| resumed runs that failed | {len(findings.errors)} |",
        f"| processes left behind after 5 s | {findings.orphans} |",
        f"| runs stopped by SIGTERM | {len(findings.stops)} |",
        f"| most seconds from SIGTERM to the end | {max(findings.stops, default=0.0):.2f} |",
        f"| temporary files left | {findings.temporary_files} |",
        f"| checkpoints of finished cells left | {findings.checkpoints_left} |",
        f"| most seconds of work lost by a kill, by default | {max(by_default, default=0.0):.2f} |",
        "",
        *_table("what was killed", [kill.phase for kill in findings.kills]),
        "",
        *_table("how", [kill.how for kill in findings.kills]),
        "",
        "| checkpoints | kills | median of seconds lost | most |",
        "| --- | ---: | ---: | ---: |",
    ]
    for saving in SAVINGS:
        lost = [kill.lost for kill in findings.kills if kill.saving == saving.name]
        if lost:
            lines.append(f"| {saving.name} | {len(lost)} | {statistics.median(lost):.3f} | {max(lost):.3f} |")
    lines += ["", *_table("experiment", [kill.experiment for kill in findings.kills])]
    return "\n".join(lines) + "\n"


def _table(title: str, values: Sequence[str]) -> list[str]:
    rows = [f"| {value} | {number} |" for value, number in Counter(values).most_common()]
    return [f"| {title} | kills |", "| --- | ---: |", *rows]


def main() -> None:
    """Run the test from the command line; the exit code is 1 if anything was lost, done twice or different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--commands", type=int, default=10, help="how many of them hit `mas run`")
    parser.add_argument("--stops", type=int, default=0, help="runs that are asked to stop, beside the kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="experiments whose name contains this")
    parser.add_argument("--output", type=Path, help="a folder for kills.json and kills.md")
    given = parser.parse_args()
    chosen = {name: config for name, config in small_experiments().items() if given.only in name}
    findings = kill_test(given.kills, seed=given.seed, commands=given.commands, stops=given.stops, experiments=chosen)
    page = as_markdown(findings)
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "kills.json").write_text(json.dumps(asdict(findings), indent=1) + "\n", encoding="utf-8")
        (given.output / "kills.md").write_text(page, encoding="utf-8")
    wrong = findings.cells_lost + findings.cells_done_twice + findings.differences + findings.errors
    print(page, *wrong, sep="\n")  # noqa: T201 - a script
    sys.exit(int(not findings.is_clean))


if __name__ == "__main__":
    main()
