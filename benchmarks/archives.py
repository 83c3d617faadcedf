"""Zips of images, which may be damaged, encrypted, or made to fill the memory.

Bounds: an image takes at most `MAX_MEMBER` bytes, all of a zip `MAX_TOTAL`; what is larger than
`FREE_MEMBER` (one image) or `FREE_TOTAL` (all) unpacks to at most `MAX_RATIO` times its packed size.
"""

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mas.benchmarks.errors import DataError, reason

MAX_MEMBER = 2**28  # bytes: 256 MiB
MAX_TOTAL = 2**38  # 256 GiB
MAX_RATIO = 200  # images are packed already, so that a zip of them hardly shrinks; a bomb does so 1,000 times and more
FREE_MEMBER = 2**22  # 4 MiB: below, an image of one colour may be packed as small as it likes
FREE_TOTAL = 2**26  # 64 MiB

_ENCRYPTED = 1  # a bit of a member's flags
_MEND = "unpack it yourself and give the folder"


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip to read.

    Raises:
        DataError: it is damaged, or no zip.
    """
    try:
        return zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is no readable zip ({reason(error)}); fetch it again") from None


def check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Check files of a zip by what its directory says of them, before any is unpacked.

    Args:
        path: of the zip.
        members: the files that are to be read.

    Raises:
        DataError: one is encrypted, or one or all unpack to more than is allowed.
    """
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise DataError(
                f"{path}: {member.filename} is encrypted; expected a zip without a password: pack it again without"
            )
        what = f"{path}: {member.filename} unpacks to"
        _check_size(what, member.file_size, packed=member.compress_size, most=MAX_MEMBER, free=FREE_MEMBER)
    total = sum(member.file_size for member in members)
    on_disk = path.stat().st_size  # members may share their packed bytes
    _check_size(f"{path}: the images unpack to", total, packed=on_disk, most=MAX_TOTAL, free=FREE_TOTAL)


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of a zip, unpacked.

    Raises:
        DataError: it is damaged, or packed by a method that Python does not know.
    """
    try:
        return archive.read(name)
    except NotImplementedError:
        method = archive.getinfo(name).compress_type
        raise DataError(
            f"{archive.filename}: {name} is packed by method {method}, which Python cannot unpack; pack it again, "
            "with deflate or without compression"
        ) from None
    except Exception as error:  # noqa: BLE001 - each method reports damage in its own way
        raise DataError(f"{archive.filename}: is damaged at {name} ({reason(error)}); fetch it again") from None


def _check_size(what: str, size: int, *, packed: int, most: int, free: int) -> None:
    if size > most:
        raise DataError(f"{what} {size:,} bytes; allowed: {most:,}; {_MEND}")
    ratio = size / max(packed, 1)
    if size > free and ratio > MAX_RATIO:
        raise DataError(
            f"{what} {size:,} bytes, {ratio:.0f} times as many as packed; allowed: {MAX_RATIO} times; {_MEND}"
        )
