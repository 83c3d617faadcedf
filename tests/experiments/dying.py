"""A data set that a config imports, and that ends its process while a file says so."""

import os
from pathlib import Path

import torch

from mas.benchmarks import Images


def two_shades(count=60, marks="", dies=0):
    """Return (train, test) of grey images; the first ``dies`` processes of workers that ask for it die.

    Args:
        count: of images in each part.
        marks: a folder that keeps how many died; "" is none.
        dies: how many processes die.
    """
    is_worker = os.environ.get("MKL_NUM_THREADS") == "1"
    if marks and is_worker:
        number = len(list(Path(marks).iterdir()))
        if number < dies:
            (Path(marks) / f"{os.getpid()}").touch()
            os._exit(7)
    generator = torch.Generator().manual_seed(0)

    def draw():
        labels = torch.arange(count) % 4
        pixels = torch.rand(count, 1, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1)
        return Images(pixels, labels)

    return draw(), draw()
