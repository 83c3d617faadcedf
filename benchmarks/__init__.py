"""Task sequences as ordinary Avalanche benchmarks: data sets, the streams made of them, and deficits.

>>> from mas.benchmarks import split  # doctest: +SKIP
"""

if __name__ != "mas.benchmarks":
    raise ImportError(
        f"import mas.benchmarks, not {__name__}: under two names there would be two copies of every class"
    )

from mas.benchmarks.datasets import DATASETS, digits, fingerprint, load_dataset
from mas.benchmarks.deficits import DEFICITS, DeficitPlugin, apply_deficit, make_deficit
from mas.benchmarks.errors import DataError
from mas.benchmarks.images import BatchedDataset, Images, as_dataset
from mas.benchmarks.loading import data_root, set_data_root
from mas.benchmarks.names import experience_names
from mas.benchmarks.streams import STREAMS, deficit_then_clear, instances, permuted, rotated, sequence, split, whole
from mas.benchmarks.tasks import mixture, one_vs_rest, pairs

__all__ = [
    "DATASETS",
    "DEFICITS",
    "STREAMS",
    "BatchedDataset",
    "DataError",
    "DeficitPlugin",
    "Images",
    "apply_deficit",
    "as_dataset",
    "data_root",
    "deficit_then_clear",
    "digits",
    "experience_names",
    "fingerprint",
    "instances",
    "load_dataset",
    "make_deficit",
    "mixture",
    "one_vs_rest",
    "pairs",
    "permuted",
    "rotated",
    "sequence",
    "set_data_root",
    "split",
    "whole",
]
