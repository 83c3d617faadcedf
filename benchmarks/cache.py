"""Arrays that take long to make, kept in files with their checksums and mapped into memory."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mas.benchmarks.errors import DataError, reason

Pixels = NDArray[np.uint8]


def cache_folder() -> Path:
    """Return the folder for files that can be made again: ``MAS_CACHE``, or ``mas`` in the user's cache.

    Raises:
        DataError: neither is set, and the user has no home directory.
    """
    own = os.environ.get("MAS_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(own) if own else Path(users) / "mas"
    try:
        return folder.expanduser()
    except RuntimeError:
        raise DataError(
            "no home directory to keep decoded images in; set MAS_CACHE to a folder that can be written"
        ) from None


def cached_array(name: str, shape: tuple[int, ...], make: Callable[[], Pixels]) -> Pixels:
    """Return an array of a shape, uint8; from the cache if it is there as it was written.

    Beside each array lies its SHA-256. An array that does not match it, as after a crash or by a fault of
    the disk, is not used but made anew, with a warning that names the file.

    Args:
        name: of the file; it must differ for different content.
        shape: of the array.
        make: returns the array.

    Raises:
        DataError: the array is to be written and cannot be. Then no part of it stays.
    """
    file = cache_folder() / "decoded" / f"{name}.npy"
    found = _read(file, shape)
    if found is None:
        _write(file, make)
        found = np.load(file, mmap_mode="c")  # copy on write: the file stays as it is
    return found


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def writing_to_cache() -> Iterator[None]:
    """Raise DataError, with what to do, for a file in the cache that cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{cache_folder()}: cannot be written ({reason(error)}); make room, or set MAS_CACHE to a folder "
            "that can be written"
        ) from None


@contextmanager
def whole_file(file: Path) -> Iterator[IO[bytes]]:
    """Open a file to write that appears whole or not at all: several processes may write it at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as part:
        try:
            yield part
            part.close()  # what was buffered may not fit on the disk
            Path(part.name).replace(file)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def _checksum_of(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _read(file: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Return an array of the cache, mapped into memory; None if it is not there or not as it was written."""
    try:
        expected = _checksum_of(file).read_text(encoding="ascii")
        digest = digest_of(file)
    except (OSError, ValueError):  # not there, or not readable
        return None
    if digest == expected:
        found = _mapped(file)
        if found is not None and found.shape == shape and found.dtype == np.uint8:
            return found
    warnings.warn(f"{file}: does not match its checksum; it is made anew", stacklevel=2)
    return None


def _mapped(file: Path) -> Pixels | None:
    """Return an array mapped into memory; None if the file holds none. Writing to it leaves the file as it is."""
    try:
        found: Pixels = np.load(file, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return found


def _write(file: Path, make: Callable[[], Pixels]) -> None:
    """Write an array, then its checksum. Whether there is a place to write is found out before it is made."""
    with writing_to_cache(), whole_file(file) as part:
        np.save(part, make())
    with writing_to_cache(), whole_file(_checksum_of(file)) as part:
        part.write(digest_of(file).encode())
