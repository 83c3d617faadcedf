"""Task sequences as ordinary Avalanche benchmarks: data sets and the streams made of them.

>>> from mas.benchmarks import split  # doctest: +SKIP
"""

if __name__ != "mas.benchmarks":
    raise ImportError(
        f"import mas.benchmarks, not {__name__}: under two names there would be two copies of every class"
    )

from mas.benchmarks.datasets import DATASETS, digits, fingerprint, load_dataset
from mas.benchmarks.folders import DataError
from mas.benchmarks.images import BatchedDataset, Images, as_dataset
from mas.benchmarks.loading import data_root, set_data_root
from mas.benchmarks.streams import STREAMS, instances, permuted, rotated, sequence, split

__all__ = [
    "DATASETS",
    "STREAMS",
    "BatchedDataset",
    "DataError",
    "Images",
    "as_dataset",
    "data_root",
    "digits",
    "fingerprint",
    "instances",
    "load_dataset",
    "permuted",
    "rotated",
    "sequence",
    "set_data_root",
    "split",
]
