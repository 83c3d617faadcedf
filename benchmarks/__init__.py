"""Task sequences as ordinary Avalanche benchmarks: data sets and the streams made of them.

>>> from mas.benchmarks import split  # doctest: +SKIP
"""

if __name__ != "mas.benchmarks":
    raise ImportError(
        f"import mas.benchmarks, not {__name__}: under two names there would be two copies of every class"
    )

from mas.benchmarks.datasets import DATASETS, digits
from mas.benchmarks.streams import STREAMS, split

__all__ = ["DATASETS", "STREAMS", "digits", "split"]
