"""Files that are written whole or not at all, also when the power fails."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mas.experiments.errors import UserError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: it is there whole or not at all. Its folder is made if need be.

    The data are on the disk before the file gets its name, and the name is before this returns.

    Raises:
        OSError: it cannot be written. Then what was there before stays, and no temporary file does.
    """
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError where a file of a run's folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); finished cells are kept: make room or allow "
            "writing, and run the same command again"
        ) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those around it, so that they stay when the power fails."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in missing:
        _sync_folder(part.parent)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk; where a system cannot do this with folders, nothing is done."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
