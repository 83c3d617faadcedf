"""Where results live: one folder a run, one file a cell, each written whole or not at all.

runs/<name>/config.yaml       the resolved config
            environment.json  versions, commit, processor, threads: a list, as cells may be trained one after another
            data.json         fingerprints of the data sets
            cells/<id>.json   what one cell left, with its settings
            models/<id>.pt    its trained weights, with save_model: true
            *.csv  figures/  report.html    made from the cells; report.json lists them
"""

import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from mas.experiments.cell import THREADS, Cell
from mas.experiments.errors import UserError
from mas.experiments.files import write_whole
from mas.experiments.record import CellRecord, OldFormatError, Outcome

_PACKAGES = ("memory-aware-synapses", "torch", "avalanche-lib", "numpy", "scikit-learn")
_ELSEWHERE = "choose another folder with --output, or delete this one"


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cells = folder / "cells"

    def claim(
        self, config: Mapping[str, Any], cells: Sequence[Cell], waiting: Sequence[Cell], data: dict[str, str]
    ) -> None:
        """Take the folder for a config, or raise if it holds anything else; then write the config.

        Args:
            config: as plain data.
            cells: all of the config that are known.
            waiting: those to report whose settings are still to be chosen.
            data: fingerprint by data set, see `mas.benchmarks.fingerprint`.

        Raises:
            UserError: the path is a file, the folder holds no run of ours, cells that the config
                does not have, or cells of the same name with other settings or of other data.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is a file; expected a folder for results: choose another with --output")
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "config.yaml").is_file():
            raise UserError(
                f"{self.folder}: holds other files and no config.yaml of a run; choose another folder with --output"
            )
        self.refuse_others(cells, waiting)
        self._refuse_cells_beside([*cells, *waiting])
        self._refuse_other_data(data)
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            self.write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
            self.write("data.json", json.dumps(data, indent=2) + "\n")
            if any(self.read(cell) is None for cell in cells) or waiting:
                self._note_environment()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written: {error.strerror}; choose another folder with --output"
            ) from None

    def refuse_others(self, cells: Sequence[Cell], waiting: Sequence[Cell] = ()) -> None:
        """Raise if a cell of the same name was run with other settings.

        Of a cell that waits for a choice only the way of choosing is compared.

        Raises:
            UserError: with the first setting that differs.
        """
        for cell in cells:
            if before := self.read(cell):
                self._compare(before.cell.settings.plain(), cell.settings.plain())
        for cell in waiting:
            if before := self.read(cell):
                there, here = before.cell.settings.selection, cell.settings.selection
                self._compare({"selection": there and there.model_dump()}, {"selection": here and here.model_dump()})

    def refuse_without_weights(self, cells: Sequence[Cell]) -> None:
        """Raise UserError if a cell was trained without keeping its weights: it is not trained again."""
        for cell in cells:
            if self._path(cell).is_file() and not self._weights_path(cell).is_file():
                raise UserError(f"{self.folder}: holds {cell.id} without its weights (save_model: true); {_ELSEWHERE}")

    def read(self, cell: Cell) -> CellRecord | None:
        """Return the record of a cell, or None if it has not been run."""
        path = self._path(cell)
        if not path.is_file():
            return None
        try:
            return CellRecord.from_json(path.read_text(encoding="utf-8"))
        except OldFormatError as error:
            raise UserError(f"{path}: {error}; run again, and {_ELSEWHERE}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({_reason(error)}); delete it and run again") from None

    def save(self, cell: Cell, outcome: Outcome, weights: dict[str, Tensor] | None = None) -> None:
        """Write a cell's outcome; its weights first, so that a cell with an outcome is complete."""
        if weights is not None:
            buffer = io.BytesIO()
            torch.save(weights, buffer)
            self.write(f"models/{cell.id}.pt", buffer.getvalue())
        self.write(f"cells/{cell.id}.json", CellRecord(cell, outcome).to_json())
        shutil.rmtree(self.checkpoints(cell), ignore_errors=True)

    def weights(self, cell: Cell) -> dict[str, Tensor]:
        """Return the trained weights of a cell, for `torch.nn.Module.load_state_dict`.

        Raises:
            UserError: they were not kept.
        """
        path = self._weights_path(cell)
        if not path.is_file():
            raise UserError(f"{path}: no such file; weights are kept by runs with save_model: true")
        loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
        return loaded

    def checkpoints(self, cell: Cell) -> Path:
        """Return the folder for the checkpoints of a cell that is not finished; `save` deletes it."""
        return self.folder / "checkpoints" / cell.id

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file atomically: it is there whole or not at all."""
        data = content.encode() if isinstance(content, str) else content
        write_whole(self.folder / name, data)

    def _path(self, cell: Cell) -> Path:
        return self.cells / f"{cell.id}.json"

    def _weights_path(self, cell: Cell) -> Path:
        return self.folder / "models" / f"{cell.id}.pt"

    def _compare(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if there != here:
            key, before, now = _first_difference(there, here)
            raise UserError(f"{self.folder}: holds other results: {key} is {before} there and {now} here; {_ELSEWHERE}")

    def _refuse_cells_beside(self, cells: Sequence[Cell]) -> None:
        """Raise if the folder holds cells of another config, whose tables the new ones would replace."""
        known = {cell.id for cell in cells}
        beside = sorted(path.stem for path in self.cells.glob("[!.]*.json") if path.stem not in known)
        if beside:
            more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
            raise UserError(
                f"{self.folder}: holds other results: this config has no cell {beside[0]}{more}; {_ELSEWHERE}"
            )

    def _refuse_other_data(self, data: dict[str, str]) -> None:
        known = self.read_json("data.json", {})
        for name, fingerprint in data.items():
            if known.get(name, fingerprint) != fingerprint:
                raise UserError(
                    f"{self.folder}: holds results on other images called {name}; "
                    "give the same --data, or choose another folder with --output"
                )

    def _note_environment(self) -> None:
        """Add what cells are trained with from now on, where it is not what they were trained with last."""
        known, now = self.read_json("environment.json", []), asdict(environment())
        if known[-1:] != [now]:
            self.write("environment.json", json.dumps([*known, now], indent=2) + "\n")

    def read_json(self, name: str, default: Any) -> Any:
        """Return the content of a JSON file of the folder, or ``default`` if it is not there."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
        except ValueError:
            raise UserError(f"{path}: is damaged; delete it and run again") from None


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


def _reason(error: Exception) -> str:
    """Return in one line what is wrong with a record."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


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
