"""Remove what a run leaves besides its results: checkpoints, stale locks, notes on failures, temporary files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mas.experiments.errors import UserError
from mas.experiments.locks import locks_of
from mas.experiments.maintenance.folders import refuse_no_run
from mas.experiments.store import Store

_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}")  # as `mas.experiments.files.write_whole` names them
_IN_ROOT = re.compile(r"\..+\.(json|yaml|csv|html|npz)-[a-z0-9_]{8}")  # beside files of the user's own


@dataclass(frozen=True)
class Removable:
    """Files of one sort that can be removed."""

    sort: str
    paths: list[Path]
    size: int  # bytes

    def __str__(self) -> str:
        """Return them in one line."""
        count = len(self.paths)
        return f"{self.sort}: {count} file{'s' if count != 1 else ''}, {self.size:,} bytes"


def clean(folder: str | Path, *, dry_run: bool = False) -> list[Removable]:
    """Remove from a folder what no result depends on; finished cells, weights, tables and reports stay.

    Args:
        folder: that ``mas run`` has written, and that no process uses now.
        dry_run: remove nothing, and return what would be removed.

    Returns:
        What was removed, by sort.

    Raises:
        UserError: it is no folder of a run, a process uses it, or a file cannot be removed.
    """
    store = Store(Path(folder))
    refuse_no_run(store)
    _refuse_in_use(store)
    if dry_run:
        return _removable(store.folder)
    with store.exclusive("folder"):
        _refuse_in_use(store)
        found = _removable(store.folder)
        for sort in found:
            for path in sort.paths:
                _remove(path)
        _remove_empty_folders(store.folder)
    return found


def _refuse_in_use(store: Store) -> None:
    for lock in locks_of(store.folder / "locks"):
        if not lock.is_stale:
            by = f"process {lock.holder.pid} on {lock.holder.host.partition('/')[0]}" if lock.holder else "a process"
            raise UserError(f"{store.folder}: is in use: {by} trains {lock.id}; stop it first, or wait until it ends")


def _removable(folder: Path) -> list[Removable]:
    sorts = {
        "checkpoints": [path for path in _files(folder / "checkpoints") if not path.name.startswith(".")],
        "stale locks": list((folder / "locks").glob("[!.]*.json")),
        "notes on failed cells": list((folder / "failed").glob("[!.]*.json")),
        "temporary files": list(_temporary_files(folder)),
    }
    return [Removable(sort, paths, sum(p.lstat().st_size for p in paths)) for sort, paths in sorts.items() if paths]


def _temporary_files(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.glob(".*") if path.is_file() and _IN_ROOT.fullmatch(path.name))
    for name in ("cells", "models", "figures", "failed", "checkpoints"):
        yield from (path for path in _files(folder / name) if _TEMPORARY.fullmatch(path.name))
    yield from (path for path in _files(folder / "locks") if path.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below, but nothing that a link leads to."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror}); allow writing in its folder") from None


def _remove_empty_folders(folder: Path) -> None:
    """Remove the folders that are empty now."""
    for top in (folder / "checkpoints", folder / "failed"):
        if top.is_symlink() or not top.is_dir():
            continue
        for path in (*sorted(top.rglob("*"), reverse=True), top):
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()
