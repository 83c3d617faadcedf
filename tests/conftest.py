"""What every test stands in: one thread, seeded streams, no GPU needed."""

import pytest
import torch

from tests.data import REAL, mirror


@pytest.fixture(scope="session")
def real_data(tmp_path_factory):
    """Return a folder of links to the real data sets: archives are unpacked there, not in the folder of the data."""
    return mirror(REAL, tmp_path_factory.mktemp("real"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(found, expected, tolerance=1e-10):
    """Compare two dicts of tensors: the same names, values within a relative tolerance."""
    assert found.keys() == expected.keys()
    for name in expected:
        scale = max(1.0, float(expected[name].detach().abs().max()))
        difference = float((found[name] - expected[name]).detach().abs().max())
        assert difference <= tolerance * scale, f"{name}: off by {difference}"
