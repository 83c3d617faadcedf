"""A cell that was killed and resumed ends as one that was not, to the bit: for every strategy and place to stop."""

import numpy as np
import pytest
import torch

from mas.experiments.checkpoints import Checkpoints
from mas.experiments.training import train_cell
from mas.strategies import STRATEGIES
from tests.experiments.builders import first_cell


class KilledError(BaseException):
    """A process that was killed."""


class KillingCheckpoints(Checkpoints):
    """Saves whenever it can, and dies after one save."""

    def __init__(self, folder, die_after):
        super().__init__(folder, interval=0.0, share=float("inf"))
        self.left = die_after

    def save(self, state):
        super().save(state)
        self.left -= 1
        if not self.left:
            raise KilledError


def cell_of(name, **changes):
    return first_cell(
        name,
        benchmark={"stream": "split", "dataset": {"name": "digits", "train": 240, "test": 40}, "experiences": 3},
        training={"epochs": 2, "batch_size": 32, **changes.pop("training", {})},
        **changes,
    )


def assert_same(found, expected):
    assert found.outcome.untrained == expected.outcome.untrained
    assert np.array_equal(found.outcome.matrix(), expected.outcome.matrix(), equal_nan=True)
    assert found.outcome.probes == expected.outcome.probes
    assert found.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert torch.equal(found.weights[name], tensor), name


def train_killed(cell, folder, kills):
    """Train a cell that is killed after so many saves, one after another, and then to the end; return it."""
    for die_after in kills:
        try:
            return train_cell(cell, True, KillingCheckpoints(folder, die_after))
        except KilledError:
            continue
    return train_cell(cell, True, Checkpoints(folder))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("kills", [[2], [4], [7], [11, 1, 3, 2]], ids=str)
def test_a_killed_cell_ends_as_one_that_was_not(name, kills, tmp_path):
    cell = cell_of(name, training={"optimizer": "adam"})
    expected = train_cell(cell, True)
    found = train_killed(cell, tmp_path, kills)
    assert_same(found, expected)
