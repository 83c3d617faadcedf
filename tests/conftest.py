"""What every test stands in: one thread, seeded streams, no GPU needed."""

import pytest
import torch


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
