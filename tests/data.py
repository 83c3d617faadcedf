"""Data sets for tests: the real ones where they are, and small image trees made on the spot."""

import os
from pathlib import Path

import pytest
from PIL import Image

REAL = Path(os.environ.get("MAS_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
real = pytest.mark.skipif(not (REAL / "MNIST").exists(), reason=f"no data sets in {REAL}; set MAS_TEST_DATA")


def mirror(source, target, pattern="*"):
    """Make a tree of links to files, so that what a loader unpacks beside them never lands in ``source``."""
    for file in source.rglob(pattern):
        if file.is_file():
            link = target / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return target


def forbid_writing(root):
    """Take away the right to write from a folder and all folders in it."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    return root


def make_folder(path, classes, apart=True, size=(9, 7), shade=0):
    """Make an image tree in which each image has one colour: its class in red, its number in green."""
    for part in ("train", "test") if apart else ("",):
        for label, (name, count) in enumerate(sorted(classes.items())):
            (path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size, (40 * label, i + shade, 200)).save(path / part / name / f"{i:03}.png")
    return path
