"""Join folders of one config, as shards leave them that share no file system."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mas.experiments.belonging import config_difference
from mas.experiments.cell import Cell
from mas.experiments.errors import UserError
from mas.experiments.maintenance.equality import difference_of_records, differences_of_environments
from mas.experiments.maintenance.folders import RunFolder, open_folder
from mas.experiments.record import CellRecord
from mas.experiments.report.sections import Headline
from mas.experiments.reporting import write_report
from mas.experiments.runner import read_results
from mas.experiments.store import Store


@dataclass(frozen=True)
class Merged:
    """What was joined."""

    folder: Path
    folders: int
    cells: int  # that are in the folder now
    left: int  # that no folder has
    headline: Headline | None  # of the report, if every cell is there

    def __str__(self) -> str:
        """Return it as one line for the terminal."""
        line = f"{self.folder}: holds {self.cells} cells of {self.folders} folders"
        if self.left:
            line += f"; {self.left} cells of the config are in none of them, so no report: train them with mas run"
        return line


@dataclass(frozen=True)
class _Found:
    """A record, and the folder that it was found in."""

    store: Store
    record: CellRecord


def merge(out: str | Path, folders: Sequence[str | Path]) -> Merged:
    """Join folders of one config into ``out``, and write the report if every cell is there.

    Args:
        out: for all; if it holds a run, its cells are kept.
        folders: that ``mas run`` has written. They are left as they are.

    Raises:
        UserError: a folder is of another config or of other data, or two folders have different results of one cell.
    """
    target = Store(Path(out))
    paths = [Path(folder) for folder in folders]
    if (target.folder / "config.yaml").is_file() and target.folder not in paths:
        paths.insert(0, target.folder)
    sources = [open_folder(path) for path in paths]
    if not sources:
        raise UserError("merge: found no folder to join; give at least one")
    _refuse_other_configs(sources)
    data = _data_of_all(sources)
    found = _cells_of_all(sources)
    first = sources[0]
    target.refuse([], first.plan.every_cell(), data)
    with target.exclusive("folder"):
        target.claim(first.config.plain(), data, trains=False)
        _merge_environments(target, sources)
        for one in found.values():
            _copy(one, target)
    left = len(first.plan.every_cell()) - len(found)
    headline = write_report(target, first.config, read_results(first.config, target)) if not left else None
    return Merged(target.folder, len(sources), len(found), left, headline)


def _refuse_other_configs(sources: Sequence[RunFolder]) -> None:
    first, *others = sources
    for other in others:
        if difference := config_difference(other.store, first.config):
            raise UserError(
                f"{other.store.folder}: is of another config than {first.store.folder}: {difference}; "
                "only folders of one config can be joined"
            )


def _data_of_all(sources: Sequence[RunFolder]) -> dict[str, str]:
    """Return the fingerprints of all data sets; raise if folders have other images of one name."""
    known: dict[str, str] = {}
    for source in sources:
        own: Mapping[str, str] = source.store.read_json("data.json", {}, form=dict[str, str])
        for name, fingerprint in own.items():
            before = known.setdefault(name, fingerprint)
            if not (fingerprint.startswith(before) or before.startswith(fingerprint)):
                raise UserError(
                    f"{source.store.folder}: holds results on other images called {name} than "
                    f"{sources[0].store.folder}; only results on the same data can be joined"
                )
            known[name] = max(before, fingerprint, key=len)
    return known


def _cells_of_all(sources: Sequence[RunFolder]) -> dict[str, _Found]:
    """Return the records of all folders by the ids of their cells."""
    found: dict[str, _Found] = {}
    for source in sources:
        cells = {cell.id: cell for cell in source.plan.every_cell()}
        for name in sorted(source.store.finished_ids()):
            if name not in cells:
                raise UserError(f"{source.store.folder}: holds a cell {name} that its config does not have; remove it")
            own = _Found(source.store, _read(source.store, cells[name]))
            before = found.setdefault(name, own)
            _refuse_two_results(name, before, own)
    return found


def _read(store: Store, cell: Cell) -> CellRecord:
    record = store.read(cell)
    if record is None:
        raise UserError(f"{store.folder}: {cell.id} was removed while it was read; run this again")
    return record


def _refuse_two_results(name: str, there: _Found, here: _Found) -> None:
    difference = difference_of_records(there.record, here.record)
    if difference is None:
        return
    line = f"{name}: {there.store.folder} and {here.store.folder} hold different results: {difference}"
    old, new = there.record.provenance, here.record.provenance
    if old and new and (reasons := differences_of_environments(old.environment, new.environment)):
        line += f" ({'; '.join(reasons)})"
    raise UserError(f"{line}; keep one of the two and remove the other")


def _merge_environments(target: Store, sources: Sequence[RunFolder]) -> None:
    form = list[dict[str, Any]]
    every: list[dict[str, Any]] = []
    for store in (target, *(source.store for source in sources)):
        every += [entry for entry in store.read_json("environment.json", [], form=form) if entry not in every]
    target.write("environment.json", json.dumps(every, indent=2) + "\n")


def _copy(found: _Found, target: Store) -> None:
    """Copy a record that the target does not have; its weights first, so that a cell with a record is complete."""
    name = found.record.cell.id
    for file in (f"models/{name}.pt", f"cells/{name}.json"):
        source = found.store.folder / file
        if source.is_file() and not (target.folder / file).is_file():
            target.write(file, source.read_bytes())
