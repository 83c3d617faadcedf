"""The variational estimator against its closed form, and against the exact Fisher information on a trained network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.datasets import load_digits

from mas import embed
from tests.models import small_cnn
from tests.task2vec_cases import linear_probe, linear_task, probe, split, task


def test_the_closed_form_on_a_linear_probe():
    """Softmax regression has as its Hessian the Fisher information: β/σ² = F + β/λ², for noise that is small."""
    model, batches = linear_probe(), [linear_task()]
    exact = embed(model, batches, beta=1e-6)
    found = embed(model, batches, beta=1e-6, labels="variational", steps=4000)  # 2000 leave 5 % of noise
    assert (found.vector / exact.vector - 1).abs().max() < 0.05
    variance = 1e-6 / found.precision
    prior = model[0].weight.detach().square().mean() + variance.mean()
    assert torch.allclose(found.scale, 1e-6 / prior.expand(4), rtol=1e-9)


def test_a_filter_without_information_has_the_priors_variance():
    """The first filter of a layer is off for every input and every noise: σ² = λ², and F = 0."""
    model, batches = probe(), task()
    model.up.bias.data[0] = -1000
    found = embed(model, batches, beta=1e-4, labels="variational", steps=1000)
    unused = 3  # of the transposed convolution
    assert found.vector[unused] < 0.1 * found.scale[unused]
    assert found.vector[unused + 1] > 10 * found.scale[unused + 1]


def test_another_generator_gives_another_estimate():
    first = embed(probe(), task(), labels="variational", steps=50)
    seeded = torch.Generator().manual_seed(1)
    second = embed(probe(), task(), labels="variational", steps=50, generator=seeded)
    assert not torch.equal(first.vector, second.vector)


def test_own_forward_and_batches_of_more_parts():
    batches = split(task(), 10)
    longer = [(x, y, "more") for x, y in batches]
    expected = embed(probe(), batches, labels="variational", steps=20)
    found = embed(probe(), longer, labels="variational", steps=20, forward=lambda model, batch: model(batch[0]))
    assert torch.equal(found.vector, expected.vector)


def test_noise_that_breaks_the_network_is_said():
    model = probe()
    ((x, y),) = task()
    with pytest.raises(FloatingPointError):
        embed(model, [(x * torch.inf, y)], labels="variational", steps=5)


@pytest.fixture(scope="module")
def digits():
    """Return a small CNN trained on scikit-learn's digits for 5 epochs, and the digits in a random order."""
    values, labels = load_digits(return_X_y=True)
    x = torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = small_cnn(channels=1, width=8, pixels=8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(5):
        for rows in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    order = torch.randperm(len(x), generator=generator)
    return model, x[order], y[order]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [range(10), (3, 8)], ids=["ten digits", "3 and 8"])
def test_it_ranks_filters_as_the_exact_fisher_information_does(digits, classes):
    """Rank correlation 0.92 and 0.93; correlation of the logarithms 0.99 for both."""
    model, x, y = digits
    kept = torch.isin(y, torch.tensor(classes))
    batches = list(zip(x[kept].split(64), y[kept].split(64), strict=True))
    exact = embed(model, batches)
    found = embed(model, batches, labels="variational")
    rank = spearmanr(exact.precision, found.precision).statistic
    log_correlation = np.corrcoef(exact.precision.log(), found.precision.log())[0, 1]
    assert rank > 0.9
    assert log_correlation > 0.95
