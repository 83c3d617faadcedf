"""Data sets by name, each a pair (train, test) of labelled tensors."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

Pair = tuple[TensorDataset, TensorDataset]


@cache
def digits() -> Pair:
    """Handwritten digits, 8x8 grey, 10 classes, 1,437 train and 360 test images (comes with scikit-learn).

    scikit-learn gives no split of its own; the one here is fixed, stratified by class and the
    same for every seed. Images have shape (1, 8, 8) and values from 0 to 1.
    """
    images, labels = load_digits(return_X_y=True)
    # 1797 images of 8x8 with grey values from 0 to 16
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels, dtype=torch.int64)
    return hold_out(TensorDataset(x, y), 0.2)


def hold_out(dataset: TensorDataset, share: float) -> Pair:
    """Divide labelled data into (kept, held out), class by class, the same way each time."""
    labels = dataset.tensors[1]
    least = len(labels.unique()) / len(labels)  # one of each class on both sides
    if not least <= share <= 1 - least:
        raise ValueError(f"validation is {share}; {len(labels)} images need {least:.3f} to {1 - least:.3f}")
    kept, held = train_test_split(range(len(labels)), test_size=share, stratify=labels.numpy(), random_state=0)
    return tuple(TensorDataset(*(tensor[part] for tensor in dataset.tensors)) for part in (kept, held))  # type: ignore[return-value]


DATASETS = {
    "digits": digits,
}
"""Name in YAML -> function that gives (train, test). Its docstring's first line describes it."""
