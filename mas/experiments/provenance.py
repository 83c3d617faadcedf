"""What a cell was made with: settings, data, machine, time, memory. Comparisons of settings leave it out."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mas.benchmarks import fingerprint
from mas.experiments.cell import THREADS, Cell, CellSettings
from mas.experiments.config.schema import StreamOptions, parts_of

_PACKAGES = ("memory-aware-synapses", "torch", "avalanche-lib", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Environment:
    """What results were made with. Results are the same to the bit only for the same instruction set."""

    python: str
    packages: dict[str, str | None]
    git_commit: str | None
    git_changed: bool
    processor: str
    cpu_capability: str  # the instruction set that torch uses, such as AVX512
    threads: int  # of torch in a cell
    cores: int | None
    system: str


def environment() -> Environment:
    """Return what cells are trained with from now on."""
    return Environment(
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        git_commit=_git("rev-parse", "HEAD"),
        git_changed=bool(_git("status", "--porcelain", "--untracked-files=no")),
        processor=_processor(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=THREADS,
        cores=os.cpu_count(),
        system=platform.platform(),
    )


@dataclass(frozen=True)
class Provenance:
    """What the result of a cell was made with."""

    config_hash: str  # SHA-256 of the cell's settings
    data: dict[str, str]  # hash of all images and labels, by data set; see `mas.benchmarks.fingerprint`
    environment: Environment
    started: str  # in UTC, ISO 8601
    seconds: float  # from the start of the cell to its end
    peak_memory: int | None  # bytes that the process held at most; None where the system does not say


def provenance_of(cell: Cell, *, started: datetime) -> Provenance:
    """Return the provenance of a cell that ends now, in the process that made it.

    Args:
        cell: that was made.
        started: when, in UTC.
    """
    return Provenance(
        config_hash=config_hash(cell.settings),
        data=fingerprints(cell.settings),
        environment=_environment_of_process(),
        started=started.isoformat(timespec="milliseconds"),
        seconds=round((datetime.now(UTC) - started).total_seconds(), 3),
        peak_memory=peak_memory(),
    )


def identity(cell: Cell) -> str:
    """Return what tells a cell, and what it was made with, from any other: checkpoints of others are not used."""
    version_of_mas = _version("memory-aware-synapses")
    return f"{cell.seed} {config_hash(cell.settings)} {version_of_mas} {torch.__version__}"


def config_hash(settings: CellSettings) -> str:
    """Return the SHA-256 of settings, as hexadecimal digits; equal settings have the same."""
    text = json.dumps(settings.plain(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprints(settings: CellSettings) -> dict[str, str]:
    """Return the fingerprint of each data set that a cell uses, by its name, or by its options as JSON."""
    streams = [stream for _, stream in parts_of(settings, StreamOptions)]
    specs = [spec for stream in streams for spec in stream.datasets_used().values()]
    return {spec if isinstance(spec, str) else json.dumps(spec): fingerprint(spec) for spec in specs}


@cache
def _environment_of_process() -> Environment:
    """Return `environment`, which does not change while a process lives; git is asked once."""
    return environment()


def forget_peak_memory() -> None:
    """Begin the measurement of peak memory anew, for a cell that begins; only Linux can do that.

    Elsewhere a cell's peak is the largest one of its process so far.
    """
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")


_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_memory() -> int | None:
    """Return the bytes that this process held at most since `forget_peak_memory`; None if the system does not say."""
    with suppress(OSError, StopIteration, ValueError):
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others kilobytes


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    """Return the output of a git command in the folder of this code; None if that is no checkout."""
    try:
        here = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
