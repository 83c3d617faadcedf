"""Where results live: one folder a run, one file a cell, each written whole or not at all.

runs/<name>/config.yaml       the resolved config
            environment.json  versions, commit, processor, threads: a list, as cells may be trained one after another
            data.json         fingerprints of the data sets
            cells/<id>.json   what one cell gave, with its settings
            *.csv  figures/  report.html    made from the cells
"""

import json
import os
import platform
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from mas.experiments.cells import THREADS, Cell
from mas.experiments.errors import UserError

_KEPT = ("label", "seed", "settings", "status", "reason", "untrained", "accuracy", "tries", "probes", "seconds")


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cells = folder / "cells"

    def claim(self, config: dict[str, Any], cells: list[Cell], data: dict[str, str]) -> None:
        """Take the folder for a config, or raise if it holds anything else; then write the config.

        Args:
            config: resolved.
            cells: all of the config.
            data: fingerprint by data set, see `mas.benchmarks.fingerprint`.

        Raises:
            UserError: the path is a file, the folder holds no run of ours, cells of the same name
                with other settings or of other data, or cells that the config does not have.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is a file; expected a folder for results: choose another with --output")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "config.yaml").is_file():
            raise UserError(
                f"{self.folder}: holds other files and no config.yaml of a run; choose another folder with --output"
            )
        self.refuse_others(cells)
        self._refuse_cells_beside(cells)
        self._refuse_other_data(data)
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            self.write("config.yaml", yaml.safe_dump(config, sort_keys=False))
            self.write("data.json", json.dumps(data, indent=2) + "\n")
            if any(self.finished(cell) is None for cell in cells):
                self._note_environment()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written: {error.strerror}; choose another folder with --output"
            ) from None

    def refuse_others(self, cells: list[Cell]) -> None:
        """Raise if a cell of the same name was run with other settings.

        Raises:
            UserError: with the first setting that differs.
        """
        for cell in cells:
            before = self.finished(cell)
            if before is None:
                continue
            expected = cell.settings
            if cell.waits:  # what was chosen then cannot be compared; how it was chosen is a setting of its own
                expected = expected | {"strategy": before["settings"]["strategy"]}
            if before["settings"] != expected:
                key, there, here = _first_difference(before["settings"], expected)
                raise UserError(
                    f"{self.folder}: holds other results: {key} is {there} there and {here} here; "
                    "choose another folder with --output, or delete this one"
                )

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """Give what a cell gave, or None if it has not been run."""
        path = self.cells / f"{cell.id}.json"
        return _load(path) if path.is_file() else None

    def save(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep what a cell gave."""
        record = {"label": cell.label, "seed": cell.seed, "settings": cell.settings} | result
        self.write(f"cells/{cell.id}.json", json.dumps(record, indent=2) + "\n")

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file so that a reader, or a crash, never sees half of it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _refuse_cells_beside(self, cells: list[Cell]) -> None:
        """Raise if the folder holds cells of another config, whose tables the new ones would replace."""
        known = {cell.id for cell in cells}
        beside = sorted(path.stem for path in self.cells.glob("[!.]*.json") if path.stem not in known)
        if beside:
            more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
            raise UserError(
                f"{self.folder}: holds other results: this config has no cell {beside[0]}{more}; "
                "choose another folder with --output, or delete this one"
            )

    def _refuse_other_data(self, data: dict[str, str]) -> None:
        known = self._read("data.json", {})
        for name, fingerprint in data.items():
            if known.get(name, fingerprint) != fingerprint:
                raise UserError(
                    f"{self.folder}: holds results on other images called {name}; "
                    "give the same --data, or choose another folder with --output"
                )

    def _note_environment(self) -> None:
        """Add what cells are trained with from now on, where it is not what they were trained with last."""
        known, now = self._read("environment.json", []), environment()
        if known[-1:] != [now]:
            self.write("environment.json", json.dumps([*known, now], indent=2) + "\n")

    def _read(self, name: str, default: Any) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
        except ValueError:
            raise UserError(f"{path}: is damaged; delete it and run again") from None


def environment() -> dict[str, Any]:
    """Say what the results were made with."""
    return {
        "python": platform.python_version(),
        "packages": {
            name: _version(name)
            for name in ("memory-aware-synapses", "torch", "avalanche-lib", "numpy", "scikit-learn")
        },
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the instruction set changes the last bits
        "cores": os.cpu_count(),
        "threads": THREADS,
        "system": platform.platform(),
    }


def _load(path: Path) -> dict[str, Any]:
    try:
        record = {"probes": []} | json.loads(path.read_text(encoding="utf-8"))  # older cells had none
        return {key: record[key] for key in _KEPT}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}); delete it and run again") from None


def _first_difference(there: Any, here: Any, key: str = "") -> tuple[str, Any, Any]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *here]:
            if there.get(name) != here.get(name):
                return _first_difference(there.get(name), here.get(name), f"{key}.{name}".lstrip("."))
    return key, there, here


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    """Ask git about the checkout that this code lies in, if it is one."""
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
