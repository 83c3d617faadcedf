"""Check all records of a folder, and make one of its results again."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mas.benchmarks import DataError
from mas.experiments.cell import Cell
from mas.experiments.errors import UserError
from mas.experiments.jobs import run_cell
from mas.experiments.maintenance.equality import (
    Difference,
    difference_of_outcomes,
    difference_of_weights,
    differences_of_environments,
)
from mas.experiments.maintenance.folders import RunFolder, open_folder
from mas.experiments.provenance import config_hash, environment, fingerprints
from mas.experiments.record import CellRecord
from mas.experiments.store import Store, first_difference


@dataclass
class Verified:
    """What was checked, and what was found."""

    records: int = 0
    problems: list[str] = field(default_factory=list)  # a line each
    notes: list[str] = field(default_factory=list)  # what could not be checked, and why
    repeated: str | None = None  # the cell that was run again
    difference: Difference | None = None  # of its two results
    reasons: list[str] = field(default_factory=list)  # by which they may differ

    @property
    def is_right(self) -> bool:
        """Whether no problem and no difference was found."""
        return not self.problems and self.difference is None

    def lines(self) -> list[str]:
        """Return what people read."""
        lines = [*self.notes, f"{self.records} records checked, problems found: {len(self.problems)}"]
        lines += [f"error: {problem}" for problem in self.problems]
        if self.repeated and self.difference is None:
            lines.append(f"{self.repeated}: was run again: its numbers are the same to the bit")
        elif self.repeated:
            lines.append(f"error: {self.repeated}: was run again: {self.difference}")
            lines += self._explanation()
        return lines

    def _explanation(self) -> list[str]:
        if not self.reasons:
            return ["it was made in the same environment: the record was changed, or the cell is not deterministic"]
        return ["this may be why: results are the same to the bit only in the same environment", *self.reasons]


def verify(
    folder: str | Path, *, cell: str | None = None, seed: int | None = None, data: str | Path | None = None
) -> Verified:
    """Check the records of a folder, and run a finished cell again.

    Checked are names, labels, seeds, ranges, settings and their hashes, the hashes of data, and whether weights are
    there. Nothing in the folder is changed.

    Args:
        folder: that ``mas run`` has written.
        cell: the id of the cell to run again; by default a random one.
        seed: by which that one is drawn; by default another one each time.
        data: where data sets are; by default as the config says.

    Raises:
        UserError: it is no folder of a run, or has no such cell.
    """
    opened = open_folder(Path(folder), Path(data) if data else None)
    found = Verified()
    records = _check_all(opened, found)
    chosen = _choose(records, cell, seed, opened.store)
    if chosen is None:
        found.notes.append("no finished cell could be run again")
    else:
        _repeat(chosen, opened, found)
    return found


@dataclass(frozen=True)
class _Expected:
    """What the records of a folder should hold."""

    cells: dict[str, Cell]
    without_choice: frozenset[str]  # ids of cells whose settings are still to be chosen
    with_weights: frozenset[str]
    hashes: dict[str, str]  # of the data, by name


def _check_all(opened: RunFolder, found: Verified) -> list[CellRecord]:
    """Check every record; return those that are whole."""
    expected = _expected(opened, found)
    names = sorted(opened.store.finished_ids())
    found.records = len(names)
    whole = []
    for name in names:
        try:
            record = opened.store.read(expected.cells[name]) if name in expected.cells else None
        except UserError as error:
            found.problems.append(error.lines[0])
            continue
        if record is None:
            found.problems.append(f"{name}: the config has no such cell")
            continue
        found.problems += [f"{name}: {problem}" for problem in _problems(name, record, expected, opened.store)]
        whole.append(record)
    return whole


def _expected(opened: RunFolder, found: Verified) -> _Expected:
    plan = opened.plan
    try:
        chosen = opened.chosen()
    except UserError:
        found.notes.append("a cell that tries a value is damaged, so the values that were chosen are not checked")
        chosen = {}
    tries, ready, waiting = plan.trying_cells(), plan.cells(chosen), plan.waiting(chosen)
    kept = [cell.id for cell in (*ready, *waiting)] if opened.config.keeps_weights else []
    return _Expected(
        {cell.id: cell for cell in (*tries, *ready, *waiting)},
        frozenset(cell.id for cell in waiting),
        frozenset(kept),
        _hashes_of_data(opened, found),
    )


def _problems(name: str, record: CellRecord, expected: _Expected, store: Store) -> Iterator[str]:
    there, here = record.cell.settings.plain(), expected.cells[name].settings.plain()
    if name not in expected.without_choice and there != here:
        key, before, now = first_difference(there, here)
        yield f"its settings are not those of the config: {key} is {before} in the record and {now} in the config"
    if name in expected.with_weights and not (store.folder / "models" / f"{name}.pt").is_file():
        yield "its weights are not there (save_model: true)"
    made_with = record.provenance
    if made_with is None:  # records before 0.2
        return
    if made_with.config_hash != config_hash(record.cell.settings):
        yield "its settings have another hash than when it was trained: the record was changed"
    for data, value in made_with.data.items():
        known = expected.hashes.get(data, value)
        if not value.startswith(known) and not known.startswith(value):
            yield f"it was trained on other data called {data}"


def _hashes_of_data(opened: RunFolder, found: Verified) -> dict[str, str]:
    """Return the fingerprints of the data sets that are here, or of those that the folder names."""
    known: dict[str, str] = opened.store.read_json("data.json", {}, form=dict[str, str])
    try:
        here: dict[str, str] = {}
        for run in opened.plan.runs:
            here |= fingerprints(run.settings)
    except (DataError, UserError) as error:
        found.notes.append(f"the data are not here, so their hashes are compared with data.json alone ({error})")
        return known
    for name, value in here.items():
        before = known.get(name, value)
        if not value.startswith(before):
            found.problems.append(f"data.json: the folder holds results on other data called {name} than those here")
    return here


def _choose(records: Sequence[CellRecord], name: str | None, seed: int | None, store: Store) -> CellRecord | None:
    if name is None:
        return random.Random(seed).choice(records) if records else None  # noqa: S311 - no secret
    for record in records:
        if record.cell.id == name:
            return record
    raise UserError(f"{store.folder}: holds no finished cell {name}; see mas status {store.folder}")


def _repeat(record: CellRecord, opened: RunFolder, found: Verified) -> None:
    """Run a cell again, and compare every number; its weights too if they were kept."""
    cell = record.cell
    has_weights = (opened.store.folder / "models" / f"{cell.id}.pt").is_file()
    try:
        again = run_cell(cell, has_weights)
    except DataError as error:
        found.notes.append(f"{cell.id} cannot be run again: {error}")
        return
    found.repeated = cell.id
    found.difference = difference_of_outcomes(record.outcome, again.outcome)
    if found.difference is None and has_weights and again.weights is not None:
        found.difference = difference_of_weights(opened.store.weights(cell), again.weights)
    if found.difference is not None and record.provenance:
        found.reasons = differences_of_environments(record.provenance.environment, environment())
