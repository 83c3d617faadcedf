"""Where results live: one folder a run, one file a cell, each written whole or not at all.

runs/<name>/config.yaml       the resolved config
            environment.json  versions, commit, processor, threads: a list, as cells may be trained one after another
            data.json         fingerprints of the data sets
            cells/<id>.json   what one cell left, with its settings
            models/<id>.pt    its trained weights, with save_model: true
            checkpoints/<id>/ of a cell that is not finished
            failed/<id>.json  why a cell broke, until it is run again
            locks/<id>.json   of a cell that a process trains now, see `mas.experiments.locks`
            *.csv  figures/  report.html    made from the cells; report.json lists them
"""

import io
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mas.experiments.cell import Cell, CellSettings
from mas.experiments.errors import UserError
from mas.experiments.files import make_folder, write_whole, writing
from mas.experiments.locks import host
from mas.experiments.provenance import Provenance, environment
from mas.experiments.record import CellRecord, OldFormatError, Outcome
from mas.experiments.record_checks import check_record

_ELSEWHERE = "choose another folder with --output, or delete this one"


@dataclass(frozen=True)
class _Known:
    """A record that was read, and the state of its file then."""

    state: tuple[int, ...]
    record: CellRecord


class Store:
    """The folder of one run."""

    def __init__(self, folder: Path):
        """Look at a folder, which need not exist.

        Raises:
            UserError: its path is too long, or leads through a file or a folder that cannot be entered.
        """
        with _readable(folder):
            folder.exists()
        self.folder = folder
        self.cells = folder / "cells"
        self._known: dict[Path, _Known] = {}
        self._plain: dict[int, tuple[CellSettings, dict[str, Any]]] = {}

    def refuse(self, cells: Sequence[Cell], waiting: Sequence[Cell], data: Mapping[str, str]) -> None:
        """Raise if the folder holds anything but cells of a config.

        Args:
            cells: all of the config that are known.
            waiting: those to report whose settings are still to be chosen.
            data: fingerprint by data set, see `mas.benchmarks.fingerprint`.

        Raises:
            UserError: the path is a file, the folder holds no run of ours, cells that the config
                does not have, or cells of the same name with other settings or of other data.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: is a file; expected a folder for results: choose another with --output")
        if self._is_foreign():
            raise UserError(
                f"{self.folder}: holds other files and no config.yaml of a run; choose another folder with --output"
            )
        self.refuse_others(cells, waiting)
        self._refuse_cells_beside([*cells, *waiting])
        self._refuse_other_data(data)
        for name in (*_OWN_FILES, *(f"cells/{cell.id}.json" for cell in cells)):
            self._refuse_no_file(self.folder / name)

    def claim(self, config: Mapping[str, Any], data: Mapping[str, str], *, trains: bool) -> None:
        """Write the config that the folder belongs to.

        Args:
            config: as plain data.
            data: fingerprint by data set, see `mas.benchmarks.fingerprint`.
            trains: whether cells are to be trained, with this environment.

        Raises:
            UserError: the files cannot be written.
        """
        self.write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
        known = self.read_json("data.json", {}, form=dict[str, str])
        self.write("data.json", json.dumps(known | dict(data), indent=2) + "\n")
        if trains:
            self._note_environment()

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Let one process at a time do what ``name`` stands for in this folder, which is made if need be.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            make_folder(self.folder)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written: {error.strerror}; choose another folder with --output"
            ) from None
        lock = FileLock(self.folder / "locks" / f"{name}.lock")
        with writing(Path(lock.lock_file)):
            make_folder(self.folder / "locks")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def refuse_others(self, cells: Sequence[Cell], waiting: Sequence[Cell] = ()) -> None:
        """Raise if a cell of the same name was run with other settings.

        Of a cell that waits for a choice only the way of choosing is compared.

        Raises:
            UserError: with the first setting that differs.
        """
        for cell in cells:
            if before := self.read(cell):
                self._compare(self._plain_settings(before.cell), self._plain_settings(cell))
        for cell in waiting:
            if before := self.read(cell):
                there, here = before.cell.settings.selection, cell.settings.selection
                self._compare({"selection": there and there.model_dump()}, {"selection": here and here.model_dump()})

    def refuse_without_weights(self, cells: Sequence[Cell]) -> None:
        """Raise UserError if a cell was trained without keeping its weights: it is not trained again."""
        for cell in cells:
            with _readable(self.folder):
                without = self._path(cell).is_file() and not self._weights_path(cell).is_file()
            if without:
                raise UserError(f"{self.folder}: holds {cell.id} without its weights (save_model: true); {_ELSEWHERE}")

    def read(self, cell: Cell) -> CellRecord | None:
        """Return the record of a cell, or None if it has not been run."""
        path = self._path(cell)
        state = self._state(path)
        if state is None:
            return None
        known = self._known.get(path)
        if known is None or known.state != state or known.record.cell.label != cell.label:
            known = self._known[path] = _Known(state, self._parse(path, cell))
        return known.record

    def has(self, cell: Cell) -> bool:
        """Return whether there is a record of a cell."""
        return self._state(self._path(cell)) is not None

    def finished_ids(self) -> set[str]:
        """Return the ids of all cells that have a record, from the names of the files alone."""
        return _ids(self.cells)

    def _state(self, path: Path) -> tuple[int, ...] | None:
        """Return what changes when a file does; None if there is no such file."""
        with _readable(path):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        if stat.S_ISDIR(found.st_mode):
            self._refuse_no_file(path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _parse(self, path: Path, cell: Cell) -> CellRecord:
        with _readable(path):
            text = path.read_bytes()
        try:
            record = CellRecord.from_json(text.decode())
            check_record(record, cell)
        except OldFormatError as error:
            raise UserError(f"{path}: {error}; run again, and {_ELSEWHERE}") from None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: is damaged ({_reason(error)}); delete it and run again") from None
        return record

    def _plain_settings(self, cell: Cell) -> dict[str, Any]:
        """Return the settings of a cell as plain data; cells of one label share them."""
        known = self._plain.get(id(cell.settings))
        if known is None:
            known = self._plain[id(cell.settings)] = (cell.settings, cell.settings.plain())
        return known[1]

    def save(
        self,
        cell: Cell,
        outcome: Outcome,
        weights: dict[str, Tensor] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        """Write a cell's outcome; its weights first, so that a cell with an outcome is complete.

        Raises:
            UserError: they cannot be written.
        """
        if weights is not None:
            buffer = io.BytesIO()
            torch.save(weights, buffer)
            self.write(f"models/{cell.id}.pt", buffer.getvalue())
        self.write(f"cells/{cell.id}.json", CellRecord(cell, outcome, provenance).to_json())
        shutil.rmtree(self.checkpoints(cell), ignore_errors=True)
        self._failure_path(cell.id).unlink(missing_ok=True)

    def remove(self, cell: Cell) -> None:
        """Remove the record of a cell and its weights, so that it is run again.

        Raises:
            UserError: they cannot be removed.
        """
        for path in (self._path(cell), self._weights_path(cell)):
            with writing(path):
                path.unlink(missing_ok=True)

    def note_failure(self, cell: Cell, reason: str) -> None:
        """Keep why a cell broke, until it is finished.

        Raises:
            UserError: it cannot be written.
        """
        note = {"reason": reason, "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": host()}
        self.write(f"failed/{cell.id}.json", json.dumps(note, indent=2) + "\n")

    def failure(self, name: str) -> str | None:
        """Return why a cell broke, by its id; None if it did not."""
        note: dict[str, str] | None = self.read_json(f"failed/{name}.json", None, form=dict[str, str] | None)
        return None if note is None else note.get("reason", "")

    def failures(self) -> dict[str, tuple[int, ...]]:
        """Return, by the id of each cell that broke, what changes when it breaks again."""
        return {name: state for name in _ids(self.folder / "failed") if (state := self.failure_state(name))}

    def failure_state(self, name: str) -> tuple[int, ...] | None:
        """Return what changes when a cell breaks again; None if it did not break."""
        return self._state(self._failure_path(name))

    def weights(self, cell: Cell) -> dict[str, Tensor]:
        """Return the trained weights of a cell, for `torch.nn.Module.load_state_dict`.

        Raises:
            UserError: they were not kept, or are damaged.
        """
        path = self._weights_path(cell)
        if not path.is_file():
            raise UserError(f"{path}: no such file; weights are kept by runs with save_model: true")
        try:
            loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
        except Exception as error:  # noqa: BLE001 - damage shows in many ways
            raise UserError(
                f"{path}: is damaged ({_reason(error)}); delete it and {self._path(cell)}, and run again"
            ) from None
        return loaded

    def checkpoints(self, cell: Cell) -> Path:
        """Return the folder for the checkpoints of a cell that is not finished; `save` deletes it."""
        return self.folder / "checkpoints" / cell.id

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file atomically: it is there whole or not at all.

        Raises:
            UserError: it cannot be written. What was there before stays.
        """
        data = content.encode() if isinstance(content, str) else content
        path = self.folder / name
        self._refuse_no_file(path)
        with writing(path):
            write_whole(path, data)

    def _path(self, cell: Cell) -> Path:
        return self.cells / f"{cell.id}.json"

    def _failure_path(self, name: str) -> Path:
        return self.folder / "failed" / f"{name}.json"

    def _weights_path(self, cell: Cell) -> Path:
        return self.folder / "models" / f"{cell.id}.pt"

    def _is_foreign(self) -> bool:
        """Return whether the folder holds files and no run."""
        with _readable(self.folder):
            names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        began = {name for name in names if name == "locks" or name.startswith(".config.yaml-")}  # killed at once
        return bool(names - began) and "config.yaml" not in names

    def _refuse_no_file(self, path: Path) -> None:
        with _readable(path):
            if path.is_dir():
                raise UserError(f"{path}: is a folder; expected a file: move the folder away and run again")

    def _compare(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if there != here:
            key, before, now = first_difference(there, here)
            raise UserError(f"{self.folder}: holds other results: {key} is {before} there and {now} here; {_ELSEWHERE}")

    def _refuse_cells_beside(self, cells: Sequence[Cell]) -> None:
        """Raise if the folder holds cells of another config, whose tables the new ones would replace."""
        known = {cell.id for cell in cells}
        beside = sorted(self.finished_ids() - known)
        if beside:
            more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
            raise UserError(
                f"{self.folder}: holds other results: this config has no cell {beside[0]}{more}; {_ELSEWHERE}"
            )

    def _refuse_other_data(self, data: Mapping[str, str]) -> None:
        known = self.read_json("data.json", {}, form=dict[str, str])
        for name, fingerprint in data.items():
            if not fingerprint.startswith(known.get(name, fingerprint)):  # it was shorter before 0.2
                raise UserError(
                    f"{self.folder}: holds results on other images called {name}; "
                    "give the same --data, or choose another folder with --output"
                )

    def _note_environment(self) -> None:
        """Add what cells are trained with from now on, where it is not what they were trained with last."""
        known, now = self.read_json("environment.json", [], form=list[dict[str, Any]]), asdict(environment())
        if known[-1:] != [now]:
            self.write("environment.json", json.dumps([*known, now], indent=2) + "\n")

    def read_json(self, name: str, default: Any, *, form: Any = Any) -> Any:
        """Return the content of a JSON file of the folder, or ``default`` if it is not there.

        Args:
            name: of the file.
            default: where it is not there.
            form: the type of the content, such as ``list[str]``.

        Raises:
            UserError: it is damaged, or holds something else.
        """
        path = self.folder / name
        self._refuse_no_file(path)
        with _readable(path):
            if not path.is_file():
                return default
            data = path.read_bytes()
        try:
            return TypeAdapter(form).validate_python(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is damaged ({_reason(error)}); delete it and run again") from None


_OWN_FILES = ("config.yaml", "data.json", "environment.json", "report.json")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise UserError for a path that cannot be looked at."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{str(path)[:200]}: cannot be read ({error.strerror or error}); choose another folder with --output, "
            "or let this user read it"
        ) from None


def _reason(error: Exception) -> str:
    """Return in one line what is wrong with a record."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def first_difference(there: Any, here: Any, key: str = "") -> tuple[str, Any, Any]:
    """Return the first place where two nested values differ, and what stands there.

    >>> first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ('a.c', 2, 3)
    """
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *here]:
            if there.get(name) != here.get(name):
                return first_difference(there.get(name), here.get(name), f"{key}.{name}".lstrip("."))
    if _is_list_of_parts(there) and _is_list_of_parts(here) and len(there) == len(here):
        number = next((n for n, pair in enumerate(zip(there, here, strict=True)) if pair[0] != pair[1]), 0)
        return first_difference(there[number], here[number], f"{key}.{number}".lstrip("."))
    return key, there, here


def _is_list_of_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict | list) for entry in value)


def _ids(folder: Path) -> set[str]:
    """Return the names of the JSON files of a folder, without their ends."""
    with _readable(folder):
        names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - quick with 10,000 names
    return {name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")}
