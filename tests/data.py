"""Data sets for tests: the real ones where they are, and small image trees made on the spot."""

import os
from pathlib import Path

import pytest
from PIL import Image

REAL = Path(os.environ.get("MAS_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
real = pytest.mark.skipif(not (REAL / "MNIST").exists(), reason=f"no data sets in {REAL}; set MAS_TEST_DATA")


def make_folder(path, classes, apart=True, size=(9, 7), shade=0):
    """Make an image tree in which each image has one colour: its class in red, its number in green."""
    for part in ("train", "test") if apart else ("",):
        for label, (name, count) in enumerate(sorted(classes.items())):
            (path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size, (40 * label, i + shade, 200)).save(path / part / name / f"{i:03}.png")
    return path
